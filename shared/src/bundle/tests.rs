use std::path::{Component, Path};

use proptest::prelude::*;

use super::*;
use crate::damage;
use crate::profile::{Column, Reference, SliceBy, Slicing, Source};

fn tensor(name: &str) -> TensorSpec {
    TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: vec![-1, 4] }
}

fn manifest() -> Manifest {
    Manifest {
        name: BundleName::new("digits").unwrap(),
        version: semver::Version::new(1, 0, 0),
        description: String::new(),
        release_counter: 1,
        security_floor: 0,
        created_at_ms: 0,
        expires_ms: 1,
        requirements: Requirements::default(),
        budgets: Budgets::default(),
        files: vec![
            BundleFile::describe(MODEL_PATH, &vec![7; CHUNK_BYTES + 1]),
            BundleFile::describe(GOLDEN_PATH, b"{}"),
        ],
        signature: ModelSignature { inputs: vec![tensor("in")], outputs: vec![tensor("out")] },
        pipeline: None,
        schema: None,
        profile: Profile::default(),
        lineage: Lineage::default(),
        card: None,
        program: None,
    }
}

#[test]
fn a_good_manifest_is_valid_and_numbers_its_chunks() {
    let manifest = manifest();
    manifest.validate().unwrap();
    let chunks: Vec<_> = manifest.chunks().map(|(f, at, c)| (f.path.clone(), at, c.length)).collect();
    assert_eq!(chunks, [(MODEL_PATH.into(), 0, 65_536), (MODEL_PATH.into(), 65_536, 1), (GOLDEN_PATH.into(), 0, 2)]);
    assert_eq!((manifest.chunk_count(), manifest.total_bytes()), (3, 65_539));
}

#[test]
fn paths_that_leave_the_folder_are_refused() {
    for bad in ["/etc/passwd", "../x", "a/../b", "a//b", "", ".", "a/.", ".hidden", "a\\b", "c:x", "a/", "é", "a\0b"] {
        let mut m = manifest();
        m.files.push(BundleFile::describe(bad, b"x"));
        assert_eq!(m.validate(), Err(ManifestError::Path(bad.into())), "{bad:?}");
    }
}

#[test]
fn collisions_and_wrong_sums_are_refused() {
    for twin in ["MODEL.onnx", "model.onnx/inside", MODEL_PATH] {
        let mut m = manifest();
        m.files.push(BundleFile::describe(twin, b"x"));
        assert!(matches!(m.validate(), Err(ManifestError::Collision(_))), "{twin}");
    }
    let mut m = manifest();
    m.files[0].length += 1;
    assert!(matches!(m.validate(), Err(ManifestError::Chunks(_))));
    let mut m = manifest();
    m.files.remove(1);
    assert_eq!(m.validate(), Err(ManifestError::Missing(GOLDEN_PATH)));
    let mut m = manifest();
    m.security_floor = 2;
    assert!(matches!(m.validate(), Err(ManifestError::Floor { floor: 2, counter: 1 })));
}

/// [`manifest`] with something in every field.
fn full_manifest() -> serde_json::Value {
    let column = |name: &str, source, reference| Column { name: name.into(), source, reference };
    let input = Source::Input { tensor: "in".into(), index: 0 };
    let numeric = Reference::Numeric { lower_edges: vec![0.0, 0.5, 2.0], max: 3.0, counts: vec![4, 5, 6], missing: 1 };
    let class = Reference::Class { classes: vec!["a".into(), "b".into()], counts: vec![7, 9] };
    let mut full = manifest();
    full.requirements.architectures = ["x86_64".to_owned()].into();
    full.requirements.min_agent_version = Some(semver::Version::new(0, 1, 0));
    full.requirements.cpu_features = ["asimddp".to_owned()].into();
    full.budgets = Budgets { max_latency_ms: Some(5), max_memory_bytes: Some(1 << 20) };
    full.files.push(BundleFile::describe("labels/en.txt", b"zero one"));
    full.profile.columns =
        vec![column("x", input, numeric), column("class", Source::PredictedClass { tensor: "out".into() }, class)];
    full.profile.slices = vec![
        Slicing { name: "x".into(), by: SliceBy::Range { tensor: "in".into(), index: 0, edges: vec![1.0] } },
        Slicing { name: "site".into(), by: SliceBy::Label { label: "site".into() } },
    ];
    full.lineage.dataset_sha256 = Some(Digest::of(b"data"));
    full.lineage.metrics = [("accuracy".to_owned(), 0.9)].into();
    full.validate().unwrap();
    serde_json::to_value(full).unwrap()
}

