use proptest::prelude::*;

use super::seal::OVERHEAD_BYTES;
use super::*;
use crate::bundle::DataType;
use crate::damage;
use crate::limits::{MAX_BATCH_BYTES, MAX_SAMPLE_BYTES};

pub(crate) fn wanted(name: &str) -> Wanted {
    Wanted {
        collection: CollectionId::new(name).unwrap(),
        manifests: vec![Digest::of(b"m")],
        rule: Rule::Random { share: 0.5 },
        limits: SampleLimits { max_count: 10, max_bytes: 1_000 },
        phase: Phase::Open,
        ends_ms: 2_000,
        upload_by_ms: 3_000,
        recipient: RecipientSecret::parse(&"17".repeat(32)).unwrap().public(),
    }
}

fn document(collections: Vec<Wanted>) -> Collections {
    let device = DeviceId::new("dev-1").unwrap();
    Collections { device, generation: 1, issued_at_ms: 1, expires_ms: 4_000, collections }
}

fn sample() -> Sample {
    let tensor = |name: &str, datatype, shape: &[u64], data: &[u8]| SampleTensor {
        name: name.into(),
        datatype,
        shape: shape.into(),
        data: data.into(),
    };
    Sample {
        id: "req-1".into(),
        at_ms: 5,
        manifest: Digest::of(b"m"),
        generation: 3,
        inputs: vec![
            tensor("x", DataType::Fp32, &[1, 2], &[0, 0, 128, 63, 0, 0, 0, 64]),
            tensor("words", DataType::Bytes, &[2], b"\x02\0\0\0hi\0\0\0\0"),
        ],
        outputs: vec![tensor("y", DataType::Int64, &[1], &[7, 0, 0, 0, 0, 0, 0, 0])],
        confidence: vec![0.5],
        flags: vec!["range x0".into()],
    }
}

