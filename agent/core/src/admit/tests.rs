//! What is taken, refused, and why.

use muster_shared::chunk::ChunkSet;
use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::trust::{Activation, DeliveryPolicy, Stage, WatchPolicy};

use super::*;
use crate::record::Phase;
use crate::slots::{Pointer, SlotContent};

fn offer(generation: u64) -> Offer {
    let digest = Digest::of(b"m");
    Offer {
        assignment: Assignment {
            device: DeviceId::new("dev-1").unwrap(),
            rollout: RolloutId::new("r1").unwrap(),
            manifest: Some(digest),
            generation,
            issued_at_ms: 0,
            expires_ms: 1_000,
            watch: WatchPolicy::default(),
            delivery: DeliveryPolicy::default(),
            stage: Stage::Serve,
            activation: Activation::AtOnce,
            track: Default::default(),
        },
        manifest: Some(OfferedManifest {
            digest,
            bundle: "digits@1.0.0".parse().unwrap(),
            release_counter: 5,
            security_floor: 0,
            expires_ms: 1_000,
            requirements: Requirements {
                architectures: ["aarch64".to_owned()].into(),
                min_memory_bytes: 100,
                min_agent_version: Some(semver::Version::new(0, 1, 0)),
                cpu_features: ["asimddp".to_owned(), "i8mm".to_owned()].into(),
                attributes: Some("soc=bcm2711,temperature-c<=70".parse().unwrap()),
            },
            chunks: 1,
            total_bytes: 50,
            model_bytes: 40,
            needed_memory_bytes: 60,
        }),
        director_epoch: 1,
        device: DeviceFacts {
            arch: "aarch64".to_owned(),
            memory_bytes: 100,
            memory_allowed_bytes: Some(40),
            memory_available_bytes: Some(0),
            cpu_features: ["asimd", "asimddp", "i8mm"].into(),
            attributes: [("soc", "bcm2711"), ("temperature-c", "70")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            agent_version: semver::Version::new(0, 1, 0),
            disk_free_bytes: 50 + DISK_RESERVE_BYTES,
            disk_allowed_bytes: 50,
            now_ms: 999,
        },
    }
}

fn refused_as(change: impl Fn(&mut Offer)) -> String {
    let mut changed = offer(2);
    change(&mut changed);
    match admit(&Record { security_floor: 5, ..Record::default() }, &changed) {
        Ok(Admission::Unsuitable(why)) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_requirement_has_its_own_words() {
    assert_eq!(admit(&Record { security_floor: 5, ..Record::default() }, &offer(1)), Ok(Admission::Accept));
    let cases: [(String, &str); 12] = [
        (refused_as(|o| o.manifest.as_mut().unwrap().release_counter = 4), "security floor 5"),
        (refused_as(|o| o.device.now_ms = 1_000), "expired at 1000 ms"),
        (refused_as(|o| o.device.arch = "armv7".into()), "for aarch64, this device is armv7"),
        (refused_as(|o| o.device.memory_bytes = 99), "100 bytes of memory"),
        (
            refused_as(|o| o.device.memory_allowed_bytes = Some(39)),
            "takes 40 bytes of memory at least, this service may have 39",
        ),
        (refused_as(|o| o.device.cpu_features = ["asimddp"].into()), "needs a processor with i8mm, which"),
        (refused_as(|o| o.device.cpu_features.clear()), "needs a processor with asimddp, i8mm, which"),
        (
            refused_as(|o| drop(o.device.attributes.insert("temperature-c".into(), "71".into()))),
            "digits@1.0.0 needs a device with temperature-c<=70 (it is 71)",
        ),
        (
            refused_as(|o| o.device.attributes.clear()),
            "with soc=bcm2711 (it is not known), temperature-c<=70 (it is not known)",
        ),
        (refused_as(|o| o.device.agent_version = semver::Version::new(0, 0, 9)), "muster-agent 0.1.0 or later"),
        (refused_as(|o| o.device.disk_free_bytes -= 1), "8388658 bytes of disk with reserve, 8388657 are free"),
        (refused_as(|o| o.device.disk_allowed_bytes -= 1), "50 bytes of disk beside the 0 of the bundle in use"),
    ];
    for (text, expected) in cases {
        assert!(text.contains(expected), "{text:?} does not say {expected:?}");
    }
}

fn content(name: &[u8], total_bytes: u64) -> SlotContent {
    SlotContent {
        manifest: Digest::of(name),
        bundle: "digits@0.9.0".parse().unwrap(),
        release_counter: 5,
        security_floor: 0,
        total_bytes,
        have: ChunkSet::empty(0),
        never_served: false,
    }
}

#[test]
fn where_nothing_is_committed_nothing_stays() {
    let mut record = Record::default();
    record.slots.set(Slot::A, Some(content(b"failed", 40)));
    let mut offered = offer(2);
    assert_eq!(admit(&record, &offered), Ok(Admission::Accept));
    let needs_both = |record: &Record, offered: &Offer| {
        needs_both_slots(record, offered.manifest.as_ref().unwrap(), &offered.device)
    };
    assert!(needs_both(&record, &offered), "the quota is one bundle");
    offered.device.disk_allowed_bytes = 90;
    assert!(!needs_both(&record, &offered), "it may be a base for the next");
    offered.device.disk_free_bytes -= 40;
    assert_eq!(admit(&record, &offered), Ok(Admission::Accept));
    assert!(needs_both(&record, &offered), "the disk is full");
    offered.device.disk_free_bytes -= 1;
    assert!(matches!(admit(&record, &offered), Ok(Admission::Unsuitable(Unsuitable::DiskSpace { .. }))));
    record.committed = Some(Pointer { slot: Slot::A, generation: 1 });
    assert!(!needs_both(&record, &offered), "what is committed stays");
}

#[test]
fn a_quota_counts_the_bundle_that_stays_and_not_the_one_that_goes() {
    let mut record = Record { committed: Some(Pointer { slot: Slot::A, generation: 1 }), ..Record::default() };
    record.slots.set(Slot::A, Some(content(b"in use", 30)));
    record.slots.set(Slot::B, Some(content(b"before", 1_000)));
    let mut offered = offer(2);
    offered.device.disk_allowed_bytes = 80;
    assert_eq!(admit(&record, &offered), Ok(Admission::Accept));
    offered.device.disk_allowed_bytes = 79;
    let Ok(Admission::Unsuitable(why)) = admit(&record, &offered) else { panic!("it is taken") };
    let expected = "digits@1.0.0 needs 50 bytes of disk beside the 30 of the bundle in use, storage.max-bytes allows 79 in all \
                    (8389658 are free)";
    assert_eq!(why.to_string(), expected);
    // What is there already needs no more.
    record.slots.set(Slot::B, Some(content(b"m", 50)));
    assert_eq!(admit(&record, &offered), Ok(Admission::Accept));
}

#[test]
fn a_second_model_is_fetched_only_where_there_is_memory_for_it_beside_the_first() {
    let mut record = Record { security_floor: 5, ..Record::default() };
    let mut offered = offer(2);
    offered.assignment.stage = Stage::Shadow { share_bp: 1_000 };
    for (available, fits) in [(None, true), (Some(60), true), (Some(59), false), (Some(0), false)] {
        offered.device.memory_available_bytes = available;
        let refused = match admit(&record, &offered) {
            Ok(Admission::Accept) => None,
            Ok(Admission::Unsuitable(why)) => Some(why.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused.is_none(), fits, "{available:?}");
        let said = refused.is_none_or(|why| why.contains("needs 60 bytes of memory beside the bundle in service, "));
        assert!(said, "{available:?}");
    }
    // What is there already needs no more.
    record.slots.set(Slot::B, Some(content(b"m", 50)));
    assert_eq!(admit(&record, &offered), Ok(Admission::Accept));
}

/// An update to what [`offer`] brings that has ended well.
fn done(generation: u64) -> Update {
    Update {
        generation,
        rollout: RolloutId::new("r1").unwrap(),
        manifest: Some(Digest::of(b"m")),
        bundle: None,
        watch: WatchPolicy::default(),
        delivery: DeliveryPolicy::default(),
        stage: Stage::Serve,
        activation: Activation::AtOnce,
        phase: Phase::Committed,
    }
}

#[test]
fn old_changed_and_mismatched_assignments_are_refused() {
    let record = Record { generation: 3, update: Some(done(3)), ..Record::default() };
    assert_eq!(admit(&record, &offer(2)), Err(Refusal::OldGeneration { offered: 2, accepted: 3 }));
    assert_eq!(admit(&record, &offer(3)), Ok(Admission::Refresh));
    let mut changed = offer(3);
    changed.assignment.manifest = None;
    changed.manifest = None;
    assert_eq!(admit(&record, &changed), Err(Refusal::ChangedGeneration { generation: 3 }));
    let waits = |activation| Update { activation, ..done(3) };
    let holds = Record { update: Some(waits(Activation::Hold)), ..record.clone() };
    assert_eq!(admit(&holds, &offer(3)), Err(Refusal::ChangedGeneration { generation: 3 }));
    let mut at = offer(3);
    at.assignment.activation = Activation::At { at_ms: 9 };
    assert_eq!(admit(&holds, &at), Err(Refusal::ChangedGeneration { generation: 3 }));
    let due = Record { update: Some(waits(at.assignment.activation)), ..record.clone() };
    assert_eq!((admit(&due, &at), admit(&record, &at)), (Ok(Admission::Refresh), Ok(Admission::Refresh)));
    let mut mixed = offer(4);
    mixed.assignment.manifest = Some(Digest::of(b"other"));
    assert!(matches!(admit(&record, &mixed), Err(Refusal::Manifest { .. })));
    mixed.assignment.manifest = None;
    assert!(matches!(admit(&record, &mixed), Err(Refusal::Manifest { .. })));
    let bare = Record { generation: 3, ..Record::default() };
    assert!(matches!(admit(&bare, &offer(3)), Err(Refusal::OldGeneration { .. })));
}

#[test]
fn once_another_director_signs_generations_begin_anew() {
    let stolen = |generation| Record { generation, update: Some(done(generation)), ..Record::default() };
    let by_the_next = |generation| Offer { director_epoch: 2, ..offer(generation) };
    assert!(admit(&stolen(u64::MAX), &offer(7)).is_err());
    assert_eq!(admit(&stolen(u64::MAX), &by_the_next(7)), Ok(Admission::Accept));
    assert_eq!(admit(&stolen(7), &by_the_next(7)), Ok(Admission::Refresh));
    let mut other = by_the_next(7);
    other.assignment.manifest = None;
    other.manifest = None;
    assert_eq!(admit(&stolen(7), &other), Ok(Admission::Accept));
    // It holds from then on, and a chain that lost its last document does not open it again.
    let known = Record { director_epoch: 2, ..stolen(7) };
    for epoch in [1, 2] {
        let older = Offer { director_epoch: epoch, ..offer(6) };
        assert_eq!(admit(&known, &older), Err(Refusal::OldGeneration { offered: 6, accepted: 7 }));
    }
}
