use muster_shared::profile::Column;
use proptest::prelude::*;

use super::*;

fn spec(name: &str, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype: DataType::Fp32, shape: shape.to_vec() }
}

fn signature() -> ModelSignature {
    let words = TensorSpec { name: "words".into(), datatype: DataType::Bytes, shape: vec![-1, 2] };
    ModelSignature {
        inputs: vec![spec("image", &[-1, 2, 2]), spec("gain", &[3]), words],
        outputs: vec![spec("scores", &[-1, 3]), spec("open", &[-1, -1])],
    }
}

fn numeric(source: Source) -> Column {
    let reference = Reference::Numeric { lower_edges: vec![0.0], max: 1.0, counts: vec![1], missing: 0 };
    Column { name: "watched".into(), source, reference }
}

fn class(tensor: &str, classes: usize) -> Column {
    let reference =
        Reference::Class { classes: (0..classes).map(|class| class.to_string()).collect(), counts: vec![0; classes] };
    Column { name: "class".into(), source: Source::PredictedClass { tensor: tensor.into() }, reference }
}

fn input(tensor: &str, index: u32) -> Column {
    numeric(Source::Input { tensor: tensor.into(), index })
}

fn output(tensor: &str, index: u32) -> Column {
    numeric(Source::Output { tensor: tensor.into(), index })
}

fn confidence(tensor: &str) -> Column {
    numeric(Source::Confidence { tensor: tensor.into() })
}

fn tensor(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(name, shape.to_vec(), values).unwrap()
}

/// The values of every column in the order of visits; NaN as -1, none as -2.
fn visited(columns: Vec<Column>, inputs: &[Tensor], outputs: &[Tensor]) -> Vec<Vec<f64>> {
    let mut seen = vec![Vec::new(); columns.len()];
    let extractor = ColumnExtractor::new(&Profile { columns, ..Profile::default() }, &signature()).unwrap();
    extractor.visit(inputs, &Images::NONE, outputs, |_, column, value| {
        seen[column].push(value.map_or(-2.0, |value| if value.is_nan() { -1.0 } else { value }));
    });
    seen
}

