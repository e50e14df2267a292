//! The key that signs assignments is replaced, after a thief of the old one has claimed all there is to claim.

use muster_shared::messages::FreezeProtection;
use muster_shared::trust::{Role, RoleKeys, Root, SigningKey};
use zeroize::Zeroizing;

use super::*;

/// The end of the first root document in these tests.
fn ends_ms() -> u64 {
    wall_ms() + 365 * 86_400_000
}

fn successor() -> SigningKey {
    SigningKey::from_seed(&Zeroizing::new([77; 32]))
}

/// A root document in which [`signer`] signs everything but assignments, which `director` signs.
fn root_with(version: u64, director: &SigningKey) -> Envelope {
    let keys = [signer().public(), director.public()];
    let role = |role, key: &SigningKey| (role, RoleKeys { key_ids: [key.public().id()].into(), threshold: 1 });
    let root = Root {
        version,
        expires_ms: ends_ms(),
        keys: keys.into_iter().map(|key| (key.id(), key)).collect(),
        roles: [role(Role::Root, &signer()), role(Role::Release, &signer()), role(Role::Director, director)].into(),
    };
    sign_document(DocumentKind::Root, &root, [&signer()]).unwrap()
}

fn delivered_by(director: &SigningKey, generation: u64, bundle: &Bundle, issued_at_ms: u64) -> Vec<u8> {
    let assignment = Assignment {
        device: device(),
        rollout: "r1".parse().unwrap(),
        manifest: Some(bundle.digest),
        generation,
        issued_at_ms,
        expires_ms: u64::MAX,
        watch: WatchPolicy { probation_ms: 0, max_error_rate: 0.2, min_requests: 5 },
        delivery: DeliveryPolicy::default(),
        stage: Stage::Serve,
        activation: Activation::AtOnce,
        track: Default::default(),
    };
    let assignment = sign_document(DocumentKind::Assignment, &assignment, [director]).unwrap();
    serde_json::to_vec(&AssignmentDelivery { assignment, manifest: Some(bundle.envelope.clone()) }).unwrap()
}

fn roots(envelope: Envelope) -> Vec<u8> {
    serde_json::to_vec(&muster_shared::messages::RootDelivery { roots: vec![envelope] }).unwrap()
}

#[test]
fn what_a_thief_of_the_director_key_claimed_counts_no_more_once_it_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (good("1.0.0"), good("1.1.0"));
    let mut rig = Rig::start(folder.path());
    rig.assign(3, Some(&old));
    rig.until_state(UpdateState::Committed, 3, Some(&old));
    // The thief names the last generation there is and a date at the end of the root document's life.
    rig.tell(Down::Assignment, delivered_by(&signer(), u64::MAX, &new, u64::MAX));
    let state = rig.until_state(UpdateState::Committed, u64::MAX, Some(&new));
    assert_eq!((state.generation, state.freeze_protection), (u64::MAX, FreezeProtection::Degraded));
    rig.assign(4, Some(&old));
    rig.until("the device takes nothing any more", None, |rig| {
        rig.has_event(DeviceEventKind::Refused, "has accepted 18446744073709551615 already")
            || rig.has_event(DeviceEventKind::Refused, "expired")
    });

    rig.tell(Down::Root, roots(root_with(2, &successor())));
    rig.until("it has accepted nothing from those it trusts now", None, |rig| {
        rig.state()
            .is_some_and(|s| s.awaits_director && (s.root_version, s.freeze_protection) == (2, FreezeProtection::Full))
    });
    assert_eq!(rig.serving(), Some(new.digest));
    rig.tell(Down::Assignment, delivered_by(&signer(), u64::MAX, &new, 1));
    rig.until("the thief is refused", None, |rig| {
        rig.has_event(DeviceEventKind::Refused, "0 of 1 required signatures")
    });
    // A crash before anything else was taken changes nothing of that.
    rig.stop();
    let mut rig = Rig::start(folder.path());
    let now_ms = wall_ms();
    rig.tell(Down::Assignment, delivered_by(&successor(), 4, &old, now_ms));
    let state = rig.until_state(UpdateState::Committed, 4, Some(&old));
    assert_eq!((state.generation, state.awaits_director, rig.serving()), (4, false, Some(old.digest)));
    rig.stop();

    // From here on generations grow again, also when the record is lost.
    for damage in [false, true] {
        if damage {
            fs::write(folder.path().join("slots/record.json"), "rubbish").unwrap();
        }
        let mut rig = Rig::start(folder.path());
        rig.tell(Down::Assignment, delivered_by(&successor(), 3, &new, now_ms));
        rig.until("the older one is refused", None, |rig| {
            rig.has_event(DeviceEventKind::Refused, "assignment of generation 3")
        });
        rig.stop();
    }
}
