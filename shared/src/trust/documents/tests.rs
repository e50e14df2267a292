use proptest::prelude::*;
use proptest::sample::subsequence;
use zeroize::Zeroizing;

use super::*;
use crate::bundle::{
    Budgets, BundleFile, DataType, GOLDEN_PATH, Lineage, MODEL_PATH, ModelSignature, Requirements, TensorSpec,
};
use crate::damage;
use crate::ids::BundleName;
use crate::profile::Profile;
use crate::trust::Signature;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&Zeroizing::new([seed; 32]))
}

fn role(seeds: &[u8], threshold: u32) -> RoleKeys {
    RoleKeys { key_ids: seeds.iter().map(|s| key(*s).public().id()).collect(), threshold }
}

fn root(version: u64, root_seeds: &[u8], threshold: u32) -> Root {
    let seeds = [root_seeds, &[20, 30]].concat();
    Root {
        version,
        expires_ms: 1_000,
        keys: seeds.iter().map(|s| (key(*s).public().id(), key(*s).public())).collect(),
        roles: [
            (Role::Root, role(root_seeds, threshold)),
            (Role::Release, role(&[20], 1)),
            (Role::Director, role(&[30], 1)),
        ]
        .into(),
    }
}

fn sign<T: Serialize>(kind: DocumentKind, document: &T, seeds: &[u8]) -> Envelope {
    let keys: Vec<_> = seeds.iter().map(|s| key(*s)).collect();
    sign_document(kind, document, &keys).unwrap()
}

fn device() -> DeviceId {
    DeviceId::new("dev-1").unwrap()
}

fn assignment(expires_ms: u64) -> Assignment {
    Assignment {
        device: device(),
        rollout: RolloutId::new("r1").unwrap(),
        manifest: None,
        generation: 1,
        issued_at_ms: 0,
        expires_ms,
        watch: WatchPolicy::default(),
        delivery: DeliveryPolicy::default(),
        stage: Stage::Serve,
        activation: Activation::AtOnce,
        track: Default::default(),
    }
}

#[test]
fn the_first_root_signs_itself_and_may_be_pinned() {
    let envelope = sign(DocumentKind::Root, &root(1, &[1, 2], 2), &[1, 2]);
    let digest = Digest::of(&envelope.payload_bytes().unwrap());
    assert!(TrustedRoot::first(envelope.clone(), Some(digest)).is_ok());
    assert_eq!(TrustedRoot::first(envelope, Some(Digest::of(b"other"))), Err(TrustError::RootPin));
    let manifest = sign(DocumentKind::Manifest, &root(1, &[1], 1), &[1]);
    assert!(matches!(TrustedRoot::first(manifest, None), Err(TrustError::PayloadType { .. })));
    let few = sign(DocumentKind::Root, &root(1, &[1, 2], 2), &[1]);
    assert!(matches!(TrustedRoot::first(few, None), Err(TrustError::Threshold { valid: 1, threshold: 2, .. })));
}

#[test]
fn the_next_root_needs_the_old_threshold_and_its_own() {
    let trusted = TrustedRoot::first(sign(DocumentKind::Root, &root(1, &[1, 2], 2), &[1, 2]), None).unwrap();
    let next = root(2, &[2, 3], 2);
    assert!(trusted.next(sign(DocumentKind::Root, &next, &[1, 2, 3])).is_ok());
    for seeds in [&[1, 2][..], &[2, 3], &[1, 3]] {
        assert!(matches!(trusted.next(sign(DocumentKind::Root, &next, seeds)), Err(TrustError::Threshold { .. })));
    }
    for version in [0, 1, 3] {
        let out_of_turn = sign(DocumentKind::Root, &root(version, &[1, 2], 2), &[1, 2]);
        assert!(matches!(trusted.next(out_of_turn), Err(TrustError::RootVersion { current: 1, .. })));
    }
}