#[test]
fn every_row_and_kind_of_column() {
    let image = tensor("image", &[2, 2, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let gain = tensor("gain", &[3], &[7.0, 8.0, 9.0]);
    let scores = tensor("scores", &[2, 3], &[0.1, 0.7, 0.2, 0.5, 0.5, 0.0]);
    let columns = vec![
        class("scores", 3),
        input("image", 3),
        output("scores", 0),
        confidence("scores"),
        input("gain", 2),
        input("image", 0),
    ];
    let seen = visited(columns, &[gain, image], &[scores]);
    // A tensor without a batch is one row; of equals the first is the class.
    let (low, high) = (f64::from(0.1_f32), f64::from(0.7_f32));
    let expected = [vec![1.0, 0.0], vec![3.0, 7.0], vec![low, 0.5], vec![high, 0.5], vec![9.0], vec![0.0, 4.0]];
    assert_eq!(seen, expected);
}

#[test]
fn scores_and_categories_of_each_row() {
    let entropy = |tensor: &str| numeric(Source::Entropy { tensor: tensor.into() });
    let margin = |tensor: &str| numeric(Source::Margin { tensor: tensor.into() });
    let scores = tensor("scores", &[3, 3], &[0.25, 0.5, 0.25, 1.0, 0.0, 0.0, -0.5, 1.0, 0.5]);
    let seen = visited(vec![entropy("scores"), margin("scores")], &[], &[scores]);
    // By hand: ½ ln 2 + 2 · ¼ ln 4 = 1.5 ln 2.
    assert!((seen[0][0] - 1.5 * 2f64.ln()).abs() < 1e-12 && seen[0][1..] == [0.0, -1.0], "{:?}", seen[0]);
    assert_eq!(seen[1], [0.25, 1.0, 0.5]);
    assert_eq!(visited(vec![margin("open")], &[], &[tensor("open", &[1, 1], &[1.0])]), [[-2.0]]);

    let category = |tensor: &str, index, classes: &[&str]| {
        let classes: Vec<String> = classes.iter().map(|class| (*class).to_owned()).collect();
        let counts = vec![0; classes.len()];
        let source = Source::Input { tensor: tensor.into(), index };
        Column { name: "category".into(), source, reference: Reference::Class { classes, counts } }
    };
    let gain = tensor("gain", &[3], &[7.0, 9.0, f32::NAN]);
    let words = ["north", "", "south", "x", "north", "y"];
    let words = Tensor::from_byte_elements("words", vec![3, 2], words).unwrap();
    let columns = vec![
        category("gain", 0, &["1", "7"]),
        category("gain", 1, &["1", "7"]),
        category("gain", 1, &["1", "(other)"]),
        category("gain", 2, &["1", "7"]),
        category("gain", 2, &["1", "(missing)"]),
        category("words", 0, &["south", "north"]),
        category("words", 1, &["x", "(other)"]),
    ];
    let seen: Vec<Vec<f64>> = visited(columns, &[gain, words], &[]);
    let none = -2.0;
    let expected: [&[f64]; 7] = [&[1.0], &[-1.0], &[1.0], &[none], &[1.0], &[1.0, 0.0, 1.0], &[none, 0.0, 1.0]];
    assert_eq!(seen, expected);
}

#[test]
fn figures_of_wide_tensors() {
    let probe = |probe| numeric(Source::Probe { of: Side::Input, tensor: "image".into(), probe });
    let projection =
        |number, seed| numeric(Source::Projection { of: Side::Input, tensor: "image".into(), seed, number });
    let image = tensor("image", &[2, 2, 2], &[0.0, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0]);
    let columns = vec![probe(Probe::Mean), probe(Probe::Zeros), projection(0, 7), probe(Probe::Saturated { at: 5.0 })];
    let seen = visited(columns, std::slice::from_ref(&image), &[]);
    assert_eq!((&seen[0], &seen[1], &seen[3]), (&vec![1.5, 5.0], &vec![0.25, 0.0], &vec![0.0, 1.0]));
    assert_eq!(seen[2].len(), 2);
    let refused = |columns: Vec<Column>| {
        ColumnExtractor::new(&Profile { columns, ..Profile::default() }, &signature()).unwrap_err().reason
    };
    assert!(refused(vec![projection(0, 7), projection(1, 8)]).contains("another seed"));
    let channel = Probe::ChannelMean { channel: 0, channels: 3, last: true };
    assert!(refused(vec![probe(channel)]).contains("not those of 3 channels"));
}

#[test]
fn what_is_not_there_is_missing() {
    let image = tensor("image", &[2, 2, 2], &[0.0; 8]);
    let broken = tensor("scores", &[2, 3], &[0.1, f32::NAN, 0.2, 0.5, 0.4, 0.1]);
    let open = tensor("open", &[2, 1], &[0.25, 0.5]);
    let columns = vec![
        class("scores", 3),
        confidence("scores"),
        input("gain", 0),
        output("open", 0),
        output("open", 1),
        input("image", 0),
    ];
    let seen = visited(columns, &[image], &[broken, open]);
    let expected =
        [vec![-2.0, 0.0], vec![-1.0, 0.5], vec![-2.0, -2.0], vec![0.25, 0.5], vec![-2.0, -2.0], vec![0.0, 0.0]];
    assert_eq!(seen, expected);
    assert_eq!(visited(vec![input("image", 0)], &[], &[]), [vec![-2.0]]);
    assert_eq!(
        visited(vec![output("open", 0), class("open", 2)], &[], &[tensor("open", &[1, 0], &[])]),
        [[-2.0], [-2.0]]
    );
}

#[test]
fn a_profile_for_another_model_is_refused() {
    let refuse = |column: Column| {
        ColumnExtractor::new(&Profile { columns: vec![column], ..Profile::default() }, &signature())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refuse(input("scores", 0)),
        "monitored column \"watched\" does not fit the model: the model has no input \"scores\""
    );
    assert!(refuse(input("image", 4)).ends_with("element 4 is past the end of input \"image\", whose rows have 4"));
    assert!(refuse(input("gain", 3)).contains("whose rows have 3"));
    assert!(refuse(confidence("image")).contains("no output \"image\""));
    assert!(refuse(class("scores", 4)).contains("4 classes are named, but rows of output \"scores\" have 3 elements"));
    // Where the model leaves the row open, requests decide.
    ColumnExtractor::new(
        &Profile { columns: vec![output("open", 900), class("scores", 2)], ..Profile::default() },
        &signature(),
    )
    .unwrap();
}

proptest! {
    #[test]
    fn every_column_is_visited_once_a_row(rows in 0_usize..6, width in 0_usize..5, value: f32) {
        let open = tensor("open", &[rows, width], &vec![value; rows * width]);
        let seen = visited(vec![output("open", 2), class("open", 2), confidence("open")], &[], &[open]);
        for column in &seen {
            prop_assert_eq!(column.len(), rows);
        }
        prop_assert!(width > 2 || seen[0].iter().all(|value| value.total_cmp(&-2.0).is_eq()));
    }
}
