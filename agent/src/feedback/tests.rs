use muster_shared::bundle::{DataType, TensorSpec};
use muster_shared::feedback::{FeedbackCounts, FeedbackResult};
use muster_shared::labels::{LabelTarget, LabelTask};
use muster_shared::messages::Resources;
use muster_shared::sketch::{ClassOutcomes, LabelCounts, LabelOutcomes, LabelSketch, RightCounts};
use muster_shared::trust::Stage;
use serde_json::{Value, json};

use super::*;
use crate::host::fixtures::{digits, scripted};
use crate::host::{Active, HostLimits, ModelHost};

/// No window of these tests ends by itself.
const WINDOW_MS: u64 = 1 << 50;
const TEN: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

fn host(max_predictions: usize) -> ModelHost {
    let monitor = Monitor::new(WINDOW_MS);
    let config = FeedbackConfig { max_predictions, ..FeedbackConfig::default() };
    let feedback = Feedback::new(&config, Metrics::new());
    ModelHost::new(HostLimits { max_concurrency: 1, max_queue: 1 }, monitor, feedback)
}

/// The digits model with labels of its classes.
fn labelled(version: &str, generation: u64) -> ServedModel {
    let mut model = digits(version, generation);
    let classes = TEN.map(str::to_owned).to_vec();
    let task = LabelTask::Classification { classes };
    let labels = LabelSpec::new("probabilities", task);
    model.profile = Arc::new(Profile { labels: Some(labels), ..(*model.profile).clone() });
    model
}

/// Answers that are sure of `classes`, row by row.
fn answers(classes: &[usize]) -> Vec<Tensor> {
    let values: Vec<f32> =
        classes.iter().flat_map(|class| (0..10).map(move |at| if at == *class { 0.91 } else { 0.01 })).collect();
    vec![Tensor::from_f32("probabilities", vec![classes.len(), 10], &values).unwrap()]
}

fn answer(host: &ModelHost, id: &str, classes: &[usize]) {
    let labels = host.active().unwrap().labels.clone().unwrap();
    host.feedback().remember(&labels, id, (&[], &answers(classes)), &Second::None);
}

fn label(id: &str, label: Value) -> FeedbackItem {
    FeedbackItem { id: id.into(), label, ..FeedbackItem::default() }
}

fn labels_of(id: &str, labels: Value) -> FeedbackItem {
    FeedbackItem { id: id.into(), labels: serde_json::from_value(labels).unwrap(), ..FeedbackItem::default() }
}

fn join(host: &ModelHost, items: &[FeedbackItem]) -> (Vec<FeedbackResult>, FeedbackCounts) {
    let labels = host.active().and_then(|active| active.labels.clone());
    let answer = host.feedback().join(items, Some("digits"), labels.as_ref());
    (answer.results.into_iter().map(|result| result.result).collect(), answer.counts)
}

/// The labels in every window so far, by generation.
fn counted(host: &ModelHost) -> Vec<(u64, LabelSketch)> {
    let windows = host.monitor().close_all(wall_ms(), Resources::default());
    windows.into_iter().filter_map(|window| Some((window.telemetry.key.generation, window.sketch?.labels?))).collect()
}

fn right(labels: &LabelSketch) -> (u64, u64) {
    let LabelCounts::Classes(counts) = &labels.all else { panic!("{labels:?}") };
    (counts.total_right(), counts.total())
}

use FeedbackResult::{Duplicate, Invalid, Joined, Unknown};