#[test]
fn a_root_that_cannot_be_fulfilled_is_refused() {
    let mut lacking = root(1, &[1], 1);
    lacking.roles.remove(&Role::Director);
    let mut too_many = root(1, &[1], 1);
    too_many.roles.insert(Role::Release, role(&[20], 2));
    let mut zero = root(1, &[1], 1);
    zero.roles.insert(Role::Root, role(&[1], 0));
    let mut renamed = root(1, &[1], 1);
    renamed.keys.insert(Digest::of(b"alias"), key(1).public());
    // Its successor would need as many signatures of the old keys and as many of new ones, more than an envelope holds.
    let seventeen: Vec<u8> = (1..=17).collect();
    let stuck = root(1, &seventeen, 17);
    let mut crowded = root(1, &[1], 1);
    crowded.keys.extend((0..=255).map(|seed| (key(seed).public().id(), key(seed).public())));
    for bad in [lacking, too_many, zero, renamed, stuck, crowded] {
        let envelope = sign(DocumentKind::Root, &bad, &seventeen);
        assert!(matches!(TrustedRoot::first(envelope, None), Err(TrustError::RootContent(_))));
    }
}

#[test]
fn each_role_signs_its_own_documents_only() {
    let trusted = TrustedRoot::first(sign(DocumentKind::Root, &root(1, &[1], 1), &[1]), None).unwrap();
    let good = sign(DocumentKind::Assignment, &assignment(500), &[30]);
    assert_eq!(trusted.verify_assignment(&good, &device(), 499).unwrap().generation, 1);
    for wrong in [1, 20] {
        let forged = sign(DocumentKind::Assignment, &assignment(500), &[wrong]);
        assert!(matches!(trusted.verify_assignment(&forged, &device(), 0), Err(TrustError::Threshold { .. })));
    }
    assert!(matches!(
        trusted.verify_assignment(&good, &device(), 500),
        Err(TrustError::Expired { kind: "assignment", expires_ms: 500, now_ms: 500 })
    ));
    let other = DeviceId::new("dev-2").unwrap();
    assert!(matches!(trusted.verify_assignment(&good, &other, 0), Err(TrustError::Device { .. })));
    assert!(matches!(trusted.verify_manifest(&good, 0), Err(TrustError::PayloadType { .. })));
    let not_a_manifest = sign(DocumentKind::Manifest, &"x", &[20]);
    assert!(matches!(trusted.verify_manifest(&not_a_manifest, 0), Err(TrustError::Payload { .. })));
    assert!(trusted.check_date(999).is_ok());
    assert!(trusted.check_date(1_000).is_err());
}

fn manifest(expires_ms: u64) -> Manifest {
    let tensor = |name: &str| TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: vec![-1, 4] };
    Manifest {
        name: BundleName::new("digits").unwrap(),
        version: semver::Version::new(1, 0, 0),
        description: String::new(),
        release_counter: 1,
        security_floor: 0,
        created_at_ms: 0,
        expires_ms,
        requirements: Requirements::default(),
        budgets: Budgets::default(),
        files: vec![BundleFile::describe(MODEL_PATH, b"onnx"), BundleFile::describe(GOLDEN_PATH, b"{}")],
        signature: ModelSignature { inputs: vec![tensor("in")], outputs: vec![tensor("out")] },
        pipeline: None,
        schema: None,
        profile: Profile::default(),
        lineage: Lineage::default(),
        card: None,
        program: None,
    }
}

/// `payload` as a document of `kind`, signed by the keys of `seeds` whether or not it makes sense.
fn sign_bytes(kind: DocumentKind, payload: &[u8], seeds: &[u8]) -> Envelope {
    let mut envelope = Envelope::unsigned(kind, payload);
    for seed in seeds {
        envelope.add_signature(&key(*seed)).unwrap();
    }
    envelope
}

fn trusted(root_seeds: &[u8], threshold: u32) -> TrustedRoot {
    TrustedRoot::first(sign(DocumentKind::Root, &root(1, root_seeds, threshold), root_seeds), None).unwrap()
}

/// How many keys of `role` are among those of `seeds`, counted without the code under test.
fn signers(root: &Root, role: Role, seeds: &[u8]) -> usize {
    let ids = &root.roles[&role].key_ids;
    seeds.iter().filter(|seed| ids.contains(&Digest::of(key(**seed).public().as_bytes()))).count()
}

/// Seeds of some root keys, of the release key, of the director key, and of strangers.
const SEEDS: [u8; 8] = [1, 2, 3, 4, 20, 30, 40, 50];

