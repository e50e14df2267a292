//! What is written for agents of earlier numbers, and what these read of it.

use proptest::prelude::*;
use serde_json::json;

use super::earlier::{reads_assignment, reads_manifest};
use super::*;
use crate::bundle::{Budgets, BundleFile, GOLDEN_PATH, Lineage, MODEL_PATH, ModelSignature, Program};
use crate::card::Card;
use crate::ids::{BundleName, DeviceId, Digest, RolloutId};
use crate::profile::{Column, Reference, SliceBy, Slicing};
use crate::trust::{MeteredUse, WatchPolicy};

fn assignment(held: u32) -> Assignment {
    let is_held = |bit: u32| held >> bit & 1 == 1;
    Assignment {
        device: DeviceId::new("press-7").unwrap(),
        rollout: RolloutId::new("r1").unwrap(),
        manifest: is_held(5).then(|| Digest::of(b"m")),
        generation: 3,
        issued_at_ms: 1,
        expires_ms: 2,
        watch: WatchPolicy::default(),
        delivery: match held & 3 {
            0 => DeliveryPolicy::default(),
            1 => DeliveryPolicy::at_once(),
            _ => DeliveryPolicy { metered: MeteredUse::Never, ..DeliveryPolicy::default() },
        },
        stage: if is_held(2) { Stage::Shadow { share_bp: 7 } } else { Stage::Serve },
        activation: if is_held(3) { Activation::At { at_ms: 7 } } else { Activation::AtOnce },
        track: if is_held(4) { Track::Program } else { Track::Model },
    }
}

/// A manifest with what the bits of `held` say.
fn manifest(held: u32) -> Manifest {
    let is_held = |bit: u32| held >> bit & 1 == 1;
    let tensors = json!([{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]);
    let signature: ModelSignature = serde_json::from_value(json!({"inputs": tensors, "outputs": tensors})).unwrap();
    let source = match (is_held(0), is_held(1)) {
        (true, true) => Source::Entropy { tensor: "x".into() },
        (true, false) => Source::Margin { tensor: "x".into() },
        (false, true) => Source::Input { tensor: "x".into(), index: 0 },
        (false, false) => Source::PredictedClass { tensor: "x".into() },
    };
    let reference = Reference::Class { classes: vec!["a".into()], counts: vec![1] };
    let columns = vec![Column { name: "c".into(), source, reference }];
    let slices = vec![Slicing { name: "s".into(), by: SliceBy::Label { label: "site".into() } }];
    let program = Program { target: "t".into(), takes_over_from: semver::Version::new(1, 0, 0) };
    Manifest {
        name: BundleName::new("digits").unwrap(),
        version: semver::Version::new(1, 0, 0),
        description: String::new(),
        release_counter: 1,
        security_floor: 0,
        created_at_ms: 0,
        expires_ms: 1,
        requirements: Requirements {
            architectures: ["armv7".to_owned()].into(),
            cpu_features: is_held(2).then(|| "asimd".to_owned()).into_iter().collect(),
            attributes: is_held(10).then(|| "soc=bcm2711".parse().unwrap()),
            ..Requirements::default()
        },
        budgets: Budgets::default(),
        files: vec![BundleFile::describe(MODEL_PATH, b"m"), BundleFile::describe(GOLDEN_PATH, b"{}")],
        pipeline: is_held(3).then(|| serde_json::from_value(json!({"model": signature})).unwrap()),
        signature,
        schema: is_held(4).then(|| serde_json::from_value(json!({"features": []})).unwrap()),
        profile: Profile {
            columns,
            slices: if is_held(5) { slices } else { Vec::new() },
            quantiles: if is_held(6) { vec![0] } else { Vec::new() },
            objectives: if is_held(7) {
                serde_json::from_value(json!({"latency-us": [9]})).unwrap()
            } else {
                Objectives::default()
            },
            ..Profile::default()
        },
        lineage: Lineage::default(),
        card: is_held(8).then(Card::default),
        program: is_held(9).then_some(program),
    }
}

#[test]
fn who_says_nothing_is_sent_nothing_new() {
    let known = |protocol| Feature::ALL.into_iter().filter(|feature| feature.is_known_to(protocol)).count();
    assert_eq!((known(0), known(1), known(2), known(3), known(u32::MAX)), (0, 8, 9, 10, 10));
    assert!(Feature::ALL.into_iter().all(|feature| feature.is_known_to(PROTOCOL)), "this code knows what it writes");
}

#[test]
fn the_number_of_who_says_none_is_what_only_later_agents_report() {
    // Reports as agents of those days wrote them, as far as it matters here.
    let of = |text: &str| number_of(&serde_json::from_str(text).unwrap());
    let first = r#"{"generation":1,"attributes":{"arch":"x86_64","agent-version":"0.1.0","memory-bytes":"1"}}"#;
    assert_eq!(of(first), 0, "every agent said its version");
    assert_eq!(of(r#"{"can_hold":true,"attributes":{"arch":"x86_64","agent-version":"0.1.0","memory-bytes":"1"}}"#), 0);
    assert_eq!(
        of(r#"{"attributes":{"disk-bytes":"9","agent-version":"0.1.0"}}"#),
        0,
        "its owner may have configured that"
    );
    assert_eq!(of(r#"{"can_hold":true,"attributes":{"disk-bytes":"9","agent-version":"0.1.0"}}"#), 1);
    assert_eq!(of(r#"{"can_hold":true,"protocol":2,"program":{},"attributes":{"disk-bytes":"9"}}"#), 2);
    assert_eq!(of(r#"{"protocol":7,"of_a_later_day":[]}"#), 7);
}

proptest! {
    #[test]
    fn an_assignment_is_written_so_that_its_device_reads_it_or_not_at_all(held in 0u32..64, protocol in 0u32..4) {
        let asked = assignment(held);
        match asked.clone().written_for(protocol) {
            Ok(written) => {
                prop_assert!(reads_assignment(protocol, &written), "{:?}", written);
                let same_but_for_ease = Assignment { delivery: asked.delivery, ..written.clone() };
                prop_assert_eq!(&same_but_for_ease, &asked, "only how it is fetched may be left unsaid");
                prop_assert!(protocol == 0 || written.delivery == asked.delivery);
            }
            Err(NotUnderstood(unknown)) => {
                let plain = Assignment { delivery: DeliveryPolicy::default(), ..asked };
                prop_assert!(!reads_assignment(protocol, &plain), "{:?} would have been read without {:?}", plain, unknown);
                prop_assert!(!unknown.is_empty() && unknown.iter().all(|feature| !feature.is_known_to(protocol)));
            }
        }
    }

    #[test]
    fn a_manifest_needs_just_what_its_readers_must_know(held in 0u32..2048, protocol in 0u32..4) {
        let manifest = manifest(held);
        let is_known = manifest.features().iter().all(|feature| feature.is_known_to(protocol));
        prop_assert_eq!(reads_manifest(protocol, &manifest), is_known, "{:?}", manifest.features());
    }
}