/// What whoever acts upon a valid manifest relies on.
fn check_valid(manifest: &Manifest) -> Result<(), TestCaseError> {
    prop_assert!(manifest.files.len() <= MAX_FILES && manifest.chunk_count() as usize <= MAX_CHUNKS);
    prop_assert!(manifest.files.iter().all(|file| is_safe_path(&file.path)));
    let names: BTreeSet<_> = manifest.files.iter().map(|file| file.path.to_ascii_lowercase()).collect();
    prop_assert_eq!(names.len(), manifest.files.len());
    for name in &names {
        let mut parents = Path::new(name).ancestors().skip(1);
        prop_assert!(!parents.any(|parent| names.contains(parent.to_str().unwrap())), "{} lies in a file", name);
    }
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    for (file, start, chunk) in manifest.chunks() {
        prop_assert_eq!(start, ends.get(file.path.as_str()).copied().unwrap_or(0));
        prop_assert!((1..=CHUNK_BYTES).contains(&(chunk.length as usize)));
        ends.insert(&file.path, start + u64::from(chunk.length));
    }
    for file in &manifest.files {
        prop_assert_eq!(ends.get(file.path.as_str()).copied().unwrap_or(0), file.length);
    }
    prop_assert_eq!(manifest.total_bytes(), ends.values().sum::<u64>());
    prop_assert!(manifest.file(MODEL_PATH).is_some() && manifest.file(GOLDEN_PATH).is_some());
    prop_assert!(manifest.security_floor <= manifest.release_counter);
    prop_assert_eq!(manifest.profile.validate(), Ok(()));
    Ok(())
}

proptest! {
    #[test]
    fn any_json_is_a_manifest_or_refused(text in ".{0,200}") {
        if let Ok(manifest) = serde_json::from_str::<Manifest>(&text) {
            let _ = manifest.validate();
        }
    }

    #[test]
    fn a_manifest_with_damaged_bytes_is_refused_or_valid(json in damage::bytes(full_manifest().to_string().into_bytes())) {
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(&json) && manifest.validate().is_ok() {
            check_valid(&manifest)?;
        }
    }

    #[test]
    fn a_manifest_with_damaged_fields_is_refused_or_valid(json in damage::json(full_manifest())) {
        if let Ok(manifest) = serde_json::from_value::<Manifest>(json) && manifest.validate().is_ok() {
            check_valid(&manifest)?;
        }
    }

    #[test]
    fn damaged_lists_of_files_are_refused_or_valid(files in damage::json(full_manifest()["files"].clone())) {
        if let Ok(files) = serde_json::from_value::<Vec<BundleFile>>(files) {
            let damaged = Manifest { files, ..manifest() };
            if damaged.validate().is_ok() {
                check_valid(&damaged)?;
            }
        }
    }

    #[test]
    fn a_safe_path_stays_below_whatever_it_is_joined_to(
        path in prop_oneof!["[aA0._/\\\\: -]{0,12}", "([a-z.]{1,3}/){0,3}[a-z.]{1,3}", ".{0,20}"],
        base in prop::sample::select(vec!["", "/", ".", "..", "/var/lib/muster/files", "a/.."]),
    ) {
        if is_safe_path(&path) {
            let joined = Path::new(base).join(&path);
            prop_assert!(joined.starts_with(base));
            let below: Vec<_> = joined.components().skip(Path::new(base).components().count()).collect();
            prop_assert_eq!(below.len(), path.split('/').count());
            prop_assert!(below.iter().all(|part| matches!(part, Component::Normal(_))));
        } else {
            // Refused for a reason: what has none of them is safe.
            let harmless = path.split('/').all(|part| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase())
            });
            prop_assert!(!harmless || path.len() > MAX_PATH_BYTES);
        }
    }
}

/// A bundle with an agent program, as small as it can be.
fn program() -> Manifest {
    Manifest {
        name: BundleName::new("muster-agent-aarch64").unwrap(),
        version: semver::Version::new(0, 2, 0),
        files: vec![BundleFile::describe(PROGRAM_PATH, b"\x7fELF")],
        requirements: Requirements { architectures: ["aarch64".to_owned()].into(), ..Requirements::default() },
        signature: ModelSignature { inputs: vec![], outputs: vec![] },
        program: Some(Program {
            target: "aarch64-unknown-linux-gnu".into(),
            takes_over_from: semver::Version::new(0, 1, 0),
        }),
        ..manifest()
    }
}

#[test]
fn a_bundle_brings_a_model_or_a_program_and_never_both() {
    program().validate().unwrap();
    let spoilt = |spoil: fn(&mut Manifest)| {
        let mut spoilt = program();
        spoil(&mut spoilt);
        spoilt.validate().unwrap_err().to_string()
    };
    for (spoil, says) in [
        ((|m| m.program = None) as fn(&mut Manifest), "the bundle has no model.onnx"),
        (|m| m.files = manifest().files, "the bundle has no muster-agent"),
        (|m| m.files.extend(manifest().files), "it is one file"),
        (|m| m.files[0] = BundleFile::describe(PROGRAM_PATH, b""), "the bundle has no muster-agent"),
        (|m| m.signature = manifest().signature, "is a model's"),
        (|m| m.budgets.max_latency_ms = Some(1), "is a model's"),
        (|m| m.requirements.architectures.clear(), "exactly one architecture"),
        (|m| m.program.as_mut().unwrap().target = "a b".into(), "its target"),
        (|m| m.program.as_mut().unwrap().takes_over_from.major = 1, "take over from itself"),
    ] {
        let text = spoilt(spoil);
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn a_models_manifest_is_written_as_it_was_before_there_were_programs() {
    let written = serde_json::to_value(manifest()).unwrap();
    assert!(written.get("program").is_none());
    let mut read = written;
    read["program"] = serde_json::json!({"target": "x", "takes_over_from": "0.1.0", "more": 1});
    assert!(serde_json::from_value::<Manifest>(read).is_err(), "what is not known is refused");
}