fn some_seeds() -> impl Strategy<Value = Vec<u8>> {
    subsequence(SEEDS.to_vec(), 0..=SEEDS.len())
}

fn root_seeds() -> impl Strategy<Value = Vec<u8>> {
    subsequence(vec![1, 2, 3, 4], 1..=3)
}

/// What holds of every root that is accepted, whoever made it.
fn check_root(root: &Root, signed_by: &[u8]) -> Result<(), TestCaseError> {
    prop_assert_eq!(root.validate(), Ok(()));
    prop_assert!(root.version >= 1);
    for role in [Role::Root, Role::Release, Role::Director] {
        let keys = &root.roles[&role];
        prop_assert!(keys.threshold >= 1 && keys.threshold as usize <= keys.key_ids.len());
        for id in &keys.key_ids {
            prop_assert_eq!(&Digest::of(root.keys[id].as_bytes()), id);
        }
    }
    prop_assert!(signers(root, Role::Root, signed_by) >= root.roles[&Role::Root].threshold as usize);
    Ok(())
}

fn any_envelope() -> impl Strategy<Value = Envelope> {
    let kind = prop::sample::select(vec![DocumentKind::Root, DocumentKind::Manifest, DocumentKind::Assignment]);
    let signature = (".{0,5}", "[A-Za-z0-9+/=_-]{0,90}").prop_map(|(keyid, sig)| Signature { keyid, sig });
    (kind, prop_oneof!["[A-Za-z0-9+/]{0,40}", ".{0,20}"], prop::collection::vec(signature, 0..3))
        .prop_map(|(kind, payload, signatures)| Envelope { payload, payload_type: kind.payload_type(), signatures })
}