#[test]
fn what_makes_no_sense_is_named() {
    document(vec![wanted("a"), wanted("b")]).validate().unwrap();
    let with = |change: &dyn Fn(&mut Wanted)| {
        let mut one = wanted("a");
        change(&mut one);
        document(vec![one]).validate().unwrap_err()
    };
    for (said, words) in [
        (document(vec![wanted("a"), wanted("a")]).validate().unwrap_err(), "named twice"),
        (
            document((0..=MAX_COLLECTIONS).map(|n| wanted(&format!("c{n}"))).collect()).validate().unwrap_err(),
            "at most",
        ),
        (with(&|one| one.manifests.clear()), "0 bundles"),
        (with(&|one| one.rule = Rule::Random { share: 0.0 }), "above 0"),
        (with(&|one| one.rule = Rule::Random { share: f64::NAN }), "above 0"),
        (with(&|one| one.rule = Rule::LowConfidence { below: f64::INFINITY }), "no number"),
        (with(&|one| one.limits.max_count = 0), "0 samples"),
        (with(&|one| one.limits.max_count = MAX_SAMPLES + 1), "samples"),
        (with(&|one| one.limits.max_bytes = 0), "no byte"),
        (with(&|one| one.upload_by_ms = 1_999), "before it ends"),
    ] {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn rules_are_written_as_documented() {
    for (rule, json) in [
        (Rule::Random { share: 0.25 }, r#"{"rule":"random","share":0.25}"#),
        (Rule::LowConfidence { below: 0.5 }, r#"{"rule":"low-confidence","below":0.5}"#),
        (Rule::Outlier {}, r#"{"rule":"outlier"}"#),
        (Rule::ShadowDisagreement {}, r#"{"rule":"shadow-disagreement"}"#),
    ] {
        assert_eq!(serde_json::to_string(&rule).unwrap(), json);
        assert_eq!(serde_json::from_str::<Rule>(json).unwrap(), rule);
    }
    assert!(serde_json::from_str::<Rule>(r#"{"rule":"everything"}"#).is_err());
}

#[test]
fn a_sample_survives_its_bytes_and_nothing_else_passes_for_one() {
    let bytes = sample().to_bytes().unwrap();
    assert_eq!(Sample::from_bytes(&bytes), Ok(sample()));
    assert_eq!(Sample::from_bytes(&[&[2][..], &bytes[1..]].concat()), Err(SampleError::Version(2)));
    assert!(matches!(Sample::from_bytes(&[&bytes[..], &[0]].concat()), Err(SampleError::Parse(_))));
    assert!(matches!(Sample::from_bytes(&[]), Err(SampleError::Parse(_))));
    let mut short = sample();
    short.inputs[0].data.pop();
    assert_eq!(Sample::from_bytes(&short.to_bytes().unwrap()), Err(SampleError::Tensor("x".into())));
    let mut large = sample();
    large.inputs[0].data = vec![0; MAX_SAMPLE_BYTES];
    assert!(matches!(large.to_bytes(), Err(SampleError::TooLarge(_))));
    let mut endless = sample();
    endless.inputs[0].shape = vec![u64::MAX, u64::MAX];
    assert_eq!(Sample::from_bytes(&endless.to_bytes().unwrap()), Err(SampleError::Tensor("x".into())));
    let mut hollow = sample();
    (hollow.inputs[0].shape, hollow.inputs[0].data) = (vec![u64::MAX, 0], Vec::new());
    assert_eq!(Sample::from_bytes(&hollow.to_bytes().unwrap()), Err(SampleError::Tensor("x".into())));
    assert_eq!(sample().inputs[1].byte_elements().unwrap(), [&b"hi"[..], b""]);
}

#[test]
fn a_batch_is_read_as_it_was_put_together() {
    let mut batch = Batch::default();
    let (one, two) = (vec![1; OVERHEAD_BYTES], vec![2; 5_000]);
    batch.push(&one);
    batch.push(&two);
    assert!(batch.has_room_for(1) && !batch.has_room_for(MAX_BATCH_BYTES));
    let bytes = batch.into_bytes();
    assert_eq!(Batch::frames(&bytes).unwrap(), [one, two]);
    assert_eq!(Batch::frames(&bytes[..bytes.len() - 1]), Err(BatchError::Frame(FRAME_HEAD_BYTES + OVERHEAD_BYTES)));
    assert_eq!(Batch::frames(&[]), Err(BatchError::Empty));
    assert_eq!(Batch::frames(&[1, 0, 0, 0, 9]), Err(BatchError::Frame(0)));
    assert_eq!(Batch::frames(&vec![0; MAX_BATCH_BYTES + 1]), Err(BatchError::TooLarge));
}

proptest! {
    #[test]
    fn a_damaged_sample_is_read_or_refused(bytes in damage::bytes(sample().to_bytes().unwrap())) {
        if let Ok(read) = Sample::from_bytes(&bytes) {
            for tensor in read.inputs.iter().chain(&read.outputs) {
                prop_assert!(tensor.elements().is_some());
            }
        }
    }

    #[test]
    fn any_bytes_are_a_batch_or_refused(bytes in prop::collection::vec(prop_oneof![Just(0u8), 40..60u8, any::<u8>()], 0..400)) {
        if let Ok(frames) = Batch::frames(&bytes) {
            let mut batch = Batch::default();
            frames.iter().for_each(|frame| batch.push(frame));
            prop_assert_eq!(batch.into_bytes(), bytes);
        }
    }

    #[test]
    fn a_damaged_document_is_refused_or_makes_sense(
        json in damage::json(serde_json::to_value(document(vec![wanted("a"), wanted("b")])).unwrap()),
    ) {
        if let Ok(read) = serde_json::from_value::<Collections>(json) && read.validate().is_ok() {
            prop_assert!(read.collections.iter().all(|one| one.limits.max_count > 0 && !one.manifests.is_empty()));
        }
    }
}
