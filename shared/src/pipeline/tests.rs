use proptest::prelude::*;

use super::*;
use crate::damage;

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: shape.to_vec() }
}

fn step(from: &[&str], to: &str, operation: Operation) -> Step {
    Step { from: from.iter().map(|name| (*name).to_owned()).collect(), to: to.into(), operation }
}

fn outer() -> ModelSignature {
    ModelSignature {
        inputs: vec![
            spec("age", DataType::Fp32, &[-1, 1]),
            spec("income", DataType::Fp64, &[-1]),
            spec("city", DataType::Bytes, &[-1, 1]),
        ],
        outputs: vec![
            spec("label", DataType::Bytes, &[-1]),
            spec("p", DataType::Fp32, &[-1, 3]),
            spec("top", DataType::Fp32, &[-1, 2]),
            spec("top-classes", DataType::Int64, &[-1, 2]),
        ],
    }
}

fn pipeline() -> Pipeline {
    let texts = |texts: &[&str]| Categories::Texts(texts.iter().map(|text| (*text).to_owned()).collect());
    Pipeline {
        model: ModelSignature {
            inputs: vec![spec("x", DataType::Fp32, &[-1, 5])],
            outputs: vec![spec("p", DataType::Fp32, &[-1, 3])],
        },
        pre: vec![
            step(&["age", "income"], "numbers", Operation::Impute { values: vec![40.0, 2_000.0] }),
            step(&["numbers"], "numbers", Operation::Scale { center: vec![40.0, 2e3], scale: vec![10.0, 500.0] }),
            step(
                &["city"],
                "city",
                Operation::OneHot { categories: vec![texts(&["Graz", "Lyon"])], unknown: Unknown::Other },
            ),
            step(&["numbers", "city"], "x", Operation::Join),
        ],
        post: vec![
            step(&["p"], "p", Operation::Softmax),
            step(&["p"], "top", Operation::TopK { k: 2, indices: "top-classes".into() }),
            step(&["p"], "class", Operation::Argmax),
            step(&["class"], "label", Operation::Labels { labels: vec!["a".into(), "b".into(), "c".into()] }),
        ],
    }
}

#[test]
fn a_pipeline_leads_from_what_callers_send_to_what_they_get() {
    assert_eq!(pipeline().validate(&outer()), Ok(()));
    let identity = Pipeline { model: outer(), pre: Vec::new(), post: Vec::new() };
    assert_eq!(identity.validate(&outer()), Ok(()));
}

#[test]
fn what_does_not_fit_is_refused_with_the_step() {
    let refuse = |change: &dyn Fn(&mut Pipeline), expected: &str| {
        let mut pipeline = pipeline();
        change(&mut pipeline);
        let error = pipeline.validate(&outer()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refuse(
        &|p| p.pre[1].operation = Operation::Scale { center: vec![0.0; 3], scale: vec![1.0] },
        "pipeline, pre step 2 (scale to \"numbers\"): center has 3 entries for 2 columns",
    );
    refuse(
        &|p| p.pre[1].operation = Operation::Scale { center: vec![f64::NAN], scale: vec![1.0] },
        "center: entry 1 is not a finite number",
    );
    refuse(&|p| p.pre[1].operation = Operation::Scale { center: vec![0.0], scale: vec![0.0] }, "divided by 0");
    refuse(&|p| p.pre[0].from = vec!["salary".into()], "there is no value \"salary\"");
    refuse(&|p| p.pre[0].from.push("city".into()), "pre step 1 (impute to \"numbers\"): texts and numbers");
    refuse(&|p| p.pre[2].operation = Operation::Log1p, "numbers are read, but BYTES");
    refuse(
        &|p| {
            p.pre[2].operation =
                Operation::OneHot { categories: vec![Categories::Integers(vec![1])], unknown: Unknown::Error };
        },
        "not of the type of the values",
    );
    refuse(&|p| p.pre.truncate(3), "the model's input \"x\" is given by no step");
    refuse(
        &|p| {
            p.pre.pop();
            p.pre.push(step(&["numbers"], "x", Operation::Join));
        },
        "the model's input \"x\" has the shape [-1, 5], but the steps give [-1, 2]",
    );
    refuse(&|p| p.post[1].operation = Operation::TopK { k: 4, indices: "i".into() }, "post step 2");
    refuse(&|p| drop(p.post.pop()), "output \"label\" is written by no step");
    refuse(&|p| drop(p.post.remove(2)), "post step 3 (labels to \"label\"): there is no value \"class\"");
    refuse(&|p| p.pre = vec![step(&["age"], "x", Operation::Log1p); MAX_STEPS + 1], "at most 64 steps");
    refuse(&|p| p.pre[0].operation = Operation::Reshape { shape: vec![u32::MAX; 9] }, "cannot have the shape");
}

#[test]
fn images_and_series_have_forms_of_their_own() {
    let form = |operation: Operation, input: TensorSpec| {
        forms_after(Half::Pre, &[input], &[step(&["in"], "out", operation)])
            .map(|forms| forms["out"].shape.clone())
            .map_err(|error| error.to_string())
    };
    let image = |text: &str| Operation::Image(serde_json::from_str(text).unwrap());
    let file = || spec("in", DataType::Bytes, &[-1, 1]);
    let resized = r#"{"resize": {"size": {"shorter": 256}}, "crop": [224, 200]}"#;
    assert_eq!(form(image(resized), file()), Ok(vec![-1, 3, 200, 224]));
    let gray = r#"{"resize": {"size": {"exact": [8, 4]}}, "colour": "gray", "layout": "nhwc"}"#;
    assert_eq!(form(image(gray), file()), Ok(vec![-1, 4, 8, 1]));
    assert!(form(image("{}"), file()).unwrap_err().contains("would follow from the image"));
    assert!(form(image(r#"{"crop": [5000, 1]}"#), file()).unwrap_err().contains("5000 pixels"));
    let huge = r#"{"crop": [4096, 4096]}"#;
    assert!(form(image(huge), file()).unwrap_err().contains("at most 16777216 elements"));
    let series = || spec("in", DataType::Fp32, &[-1, 3]);
    assert_eq!(form(Operation::Window { size: 16, hop: 4 }, series()), Ok(vec![-1, 16, 3]));
    assert!(form(Operation::Window { size: 16, hop: 0 }, series()).is_err());
    assert!(form(Operation::Window { size: u32::MAX, hop: 1 }, series()).is_err());
}

#[test]
fn a_description_reads_as_it_is_documented() {
    let text = r#"{"from": ["x"], "to": "y", "do": "softmax"}"#;
    assert_eq!(serde_json::from_str::<Step>(text).unwrap(), step(&["x"], "y", Operation::Softmax));
    let text =
        r#"{"from": ["x"], "to": "y", "do": {"min-max": {"data-min": [0], "data-max": [1], "low": 0, "high": 1}}}"#;
    assert!(matches!(serde_json::from_str::<Step>(text).unwrap().operation, Operation::MinMax { clip: false, .. }));
    let strange = r#"{"from": ["x"], "to": "y", "do": {"clip": {"min": 0, "mx": 1}}}"#;
    assert!(serde_json::from_str::<Step>(strange).is_err());
}

proptest! {
    #[test]
    fn a_damaged_pipeline_is_refused_or_valid(json in damage::json(serde_json::to_value(pipeline()).unwrap())) {
        if let Ok(pipeline) = serde_json::from_value::<Pipeline>(json) {
            let _ = pipeline.validate(&outer());
        }
    }
}