proptest! {
    #[test]
    fn an_envelope_from_nowhere_is_never_trusted(envelope in any_envelope()) {
        let trusted = trusted(&[1, 2], 1);
        prop_assert!(TrustedRoot::first(envelope.clone(), None).is_err());
        prop_assert!(trusted.next(envelope.clone()).is_err());
        prop_assert!(trusted.verify_manifest(&envelope, 0).is_err());
        prop_assert!(trusted.verify_undated_manifest(&envelope, Track::Model).is_err());
        prop_assert!(trusted.verify_assignment(&envelope, &device(), 0).is_err());
    }

    #[test]
    fn a_first_root_is_signed_by_enough_of_its_own_keys(keys in root_seeds(), threshold in 0..4u32, signed_by in some_seeds()) {
        let root = root(1, &keys, threshold);
        let enough = threshold > 0 && signers(&root, Role::Root, &signed_by) >= threshold as usize;
        let first = TrustedRoot::first(sign(DocumentKind::Root, &root, &signed_by), None);
        prop_assert_eq!(first.is_ok(), enough, "{:?}", first);
    }

    #[test]
    fn a_chain_goes_on_by_one_version_under_both_thresholds(
        (old_keys, old_threshold) in root_seeds().prop_flat_map(|keys| { let most = keys.len(); (Just(keys), 1..=most) }),
        new_keys in root_seeds(),
        new_threshold in 0..4u32,
        version in prop_oneof![3 => Just(2u64), 1 => 0..5u64, 1 => any::<u64>()],
        signed_by in prop_oneof![some_seeds(), Just(SEEDS.to_vec())],
    ) {
        let old = trusted(&old_keys, u32::try_from(old_threshold).unwrap());
        let new = root(version, &new_keys, new_threshold);
        let taken = old.next(sign(DocumentKind::Root, &new, &signed_by));
        let allowed = version == 2
            && (1..=new_keys.len()).contains(&(new_threshold as usize))
            && signers(old.root(), Role::Root, &signed_by) >= old_threshold
            && signers(&new, Role::Root, &signed_by) >= new_threshold as usize;
        prop_assert_eq!(taken.is_ok(), allowed, "{:?}", taken);
        if let Ok(taken) = taken {
            check_root(taken.root(), &signed_by)?;
        }
    }

    #[test]
    fn a_damaged_root_is_refused_or_in_order(
        json in damage::json(serde_json::to_value(root(1, &[1, 2, 3], 2)).unwrap()),
        next in damage::json(serde_json::to_value(root(2, &[2, 3, 4], 2)).unwrap()),
        bytes in damage::bytes(serde_json::to_vec(&root(1, &[1, 2, 3], 2)).unwrap()),
    ) {
        let signed_by = [1, 2, 3, 4];
        let trusted = trusted(&[1, 2], 2);
        for payload in [json.to_string().into_bytes(), next.to_string().into_bytes(), bytes] {
            let envelope = sign_bytes(DocumentKind::Root, &payload, &signed_by);
            if let Ok(first) = TrustedRoot::first(envelope.clone(), None) {
                check_root(first.root(), &signed_by)?;
            }
            if let Ok(next) = trusted.next(envelope) {
                check_root(next.root(), &signed_by)?;
                prop_assert_eq!(next.root().version, 2);
            }
        }
    }

    #[test]
    fn keys_sign_for_their_role_until_the_date(
        release in subsequence(vec![20, 21, 22], 1..=3),
        threshold in 1..4u32,
        signed_by in subsequence(vec![1, 20, 21, 22, 30, 40], 0..=6),
        now_ms in 0..1_000u64,
    ) {
        let mut root = root(1, &[1], 1);
        root.keys.extend(release.iter().map(|seed| (key(*seed).public().id(), key(*seed).public())));
        root.roles.insert(Role::Release, role(&release, threshold));
        if threshold as usize > release.len() {
            prop_assert!(TrustedRoot::first(sign(DocumentKind::Root, &root, &[1]), None).is_err());
            return Ok(());
        }
        let trusted = TrustedRoot::first(sign(DocumentKind::Root, &root, &[1]), None).unwrap();

        let enough = signers(&root, Role::Release, &signed_by) >= threshold as usize;
        let signed = sign(DocumentKind::Manifest, &manifest(500), &signed_by);
        prop_assert_eq!(trusted.verify_undated_manifest(&signed, Track::Model).is_ok(), enough);
        prop_assert_eq!(trusted.verify_manifest(&signed, now_ms).is_ok(), enough && now_ms < 500);

        let signed = sign(DocumentKind::Assignment, &assignment(500), &signed_by);
        let directed = signed_by.contains(&30);
        prop_assert_eq!(trusted.verify_assignment(&signed, &device(), now_ms).is_ok(), directed && now_ms < 500);
        prop_assert!(trusted.verify_assignment(&signed, &DeviceId::new("dev-2").unwrap(), now_ms).is_err());
    }

    #[test]
    fn damaged_documents_under_good_signatures_are_refused_or_valid(
        described in damage::json(serde_json::to_value(manifest(500)).unwrap()),
        assigned in damage::json(serde_json::to_value(assignment(500)).unwrap()),
        bytes in damage::bytes(serde_json::to_vec(&assignment(500)).unwrap()),
    ) {
        let trusted = trusted(&[1], 1);
        let payload = described.to_string().into_bytes();
        if let Ok(verified) = trusted.verify_manifest(&sign_bytes(DocumentKind::Manifest, &payload, &[20]), 100) {
            prop_assert_eq!(verified.manifest.validate(), Ok(()));
            prop_assert!(verified.digest == Digest::of(&payload) && verified.manifest.expires_ms > 100);
        }
        for payload in [assigned.to_string().into_bytes(), bytes] {
            let envelope = sign_bytes(DocumentKind::Assignment, &payload, &[30]);
            if let Ok(assignment) = trusted.verify_assignment(&envelope, &device(), 100) {
                prop_assert!(assignment.device == device() && assignment.expires_ms > 100);
            }
        }
    }
}

#[test]
fn the_directors_epoch_begins_with_the_document_that_takes_a_key_away() {
    let by = |version: u64, director: &[u8]| {
        let mut root = root(version, &[1], 1);
        root.keys.extend(director.iter().map(|s| (key(*s).public().id(), key(*s).public())));
        root.roles.insert(Role::Director, role(director, 1));
        sign(DocumentKind::Root, &root, &[1])
    };
    let mut trusted = TrustedRoot::first(by(1, &[30]), None).unwrap();
    let mut epochs = vec![trusted.director_epoch()];
    for (version, director) in [(2, &[30][..]), (3, &[30, 31]), (4, &[31]), (5, &[31]), (6, &[30, 31]), (7, &[30])] {
        trusted = trusted.next(by(version, director)).unwrap();
        epochs.push(trusted.director_epoch());
    }
    assert_eq!(epochs, [1, 1, 1, 4, 4, 4, 7]);
}

