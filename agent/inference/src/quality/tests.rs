use muster_shared::bundle::TensorSpec;
use muster_shared::data_schema::FeatureRule;
use muster_shared::pipeline::Categories;
use proptest::prelude::*;

use super::*;

fn signature() -> ModelSignature {
    let spec = |name: &str, datatype, shape: &[i64]| TensorSpec { name: name.into(), datatype, shape: shape.to_vec() };
    ModelSignature {
        inputs: vec![
            spec("x", DataType::Fp32, &[-1, 3]),
            spec("n", DataType::Int64, &[-1]),
            spec("city", DataType::Bytes, &[-1, 1]),
        ],
        outputs: vec![spec("y", DataType::Fp32, &[-1, 1])],
    }
}

fn of(name: &str, tensor: &str, index: u32) -> FeatureRule {
    let datatype = signature().inputs.iter().find(|spec| spec.name == tensor).unwrap().datatype;
    FeatureRule::of(name, tensor, index, datatype)
}

fn gate(features: Vec<FeatureRule>, duplicates: Option<Duplicates>) -> QualityGate {
    let schema = DataSchema { duplicates, features };
    schema.validate(&signature()).unwrap();
    QualityGate::new(&schema, &signature())
}

fn x(rows: &[[f32; 3]]) -> Tensor {
    Tensor::from_f32("x", vec![rows.len(), 3], rows.as_flattened()).unwrap()
}

fn n(values: &[f64]) -> Tensor {
    Tensor::from_f64("n", DataType::Int64, vec![values.len()], values).unwrap()
}

fn city(texts: &[&str]) -> Tensor {
    Tensor::from_byte_elements("city", vec![texts.len(), 1], texts).unwrap()
}

#[test]
fn every_cause_is_found_and_counted() {
    let range = FeatureRule { min: Some(0.0), max: Some(10.0), ..of("range", "x", 0) };
    let free = FeatureRule { may_be_missing: true, may_be_infinite: true, ..of("free", "x", 2) };
    let kind = FeatureRule { categories: Some(Categories::Integers(vec![1, 2])), ..of("kind", "n", 0) };
    let place = FeatureRule { categories: Some(Categories::Texts(vec!["Graz".into()])), ..of("place", "city", 0) };
    let gate = gate(vec![place, range, free, kind], None);
    let rows = [
        [-1.0, 0.0, 0.0],
        [11.0, 0.0, f32::NAN],
        [f32::NAN, 0.0, 1.0],
        [f32::INFINITY, 0.0, f32::INFINITY],
        [10.0, 0.0, 0.0],
    ];
    let checked = gate.check(&[city(&["Graz", "Lyon", "", "Graz", "Graz"]), x(&rows), n(&[1.0, 2.0, 3.0, 1.0, 1.0])]);
    assert_eq!((checked.rejection, checked.inputs), (None, None));
    let counted = |feature, cause| checked.findings.values(feature, cause);
    assert_eq!(counted(0, Cause::UnknownCategory), 1);
    assert_eq!(counted(0, Cause::Missing), 1);
    assert_eq!(counted(1, Cause::BelowMin), 1);
    assert_eq!(counted(1, Cause::AboveMax), 1);
    assert_eq!(counted(1, Cause::Missing), 1);
    assert_eq!(counted(1, Cause::Infinite), 1);
    assert_eq!(counted(2, Cause::Missing), 1, "what may be missing is counted, for its share");
    assert_eq!(counted(2, Cause::Infinite), 0);
    assert_eq!(counted(3, Cause::UnknownCategory), 1);
    let flags = "place missing, place unknown-category, range missing, range infinite, range below-min, range above-max, \
                 kind unknown-category";
    assert_eq!(gate.parameters(&checked.findings), [("quality_flags", flags.to_owned())]);
    let mut sketch = gate.sketch();
    checked.findings.add_to(&mut sketch, false);
    assert_eq!((sketch.rows, sketch.flagged, sketch.rejected, sketch.imputed), (5, 1, 0, 0));
    assert_eq!(sketch.counts().map(|(_, _, count)| count).sum::<u64>(), 8);
}

