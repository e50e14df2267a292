//! Attributes that are wrong, by hand and by chance. That right ones give the right answers is `tests/tabular.rs`'s matter.

use std::path::PathBuf;
use std::time::Duration;

use muster_shared::bundle::DataType;
use proptest::prelude::*;
use prost::Message as _;
use tract_onnx::pb::tensor_proto::DataType as OnnxType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

use super::super::TractRuntime;
use super::super::tests::Size::{Named, Of};
use super::super::tests::{model, node, value};
use super::DOMAIN;
use crate::runtime::{LoadError, LoadOptions, Model, RunError, Runtime as _};
use crate::tensor::Tensor;

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 7, ints: ints.to_vec(), ..AttributeProto::default() }
}

fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 6, floats: floats.to_vec(), ..AttributeProto::default() }
}

fn texts(name: &str, texts: &[&str]) -> AttributeProto {
    let strings = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    AttributeProto { name: name.into(), r#type: 8, strings, ..AttributeProto::default() }
}

/// A tree that asks twice and has three leaves.
fn tree() -> Vec<AttributeProto> {
    vec![
        ints("nodes_treeids", &[0; 5]),
        ints("nodes_nodeids", &[0, 1, 2, 3, 4]),
        ints("nodes_featureids", &[0, 1, 0, 0, 0]),
        floats("nodes_values", &[0.5, 0.25, 0.0, 0.0, 0.0]),
        texts("nodes_modes", &["BRANCH_LEQ", "BRANCH_LT", "LEAF", "LEAF", "LEAF"]),
        ints("nodes_truenodeids", &[1, 3, 0, 0, 0]),
        ints("nodes_falsenodeids", &[2, 4, 0, 0, 0]),
        ints("target_treeids", &[0; 3]),
        ints("target_nodeids", &[2, 3, 4]),
        ints("target_ids", &[0; 3]),
        floats("target_weights", &[1.0, 2.0, 4.0]),
    ]
}

fn load(operator: &str, attributes: Vec<AttributeProto>) -> Result<Box<dyn Model>, LoadError> {
    let of_domain = NodeProto { domain: DOMAIN.into(), ..node(operator, &["x"], "y", attributes) };
    let graph = GraphProto {
        node: vec![of_domain],
        input: vec![value("x", OnnxType::Float, &[Named("N"), Of(2)])],
        output: vec![value("y", OnnxType::Float, &[Named("N"), Named("M")])],
        ..GraphProto::default()
    };
    TractRuntime.load(&model(graph), &LoadOptions::default())
}

/// The reason why a tree is refused once `change` stands in place of the attribute of its name.
fn refused(change: AttributeProto) -> String {
    let mut attributes = tree();
    attributes.retain(|attribute| attribute.name != change.name);
    attributes.push(change);
    load("TreeEnsembleRegressor", attributes).err().unwrap().to_string()
}

#[test]
fn a_tree_answers_as_it_reads() {
    let model = load("TreeEnsembleRegressor", tree()).unwrap();
    let rows = [[0.5, 0.25], [0.5, 0.2], [0.6, 0.0], [f32::NAN, 0.0], [0.0, f32::NAN]];
    // Few rows go through trees side by side, many rows side by side through each tree.
    for copies in [1, 2, 3, 20] {
        let input = Tensor::from_f32("x", vec![copies * 5, 2], &rows.as_flattened().repeat(copies)).unwrap();
        let answer: Vec<f64> = model.run(&[input]).unwrap()[0].values().collect();
        assert_eq!(answer, [4.0, 2.0, 1.0, 1.0, 4.0].repeat(copies));
    }
}

#[test]
fn wrong_trees_are_refused_with_the_reason() {
    for (change, reason) in [
        (ints("nodes_truenodeids", &[1, 0, 0, 0, 0]), "the trees go round in a circle"),
        (ints("nodes_falsenodeids", &[0, 4, 0, 0, 0]), "the trees go round in a circle"),
        (ints("nodes_truenodeids", &[9, 3, 0, 0, 0]), "node 0 of tree 0 leads to node 9, which the tree does not have"),
        (ints("nodes_truenodeids", &[1, 3, 0, 0]), "attribute 'nodes_truenodeids' has 4 elements where 5 are needed"),
        (ints("nodes_nodeids", &[0, 1, 2, 3, 3]), "tree 0 has two nodes 3"),
        (ints("nodes_featureids", &[0, -1, 0, 0, 0]), "attribute 'nodes_featureids': -1 is no index"),
        (ints("nodes_featureids", &[0, i64::MAX, 0, 0, 0]), "is no feature"),
        (ints("nodes_featureids", &[0, 7, 0, 0, 0]), "its trees ask for 8 features, but its input has 2"),
        (
            texts("nodes_modes", &["BRANCH_LEQ", "BRANCH_XOR", "LEAF", "LEAF", "LEAF"]),
            "there is no mode \"BRANCH_XOR\"",
        ),
        (ints("target_nodeids", &[2, 3, 8]), "there is a weight for node 8 of tree 0, which does not exist"),
        (ints("target_nodeids", &[2, 3, 1]), "node 1 of tree 0 has a weight, but is no leaf"),
        (ints("target_ids", &[0, 0, 1]), "attribute 'target_ids': 1 is past the last of 1"),
        (floats("base_values", &[1.0, 2.0]), "attribute 'base_values' has 2 elements; none or [1] are possible"),
        (
            AttributeProto { name: "n_targets".into(), r#type: 2, i: i64::MAX, ..AttributeProto::default() },
            "1 to 65536 are possible",
        ),
        (AttributeProto { name: "nodes_nodeids".into(), r#type: 7, ..AttributeProto::default() }, "it has no nodes"),
    ] {
        let said = refused(change);
        assert!(said.contains(reason), "{said:?} does not contain {reason:?}");
    }
}

#[test]
fn operators_of_other_domains_are_others() {
    let onnx = model(GraphProto {
        node: vec![node("Scaler", &["x"], "y", vec![floats("scale", &[1.0]), floats("offset", &[0.0])])],
        input: vec![value("x", OnnxType::Float, &[Of(1)])],
        output: vec![value("y", OnnxType::Float, &[Of(1)])],
        ..GraphProto::default()
    });
    let error = TractRuntime.load(&onnx, &LoadOptions::default()).err().unwrap();
    assert!(error.to_string().contains("it has no operator Scaler;"), "{error}");
}

#[test]
fn a_category_that_must_be_known_is_the_requests_fault() {
    let cats = vec![
        ints("cats_int64s", &[1, 2]),
        AttributeProto { name: "zeros".into(), r#type: 2, i: 0, ..AttributeProto::default() },
    ];
    let model = load("OneHotEncoder", cats).unwrap();
    let run = |values: &[f32]| model.run(&[Tensor::from_f32("x", vec![1, 2], values).unwrap()]);
    assert_eq!(run(&[2.0, 1.0]).unwrap()[0].values().collect::<Vec<_>>(), [0.0, 1.0, 1.0, 0.0]);
    let error = run(&[2.0, f32::NAN]).unwrap_err();
    assert!(error.is_request_fault(), "{error}");
    assert!(error.to_string().contains("element 1 is of a category that the model does not know"), "{error}");
}

/// Exports that between them have every kind of attribute.
const EXPORTS: [&str; 11] = [
    "forest-classifier",
    "forest-double",
    "boosting-binary",
    "lightgbm-categories",
    "svc-probability",
    "svr",
    "columns-logistic",
    "impute-normalise",
    "ordinal-boosting",
    "logistic-maps",
    "min-max-robust",
];

fn export(name: &str) -> ModelProto {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tabular");
    ModelProto::decode(std::fs::read(path.join(format!("{name}.onnx"))).unwrap().as_slice()).unwrap()
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![-2..70_i64, Just(i64::MIN), Just(i64::MAX), Just(1 << 32), Just(1 << 16)]
}

fn float() -> impl Strategy<Value = f32> {
    prop_oneof![-2.0..70.0_f32, Just(f32::NAN), Just(f32::INFINITY), Just(-0.0), Just(f32::MAX)]
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![&b"LEAF"[..], b"BRANCH_EQ", b"BRANCH_GTE", b"", b"\xff", b"LOGISTIC", b"POLY"])
        .prop_map(<[u8]>::to_vec)
}

/// Changes the element of `list` that `at` points to, or cuts the list there, or says it twice.
fn change<T: Clone>(list: &mut Vec<T>, at: usize, how: u8, new: T) {
    if list.is_empty() || how == 0 {
        return list.push(new);
    }
    let at = at % list.len();
    match how {
        1 => list.truncate(at),
        2 => list.extend_from_within(at..),
        _ => list[at] = new,
    }
}

/// What a model is given: ones, and texts.
fn inputs(model: &dyn Model) -> Vec<Tensor> {
    let of_spec = |spec: &muster_shared::bundle::TensorSpec| {
        let shape: Vec<usize> = spec.shape.iter().map(|size| usize::try_from(*size).unwrap_or(1)).collect();
        let count = shape.iter().product();
        if spec.datatype == DataType::Bytes {
            return Tensor::from_byte_elements(spec.name.as_str(), shape, vec!["north"; count]);
        }
        Tensor::from_f64(spec.name.as_str(), spec.datatype, shape, &vec![1.0; count])
    };
    model.signature().inputs.iter().map(|spec| of_spec(spec).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn damaged_attributes_are_refused_or_harmless(
        name in prop::sample::select(EXPORTS.to_vec()),
        places in (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<usize>()),
        how in 0_u8..8,
        new in (number(), float(), text()),
    ) {
        let mut proto = export(name);
        let nodes = &mut proto.graph.as_mut().unwrap().node;
        let mut own: Vec<&mut NodeProto> = nodes.iter_mut().filter(|node| node.domain == DOMAIN).collect();
        let at = places.0.index(own.len());
        let attributes = &mut own[at].attribute;
        if !attributes.is_empty() {
            let at = places.1.index(attributes.len());
            let attribute = &mut attributes[at];
            let (number, float, text) = new;
            match attribute.r#type {
                1 => attribute.f = float,
                2 => attribute.i = number,
                3 => attribute.s = text,
                4 => if let Some(tensor) = &mut attribute.t {
                    change(&mut tensor.raw_data, places.2, how, 0);
                    change(&mut tensor.dims, places.2, how, number);
                },
                6 => change(&mut attribute.floats, places.2, how, float),
                7 => change(&mut attribute.ints, places.2, how, number),
                _ => change(&mut attribute.strings, places.2, how, text),
            }
        }
        let options = LoadOptions { time_limit: Duration::from_secs(20), ..LoadOptions::default() };
        match TractRuntime.load(&proto.encode_to_vec(), &options) {
            Ok(model) => {
                let answer = model.run(&inputs(model.as_ref()));
                prop_assert!(!matches!(answer, Err(RunError::Panicked { .. } | RunError::TooSlow { .. })), "{:?}", answer.err());
            }
            Err(error) => {
                prop_assert!(!matches!(error, LoadError::Panicked { .. } | LoadError::TooSlow { .. }), "{}", error);
            }
        }
    }
}