#[test]
fn every_label_has_a_result_and_counts_once() {
    let host = host(100);
    host.activate(labelled("1.1.0", 1), 1);
    answer(&host, "a", &[3]);
    answer(&host, "b", &[4]);
    answer(&host, "batch", &[1, 2, 3]);
    let items = [
        label("a", json!(3)),
        label("b", json!("9")),
        label("a", json!(3)),
        label("nobody", json!(3)),
        label("b", Value::Null),
        label("batch", json!(1)),
        labels_of("batch", json!([1, 2])),
        labels_of("batch", json!([1, null, 7])),
        FeedbackItem { row: Some(1), ..label("batch", json!("two")) },
        FeedbackItem { row: Some(3), ..label("batch", json!(1)) },
    ];
    let (results, counts) = join(&host, &items);
    let expected = [Joined, Joined, Duplicate, Unknown, Invalid, Invalid, Invalid, Joined, Joined, Invalid];
    assert_eq!(results, expected);
    // A list of the wrong length is as many invalid labels as it has.
    assert_eq!(counts, FeedbackCounts { joined: 5, unknown: 1, late: 0, duplicate: 1, invalid: 5 });
    let [(1, sketch)] = &counted(&host)[..] else { panic!() };
    assert_eq!((sketch.results, sketch.predictions, sketch.forgotten), (counts, 5, 0));
    // Right: a, and the first of the batch. Wrong: b, the third of the batch, and one of no known class.
    assert_eq!((right(sketch), sketch.delay_ms.count()), ((2, 5), 5));
    let LabelCounts::Classes(all) = &sketch.all else { panic!() };
    assert_eq!((all.truth[10], all.calibration[13].n, all.calibration[13].right), (1, 5, 2));
}

#[test]
fn a_label_counts_for_the_model_that_predicted() {
    let host = host(100);
    host.activate(labelled("1.0.0", 1), 1);
    answer(&host, "early", &[3]);
    host.activate(labelled("1.1.0", 2), 2);
    answer(&host, "later", &[5]);
    assert_eq!(join(&host, &[label("early", json!(8)), label("later", json!(5))]).0, [Joined, Joined]);
    let counted = counted(&host);
    let of = |generation| counted.iter().filter(move |(g, _)| *g == generation).map(|(_, sketch)| right(sketch));
    assert_eq!(of(1).fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1)), (0, 1));
    assert_eq!(of(2).fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1)), (1, 1));
    // Another model's name does not find it, nor does one that has no labels.
    host.activate(digits("1.2.0", 3), 3);
    assert!(host.active().unwrap().labels.is_none());
    answer_as(&host, 3);
    let strangers = host.feedback().join(&[label("later", json!(5))], Some("other"), None);
    assert_eq!(strangers.counts.unknown, 1);
    assert!(host.feedback().knows("digits") && !host.feedback().knows("other"));
}

/// A model without labels remembers nothing.
fn answer_as(host: &ModelHost, generation: u64) {
    assert_eq!(host.active().unwrap().served.generation, generation);
    assert_eq!(host.feedback().remembered(), 2);
}

#[test]
fn what_finds_no_room_and_what_a_stop_leaves_is_counted() {
    let host = host(4);
    host.activate(labelled("1.1.0", 1), 1);
    for id in ["a", "b", "c", "d", "e", "f"] {
        answer(&host, id, &[1]);
    }
    assert_eq!(join(&host, &[label("a", json!(1)), label("f", json!(1))]).0, [Unknown, Joined]);
    host.feedback().forget_all();
    let [(_, sketch)] = &counted(&host)[..] else { panic!() };
    assert_eq!((sketch.predictions, sketch.forgotten, sketch.results.joined), (6, 5, 1));
    assert_eq!(host.feedback().remembered(), 0);
}

#[test]
fn a_delivery_that_comes_twice_is_joined_once() {
    let host = host(100);
    host.activate(labelled("1.1.0", 1), 1);
    answer(&host, "a", &[3]);
    let batch = Digest::of(b"batch");
    let delivery = FeedbackDelivery { batch, items: vec![label("a", json!(3)), label("x", json!(1))] };
    let labels = host.active().unwrap().labels.clone();
    let receipt = host.feedback().deliver(&delivery, labels.as_ref());
    assert_eq!((receipt.batch, receipt.counts.joined, receipt.counts.unknown), (batch, 1, 1));
    assert_eq!(host.feedback().deliver(&delivery, labels.as_ref()), receipt);
    let [(_, sketch)] = &counted(&host)[..] else { panic!() };
    assert_eq!((sketch.results.joined, sketch.results.duplicate), (1, 0));
    for n in 0..2 * MAX_RECEIPTS {
        let batch = Digest::of(&n.to_le_bytes());
        host.feedback().deliver(&FeedbackDelivery { batch, items: Vec::new() }, None);
    }
    assert_eq!(host.feedback().inner.receipts.lock().unwrap().len(), MAX_RECEIPTS);
}