#[test]
fn an_assignment_says_which_track_it_is_about_and_one_of_the_model_reads_as_it_always_did() {
    let trusted = TrustedRoot::first(sign(DocumentKind::Root, &root(1, &[1, 2], 1), &[1, 2]), None).unwrap();
    let with = |assignment: Assignment| {
        let envelope = sign(DocumentKind::Assignment, &assignment, &[30]);
        let text = String::from_utf8(envelope.payload_bytes().unwrap()).unwrap();
        (trusted.verify_assignment(&envelope, &device(), 1).map(|assignment| assignment.track), text)
    };
    let (track, text) = with(assignment(10));
    assert!(track == Ok(Track::Model) && !text.contains("track"), "{text}");
    let of_program = Assignment { track: Track::Program, ..assignment(10) };
    let (track, text) = with(of_program.clone());
    assert!(track == Ok(Track::Program) && text.contains(r#""track":"program""#), "{text}");
    for wrong in [
        Assignment { stage: Stage::Shadow { share_bp: 1 }, ..of_program.clone() },
        Assignment { activation: Activation::Hold, ..of_program },
    ] {
        assert!(matches!(with(wrong).0, Err(TrustError::Payload { .. })));
    }
}

#[test]
fn a_program_is_never_taken_for_a_model_nor_a_model_for_a_program() {
    let trusted = TrustedRoot::first(sign(DocumentKind::Root, &root(1, &[1, 2], 1), &[1, 2]), None).unwrap();
    let model = manifest(10);
    let mut program = model.clone();
    program.files = vec![BundleFile::describe(crate::bundle::PROGRAM_PATH, b"program")];
    (program.signature.inputs, program.signature.outputs) = (vec![], vec![]);
    program.profile = Default::default();
    program.pipeline = None;
    program.requirements.architectures = ["x86_64".to_owned()].into();
    let takes_over_from = program.version.clone();
    program.program = Some(crate::bundle::Program { target: "x86_64-unknown-linux-gnu".into(), takes_over_from });
    for (manifest, is, is_not) in [(model, Track::Model, Track::Program), (program, Track::Program, Track::Model)] {
        let envelope = sign(DocumentKind::Manifest, &manifest, &[20]);
        trusted.verify_undated_manifest(&envelope, is).unwrap();
        let error = trusted.verify_undated_manifest(&envelope, is_not).unwrap_err();
        assert!(matches!(error, TrustError::Track { .. }), "{error}");
        assert_eq!(trusted.verify_manifest(&envelope, 1).is_ok(), is == Track::Model);
    }
}

#[test]
fn an_assignment_says_in_which_part_a_bundle_runs_and_one_to_serve_reads_as_it_always_did() {
    let trusted = TrustedRoot::first(sign(DocumentKind::Root, &root(1, &[1, 2], 1), &[1, 2]), None).unwrap();
    let with = |stage: Stage| {
        let envelope = sign(DocumentKind::Assignment, &Assignment { stage, ..assignment(10) }, &[30]);
        let text = String::from_utf8(envelope.payload_bytes().unwrap()).unwrap();
        (trusted.verify_assignment(&envelope, &device(), 1).map(|assignment| assignment.stage), text)
    };
    let (read, text) = with(Stage::Serve);
    assert_eq!(read, Ok(Stage::Serve));
    assert!(!text.contains("stage"), "{text}");
    let shadow = Stage::Shadow { share_bp: 2_000 };
    assert_eq!(with(shadow.clone()).0, Ok(shadow));
    for wrong in [Stage::Shadow { share_bp: 0 }, Stage::Split { share_bp: 10_000, experiment: "x".into() }] {
        assert!(matches!(with(wrong).0, Err(TrustError::Payload { .. })));
    }
}