#[test]
fn a_good_request_says_nothing() {
    let gate = gate(vec![FeatureRule { min: Some(0.0), max: Some(1.0), ..of("a", "x", 1) }], None);
    let checked = gate.check(&[x(&[[9.0, 0.0, 9.0], [9.0, 1.0, 9.0]])]);
    assert!(gate.parameters(&checked.findings).is_empty());
    assert_eq!(checked.findings, Findings { rows: 2, ..Findings::default() });
}

#[test]
fn a_rejection_names_feature_row_and_rule() {
    let reject = |rule: FeatureRule| FeatureRule { on_violation: OnViolation::Reject, ..rule };
    let age = reject(FeatureRule { max: Some(120.0), ..of("age", "x", 0) });
    let place =
        reject(FeatureRule { categories: Some(Categories::Texts(vec!["Graz".into()])), ..of("place", "city", 0) });
    let gate = gate(vec![age, place], None);
    let words = |inputs: &[Tensor]| gate.check(inputs).rejection.unwrap().to_string();
    let start = "the data schema rejects the request: feature";
    assert_eq!(
        words(&[x(&[[1.0; 3], [230.0; 3]])]),
        format!("{start} \"age\" of row 2, is 230, and 120 is the most that is expected")
    );
    assert_eq!(
        words(&[city(&["Wien"])]),
        format!("{start} \"place\" of row 1, is \"Wien\", which is none of the expected categories")
    );
    assert!(words(&[x(&[[f32::NAN; 3]])]).contains("is missing, and must not be"));
}

#[test]
fn values_are_put_in_where_they_are_wrong_and_nowhere_else() {
    let impute =
        |rule: FeatureRule, value| FeatureRule { on_violation: OnViolation::Impute, impute: Some(value), ..rule };
    let number = impute(FeatureRule { max: Some(5.0), ..of("number", "x", 1) }, Imputed::Number(2.5));
    let text = impute(
        FeatureRule { categories: Some(Categories::Texts(vec!["Graz".into()])), ..of("text", "city", 0) },
        Imputed::Text("Graz".into()),
    );
    let gate = gate(vec![number, text], None);
    let inputs = [x(&[[9.0, f32::NAN, 9.0], [9.0, 1.0, 9.0], [9.0, 7.0, 9.0]]), city(&["", "Graz", "Lyon"])];
    let checked = gate.check(&inputs);
    let expected = [x(&[[9.0, 2.5, 9.0], [9.0, 1.0, 9.0], [9.0, 2.5, 9.0]]), city(&["Graz"; 3])];
    assert_eq!(checked.inputs.as_deref(), Some(&expected[..]));
    let words = "number missing, number above-max, text missing, text unknown-category";
    assert_eq!(gate.parameters(&checked.findings), [("quality_imputed", words.to_owned())]);
}

#[test]
fn what_one_request_cannot_tell_is_remembered() {
    let stuck = FeatureRule { stuck_after: Some(3), ..of("stuck", "x", 0) };
    let time = FeatureRule { is_time: true, ..of("time", "n", 0) };
    let gate = gate(vec![stuck, time], None);
    let find = |value: f32, time: f64| gate.check(&[x(&[[value; 3]]), n(&[time])]).findings;
    for time in [1.0, 1.0, 2.0] {
        assert_eq!(find(7.0, time).counts, []);
    }
    assert_eq!(find(7.0, 3.0).counts, [(0, Cause::Stuck, 1)]);
    assert_eq!(find(8.0, 2.0).counts, [(1, Cause::OutOfOrder, 1)]);
    assert_eq!(find(8.0, 2.0).counts, [], "one step back counts once");
}