#[test]
fn numbers_are_labelled_row_by_row() {
    let host = host(100);
    let mut model = scripted(DataType::Fp32, "1.0.0", 1, |_| Ok(Vec::new()));
    let task = LabelTask::Regression { targets: vec![LabelTarget { index: 0, scale: 16.0 }] };
    let labels = LabelSpec::new("y", task);
    model.profile = Arc::new(Profile { labels: Some(labels), ..(*model.profile).clone() });
    let name = model.bundle.name.to_string();
    host.activate(model, 1);
    let labels = host.active().unwrap().labels.clone().unwrap();
    let outputs = vec![Tensor::from_f32("y", vec![3, 1], &[1.0, f32::NAN, 4.0]).unwrap()];
    host.feedback().remember(&labels, "a", (&[], &outputs), &Second::None);
    let answer = host.feedback().join(&[labels_of("a", json!([2.0, 2, "3.5"]))], Some(&name), Some(&labels));
    assert_eq!(answer.counts.joined, 3);
    assert_eq!(host.feedback().join(&[label("a", json!("NaN"))], None, None).counts.invalid, 1);
    let [(_, sketch)] = &counted(&host)[..] else { panic!() };
    let LabelCounts::Targets(targets) = &sketch.all else { panic!("{sketch:?}") };
    let unit = targets[0].absolute_error as f64 * 16.0 / (1 << 20) as f64;
    assert_eq!((targets[0].n, targets[0].unanswered), (2, 1));
    assert!((unit - 1.5).abs() < 1e-9, "{unit}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, ..Default::default() })]

    /// Whatever comes is counted, row by row, and nothing is joined more often than it was predicted.
    #[test]
    fn any_items_are_counted(
        items in proptest::collection::vec(
            ("[ab]?", proptest::option::of(0u32..4), 0usize..6, proptest::option::of(proptest::collection::vec(0usize..6, 0..4))),
            0..30,
        ),
    ) {
        let host = host(100);
        host.activate(labelled("1.1.0", 1), 1);
        answer(&host, "a", &[3]);
        answer(&host, "b", &[1, 2, 3]);
        let values = [json!(3), json!("x"), Value::Null, json!([1]), json!({"a": 1}), json!(1e300)];
        let items: Vec<FeedbackItem> = items
            .into_iter()
            .map(|(id, row, label, labels)| FeedbackItem {
                id,
                row,
                label: values[label].clone(),
                labels: labels.map(|labels| labels.into_iter().map(|at| values[at].clone()).collect()),
            })
            .collect();
        let (results, counts) = join(&host, &items);
        proptest::prop_assert_eq!(results.len(), items.len());
        proptest::prop_assert!(counts.joined <= 4 && counts.total() >= items.len() as u64);
        let sum = counted(&host).into_iter().fold(0, |sum, (_, sketch)| sum + sketch.results.total());
        proptest::prop_assert_eq!(sum, counts.total());
    }
}

/// Counts of labels of both models, over every window of the second one, and its own.
fn beside(host: &ModelHost) -> (ClassOutcomes, Vec<LabelSketch>) {
    let (mut sum, mut own): (Option<Box<LabelOutcomes>>, _) = (None, Vec::new());
    for window in host.beside_monitor().close_all(wall_ms(), Resources::default()) {
        own.extend(window.sketch.and_then(|sketch| sketch.labels));
        match (&mut sum, window.telemetry.comparison.and_then(|comparison| comparison.labels)) {
            (Some(sum), Some(more)) => sum.merge(&more).unwrap(),
            (none, more) => *none = none.take().or(more),
        }
    }
    match sum.map(|sum| *sum) {
        Some(LabelOutcomes::Classes(counts)) => (counts, own),
        None => (ClassOutcomes::default(), own),
        other => panic!("{other:?}"),
    }
}

/// A host on which digits 1.2.0 runs beside 1.0.0; both declare labels.
fn with_second(stage: Stage) -> (ModelHost, Arc<LabelWatch>, Arc<Active>) {
    let host = host(100);
    host.activate(labelled("1.0.0", 1), 1);
    host.run_beside(labelled("1.2.0", 2), stage, 2).unwrap();
    let incumbent = host.active().unwrap().labels.clone().unwrap();
    let candidate = Arc::clone(host.beside().unwrap().active());
    (host, incumbent, candidate)
}

#[test]
fn a_label_of_a_shadowed_inference_says_who_was_right_whichever_comes_first() {
    let (host, incumbent, candidate) = with_second(Stage::Shadow { share_bp: 10_000 });
    let active = host.active().unwrap();
    let labels = candidate.labels.clone().unwrap();
    let answer = |id: &str, classes: &[usize]| {
        let second = host.beside().unwrap().second(id, &active);
        host.feedback().remember(&incumbent, id, (&[], &answers(classes)), &second).unwrap()
    };
    let shadow = |place, classes: Option<&[usize]>| {
        let outputs = classes.map(answers);
        host.feedback().second_answer(place, &labels, &[], outputs.as_deref());
    };
    // The shadow first, then the labels.
    let place = answer("a", &[1, 2, 3, 4]);
    shadow(place, Some(&[1, 9, 3, 9]));
    join(&host, &[labels_of("a", json!([1, 2, 9, 9]))]);
    // A label first, and one after.
    let place = answer("b", &[5, 6]);
    join(&host, &[FeedbackItem { row: Some(1), ..label("b", json!(7)) }]);
    shadow(place, Some(&[5, 7]));
    join(&host, &[FeedbackItem { row: Some(0), ..label("b", json!(5)) }]);
    // One that the shadow failed, one it never ran on, and one that it ran on and nobody labels.
    let place = answer("c", &[8]);
    shadow(place, None);
    let skipped = answer("d", &[8]);
    host.feedback().no_second_answer(skipped);
    join(&host, &[label("c", json!(8)), label("d", json!(8))]);
    let place = answer("e", &[8]);
    shadow(place, Some(&[8]));
    // Nothing counts twice.
    assert_eq!(join(&host, &[label("c", json!(8))]).0, [Duplicate]);
    shadow(place, Some(&[1]));

    let (counts, own) = beside(&host);
    let pairs = (counts.both_right, counts.incumbent_right, counts.candidate_right, counts.both_wrong);
    // a: both, incumbent only, neither, candidate only; b: candidate only, both; c: incumbent only.
    assert_eq!(pairs, (2, 2, 2, 1));
    assert_eq!((counts.incumbent.right, counts.candidate.right, counts.candidate.labels), (4, 4, 7));
    let own = &own[0];
    assert_eq!((own.results.joined, right(own)), (7, (4, 7)));
    assert_eq!(right(&counted(&host)[0].1), (5, 8), "the incumbent's own counts have what was skipped as well");
}

#[test]
fn labels_in_a_split_count_for_the_arm_that_answered() {
    let (host, incumbent, candidate) = with_second(Stage::Split { share_bp: 5_000, experiment: "e".into() });
    let (active, beside_it) = (host.active().unwrap(), host.beside().unwrap());
    let labels = candidate.labels.clone().unwrap();
    for (id, is_candidates, class) in [("a", true, 1), ("b", false, 2), ("c", false, 3), ("d", true, 4)] {
        let (by, about) = if is_candidates { (&candidate, &labels) } else { (&active, &incumbent) };
        let second = beside_it.second(id, by);
        host.feedback().remember(about, id, (&[], &answers(&[class])), &second);
    }
    host.feedback().remember(&incumbent, "plain", (&[], &answers(&[1])), &Second::None);
    let wrong = [label("a", json!(9)), label("b", json!(2)), label("c", json!(3)), label("d", json!(4))];
    join(&host, &wrong);
    join(&host, &[label("plain", json!(1))]);
    let (counts, _) = beside(&host);
    assert_eq!(counts.paired(), 0);
    assert_eq!(
        (counts.incumbent, counts.candidate),
        (RightCounts { labels: 2, right: 2 }, RightCounts { labels: 2, right: 1 },)
    );
}

#[test]
fn a_shadow_that_has_ended_still_gets_its_labels() {
    let (host, incumbent, candidate) = with_second(Stage::Shadow { share_bp: 10_000 });
    let second = host.beside().unwrap().second("a", &host.active().unwrap());
    let place = host.feedback().remember(&incumbent, "a", (&[], &answers(&[1])), &second).unwrap();
    host.feedback().second_answer(place, candidate.labels.as_ref().unwrap(), &[], Some(&answers(&[2])));
    host.end_beside(9);
    join(&host, &[label("a", json!(2))]);
    let (counts, own) = beside(&host);
    assert_eq!((counts.candidate_right, counts.paired()), (1, 1));
    assert_eq!(own.last().unwrap().results.joined, 1);
}

/// A model of which an output is the class itself, as scikit-learn's exports have it.
fn naming(answer: fn(&[&str]) -> Tensor, datatype: DataType, classes: &[&str]) -> ServedModel {
    let mut model = scripted(DataType::Fp64, "1.0.0", 1, |_| Ok(Vec::new()));
    let shape = answer(&[]).shape().iter().map(|_| -1).collect();
    model.signature.outputs = vec![TensorSpec { name: "label".into(), datatype, shape }];
    let task = LabelTask::Classification { classes: classes.iter().map(|class| (*class).to_owned()).collect() };
    let labels = LabelSpec { tensor: "label".into(), task, baseline: None, names_class: true };
    labels.validate().unwrap();
    model.profile = Arc::new(Profile { labels: Some(labels), ..Profile::default() });
    model
}

#[test]
fn an_output_that_names_the_class_is_labelled_like_any_other() {
    let texts = |values: &[&str]| Tensor::from_byte_elements("label", vec![values.len()], values).unwrap();
    let whole = |values: &[&str]| {
        let numbers: Vec<f64> = values.iter().map(|value| value.parse().unwrap()).collect();
        Tensor::from_f64("label", DataType::Int64, vec![values.len()], &numbers).unwrap()
    };
    for (model, tensor, answers) in [
        (naming(texts, DataType::Bytes, &["cat", "dog"]), texts(&["cat", "dog", "fox"]), ["cat", "dog", "fox"]),
        (naming(whole, DataType::Int64, &["3", "7"]), whole(&["3", "7", "9"]), ["3", "7", "9"]),
    ] {
        let (host, name) = (host(100), model.bundle.name.to_string());
        host.activate(model, 1);
        let labels = host.active().unwrap().labels.clone().unwrap();
        host.feedback().remember(&labels, "a", (&[], &[tensor]), &Second::None);
        // Right, wrong, and of no known class, which is right nowhere.
        let told = labels_of("a", json!([answers[0], answers[0], answers[2]]));
        let counts = host.feedback().join(&[told], Some(&name), Some(&labels)).counts;
        assert_eq!(counts.joined, 3);
        let LabelCounts::Classes(counts) = &counted(&host)[0].1.all else { panic!() };
        assert_eq!((counts.total_right(), counts.total()), (1, 3));
        assert_eq!((&counts.predicted, &counts.truth), (&vec![1, 1, 1], &vec![2, 0, 1]));
        assert!(counts.calibration.iter().all(|bin| bin.n == 0), "nothing is known of confidence");
    }
}