#[test]
fn duplicates_are_found_within_reach_in_any_order_of_inputs() {
    let gate = gate(vec![], Some(Duplicates { among_last: 2, on_violation: OnViolation::Flag }));
    let row = |value: f32, text: &str| [x(&[[value; 3]]), city(&[text])];
    assert_eq!(gate.check(&row(1.0, "a")).findings.duplicates(), 0);
    assert_eq!(gate.check(&row(1.0, "b")).findings.duplicates(), 0);
    let [one, other] = row(1.0, "a");
    let again = gate.check(&[other, one]);
    assert_eq!(again.findings.duplicates(), 1);
    assert_eq!(gate.parameters(&again.findings), [("quality_flags", "row duplicate".to_owned())]);
    assert_eq!(gate.check(&row(2.0, "a")).findings.duplicates(), 0);
    assert_eq!(gate.check(&row(3.0, "a")).findings.duplicates(), 0);
    assert_eq!(gate.check(&row(1.0, "a")).findings.duplicates(), 0, "that was too long ago");
    assert_eq!(gate.check(&[x(&[[5.0; 3], [5.0; 3]]), city(&["a", "a"])]).findings.duplicates(), 1);
}

proptest! {
    #[test]
    fn any_request_is_looked_at_without_panic(
        rows in 0..4_usize,
        width in 0..5_usize,
        data in prop::collection::vec(any::<f32>(), 20),
        texts in prop::collection::vec(".{0,3}", 0..4),
    ) {
        let rule = |name: &str, index| FeatureRule {
            min: Some(-1.0),
            stuck_after: Some(2),
            is_time: true,
            on_violation: OnViolation::Impute,
            impute: Some(Imputed::Number(0.0)),
            ..of(name, "x", index)
        };
        let duplicates = Some(Duplicates { among_last: 4, on_violation: OnViolation::Flag });
        let gate = gate(vec![rule("a", 2), rule("b", 0), of("c", "city", 0)], duplicates);
        let inputs = [
            Tensor::from_f32("x", vec![rows, width], &data[..rows * width]).unwrap(),
            Tensor::from_byte_elements("city", vec![texts.len()], &texts).unwrap(),
        ];
        let checked = gate.check(&inputs);
        if let Some(repaired) = checked.inputs {
            prop_assert_eq!(repaired.len(), 2);
            prop_assert_eq!(repaired[0].shape(), inputs[0].shape());
        }
        let found: u64 = checked.findings.counts.iter().map(|(_, _, count)| count).sum();
        prop_assert!(found <= (2 * rows + texts.len()) as u64);
    }
}

/// A value counts for one cause, the first that holds, however many rules it breaks; and what is missing neither ends nor begins a run.
#[test]
fn a_value_that_breaks_several_rules_counts_once() {
    let time = FeatureRule { is_time: true, stuck_after: Some(2), min: Some(0.0), ..of("time", "x", 0) };
    let gate = gate(vec![time], None);
    let mut sketch = gate.sketch();
    let mut see = |value: f32| {
        let findings = gate.check(&[x(&[[value, 0.0, 0.0]])]).findings;
        findings.add_to(&mut sketch, false);
        let counts: Vec<(Cause, u64)> = findings.counts().map(|(_, cause, count)| (cause, count)).collect();
        counts
    };
    assert_eq!(see(5.0), []);
    assert_eq!(see(5.0), []);
    // Missing between two equal values: the third of them is the third in a row.
    assert_eq!(see(f32::NAN), [(Cause::Missing, 1)]);
    assert_eq!(see(5.0), [(Cause::Stuck, 1)]);
    assert_eq!(see(5.0), [(Cause::Stuck, 1)]);
    // Before the time before it, and below the least: below the least.
    assert_eq!(see(-1.0), [(Cause::BelowMin, 1)]);
    assert_eq!(see(4.0), []);
    assert_eq!(see(3.0), [(Cause::OutOfOrder, 1)]);
    assert_eq!(see(f32::INFINITY), [(Cause::Infinite, 1)]);
    assert_eq!(sketch.rows, 9);
    assert_eq!(sketch.counts().map(|(_, _, count)| count).sum::<u64>(), 6);
}
