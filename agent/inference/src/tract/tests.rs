//! Models made here, for what the committed ones do not try.

use muster_shared::bundle::DataType;
use prost::Message as _;
use tract_onnx::pb::tensor_proto::DataType as OnnxType;
use tract_onnx::pb::tensor_shape_proto::{Dimension as OnnxDimension, dimension::Value as DimensionValue};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

use super::*;
use crate::runtime::RunError;
use crate::tensor::Tensor;

/// A declared dimension: a size, a name, or nothing.
pub(crate) enum Size {
    Of(i64),
    Named(&'static str),
    Unknown,
}
use Size::{Named, Of, Unknown};

pub(crate) fn value(name: &str, datatype: OnnxType, sizes: &[Size]) -> ValueInfoProto {
    let dim = |size: &Size| OnnxDimension {
        value: match size {
            Of(size) => Some(DimensionValue::DimValue(*size)),
            Named(name) => Some(DimensionValue::DimParam((*name).into())),
            Unknown => None,
        },
        ..OnnxDimension::default()
    };
    typed(name, datatype, Some(TensorShapeProto { dim: sizes.iter().map(dim).collect() }))
}

fn typed(name: &str, datatype: OnnxType, shape: Option<TensorShapeProto>) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: datatype as i32, shape };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..ValueInfoProto::default() }
}

pub(crate) fn node(operator: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: operator.into(),
        input: inputs.iter().map(|name| (*name).into()).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

fn weight(name: &str, dims: &[i64], value: f32) -> TensorProto {
    let elements = usize::try_from(dims.iter().product::<i64>()).unwrap();
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: OnnxType::Float as i32,
        float_data: vec![value; elements],
        ..TensorProto::default()
    }
}

pub(crate) fn model(graph: GraphProto) -> Vec<u8> {
    let opset = OperatorSetIdProto { domain: String::new(), version: 17 };
    let model = ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() };
    model.encode_to_vec()
}

/// A model that adds its input to itself.
fn doubler(input: ValueInfoProto, output: ValueInfoProto) -> Vec<u8> {
    let (given, result) = (input.name.clone(), output.name.clone());
    model(GraphProto {
        node: vec![node("Add", &[&given, &given], &result, Vec::new())],
        input: vec![input],
        output: vec![output],
        ..GraphProto::default()
    })
}

fn loaded(onnx: &[u8]) -> Box<dyn Model> {
    TractRuntime.load(onnx, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(onnx: &[u8]) -> LoadError {
    TractRuntime.load(onnx, &LoadOptions::default()).err().unwrap()
}

#[test]
fn every_number_type_goes_in_and_out() {
    for (onnx, datatype) in [
        (OnnxType::Uint8, DataType::Uint8),
        (OnnxType::Uint16, DataType::Uint16),
        (OnnxType::Uint32, DataType::Uint32),
        (OnnxType::Uint64, DataType::Uint64),
        (OnnxType::Int8, DataType::Int8),
        (OnnxType::Int16, DataType::Int16),
        (OnnxType::Int32, DataType::Int32),
        (OnnxType::Int64, DataType::Int64),
        (OnnxType::Float16, DataType::Fp16),
        (OnnxType::Float, DataType::Fp32),
        (OnnxType::Double, DataType::Fp64),
    ] {
        let model = loaded(&doubler(value("x", onnx, &[Named("N"), Of(2)]), value("y", onnx, &[Named("N"), Of(2)])));
        assert_eq!(model.signature().outputs[0].datatype, datatype);
        for rows in [1, 2] {
            let given = [1.0, 20.0, 3.0, 7.0];
            let input = Tensor::from_f64("x", datatype, vec![rows, 2], &given[..rows * 2]).unwrap();
            let outputs = model.run(&[input]).unwrap();
            let expected: Vec<f64> = given[..rows * 2].iter().map(|v| v * 2.0).collect();
            assert_eq!(outputs[0].values().collect::<Vec<_>>(), expected, "{datatype}");
        }
    }
    let exact = loaded(&doubler(value("x", OnnxType::Int64, &[Of(1)]), value("y", OnnxType::Int64, &[Of(1)])));
    let input = Tensor::new("x", DataType::Int64, vec![1], 4_503_599_627_370_497_i64.to_le_bytes().to_vec()).unwrap();
    assert_eq!(exact.run(&[input]).unwrap()[0].data(), 9_007_199_254_740_994_i64.to_le_bytes());
}

#[test]
fn texts_go_in_and_out() {
    let onnx = model(GraphProto {
        node: vec![node(
            "Concat",
            &["x", "x"],
            "y",
            vec![AttributeProto { name: "axis".into(), r#type: 2, i: 1, ..AttributeProto::default() }],
        )],
        input: vec![value("x", OnnxType::String, &[Named("N"), Of(1)])],
        output: vec![value("y", OnnxType::String, &[Named("N"), Of(2)])],
        ..GraphProto::default()
    });
    let model = loaded(&onnx);
    assert_eq!(model.signature().outputs[0].datatype, DataType::Bytes);
    let outputs = model.run(&[Tensor::from_byte_elements("x", vec![2, 1], ["Öl", ""]).unwrap()]).unwrap();
    assert_eq!(outputs[0].shape(), [2, 2]);
    assert!(outputs[0].byte_elements().eq(["Öl", "Öl", "", ""].map(str::as_bytes)));
    let error = model.run(&[Tensor::from_byte_elements("x", vec![1, 1], [b"\xff"]).unwrap()]).unwrap_err();
    assert_eq!(error.to_string(), "input \"x\", element 0: the model takes texts, and this is not UTF-8");
    assert!(error.is_request_fault());
}

#[test]
fn outputs_that_are_not_declared_are_found_out() {
    let matmul = |output: ValueInfoProto| {
        model(GraphProto {
            node: vec![node("MatMul", &["x", "w"], "y", Vec::new())],
            input: vec![value("x", OnnxType::Float, &[Unknown, Of(3)])],
            output: vec![output],
            initializer: vec![weight("w", &[3, 5], 0.5)],
            ..GraphProto::default()
        })
    };
    let shape = |onnx: &[u8]| loaded(onnx).signature().outputs[0].shape.clone();
    assert_eq!(shape(&matmul(typed("y", OnnxType::Float, None))), [-1, 5]);
    assert_eq!(shape(&matmul(value("y", OnnxType::Float, &[Unknown, Unknown]))), [-1, 5]);
    assert_eq!(shape(&matmul(ValueInfoProto { name: "y".into(), ..ValueInfoProto::default() })), [-1, 5]);
    // Declared wrongly: the batch of one that the exporter happened to trace with.
    assert_eq!(shape(&matmul(value("y", OnnxType::Float, &[Of(1), Of(5)]))), [-1, 5]);
    assert_eq!(shape(&matmul(value("y", OnnxType::Float, &[Named("N"), Of(7)]))), [-1, -1]);
}

#[test]
fn images_of_any_size_are_prepared_at_a_size_that_fits() {
    let ints =
        |name: &str, ints: Vec<i64>| AttributeProto { name: name.into(), r#type: 7, ints, ..AttributeProto::default() };
    let sizes = || [Named("N"), Of(1), Named("height"), Named("width")];
    let onnx = model(GraphProto {
        node: vec![node("Conv", &["x", "w"], "y", vec![ints("kernel_shape", vec![5, 5])])],
        input: vec![value("x", OnnxType::Float, &sizes())],
        output: vec![value("y", OnnxType::Float, &sizes())],
        initializer: vec![weight("w", &[1, 1, 5, 5], 1.0)],
        ..GraphProto::default()
    });
    let model = loaded(&onnx);
    let image = |height: usize, width: usize| {
        Tensor::from_f32("x", vec![1, 1, height, width], &vec![1.0; height * width]).unwrap()
    };
    let outputs = model.run(&[image(7, 6)]).unwrap();
    assert_eq!(outputs[0].shape(), [1, 1, 3, 2]);
    assert!(outputs[0].values().all(|sum| (sum - 25.0).abs() < 1e-6));
    model.run(&[image(5, 5)]).unwrap();
    // Filters that meet nothing but padding give nothing.
    assert_eq!(model.run(&[image(2, 2)]).unwrap()[0].element_count(), 0);
}

#[test]
fn shapes_that_do_not_go_together_are_an_error_every_time() {
    let with = |operator: &str| {
        let free = |name: &str, dimension: &'static str| value(name, OnnxType::Float, &[Of(1), Named(dimension)]);
        loaded(&model(GraphProto {
            node: vec![node(operator, &["x", "z"], "y", Vec::new())],
            input: vec![free("x", "A"), free("z", "B")],
            output: vec![value("y", OnnxType::Float, &[Of(1), Unknown])],
            ..GraphProto::default()
        }))
    };
    let ones = |name: &str, size: usize| Tensor::from_f32(name, vec![1, size], &vec![1.0; size]).unwrap();
    // One is found out while preparing, the other only while running.
    let (matmul, add) = (with("MatMul"), with("Add"));
    for _ in 0..2 {
        let error = matmul.run(&[ones("x", 2), ones("z", 3)]).unwrap_err();
        assert!(matches!(error, RunError::Unpreparable { .. }) && error.is_request_fault(), "{error}");
        let error = add.run(&[ones("x", 2), ones("z", 3)]).unwrap_err();
        assert!(matches!(error, RunError::Failed { .. }), "{error}");
    }
    assert_eq!(add.run(&[ones("x", 2), ones("z", 2)]).unwrap()[0].values().collect::<Vec<_>>(), [2.0, 2.0]);
}

#[test]
fn only_so_many_shapes_stay_prepared() {
    let onnx = doubler(value("x", OnnxType::Float, &[Named("N")]), value("y", OnnxType::Float, &[Named("N")]));
    let options = LoadOptions { max_prepared_shapes: 3, ..LoadOptions::default() };
    let model = load::load(&onnx, &options).unwrap();
    let run = |rows: usize| model.run(&[Tensor::from_f32("x", vec![rows], &vec![1.0; rows]).unwrap()]).unwrap();
    for rows in [2, 3, 2, 4, 1] {
        assert_eq!(run(rows)[0].shape(), [rows]);
    }
    assert_eq!(model.prepared.kept(), [[[4]], [[2]]]);
    // A file as large as all that may be kept leaves room for one shape besides the first.
    let options = LoadOptions { max_prepared_bytes: onnx.len(), ..LoadOptions::default() };
    let model = load::load(&onnx, &options).unwrap();
    for rows in 2..9 {
        model.run(&[Tensor::from_f32("x", vec![rows], &vec![1.0; rows]).unwrap()]).unwrap();
    }
    assert_eq!(model.prepared.kept(), [[[8]]]);
}

#[test]
fn memory_is_counted_from_weights_and_the_largest_step() {
    let wide = |rows: Size| {
        model(GraphProto {
            node: vec![
                node("MatMul", &["x", "w1"], "wide", Vec::new()),
                node("Relu", &["wide"], "positive", Vec::new()),
                node("MatMul", &["positive", "w2"], "y", Vec::new()),
            ],
            input: vec![value("x", OnnxType::Float, &[rows, Of(64)])],
            output: vec![value("y", OnnxType::Float, &[Unknown, Of(8)])],
            initializer: vec![weight("w1", &[64, 1_024], 0.5), weight("w2", &[1_024, 8], 0.5)],
            ..GraphProto::default()
        })
    };
    let weights = (64 * 1_024 + 1_024 * 8) * 4;
    let one = loaded(&wide(Of(1))).memory_bytes();
    // Kept in panels, weights take a little more; a row of 1,024 and what makes it is small beside them.
    assert!((weights..weights * 5 / 4).contains(&one), "{one} for {weights} bytes of weights");
    let many = loaded(&wide(Of(512))).memory_bytes();
    let row = 512 * 1_024 * 4;
    assert!((weights + row..weights * 5 / 4 + row * 5 / 2).contains(&many), "{many}");
    let free = wide(Named("N"));
    assert_eq!(loaded(&free).memory_bytes(), one + free.len() as u64, "the graph stays for other sizes");
}

#[test]
fn dimension_names_are_never_parsed() {
    let deep: &'static str = Box::leak("(".repeat(200_000).into_boxed_str());
    for name in [deep, "N+", "N/0", "9999999999999999999999", "N*N*N"] {
        let onnx = doubler(value("x", OnnxType::Float, &[Named(name)]), value("y", OnnxType::Float, &[Named(name)]));
        let input = Tensor::from_f32("x", vec![3], &[1.0, 2.0, 3.0]).unwrap();
        assert_eq!(loaded(&onnx).run(&[input]).unwrap()[0].shape(), [3]);
    }
}

#[test]
fn files_that_cannot_be_served_are_refused_with_a_reason() {
    let float = |name: &str| value(name, OnnxType::Float, &[Of(1)]);
    let graph = |node: NodeProto, inputs: Vec<ValueInfoProto>, initializer: Vec<TensorProto>| {
        let output = vec![value("y", OnnxType::Float, &[Of(1)])];
        model(GraphProto { node: vec![node], input: inputs, output, initializer, ..GraphProto::default() })
    };
    let add = || node("Add", &["x", "x"], "y", Vec::new());
    let text = |onnx: &[u8]| refused(onnx).to_string();
    assert!(
        text(&doubler(typed("x", OnnxType::Float, None), float("y")))
            .contains("its number of dimensions is not declared")
    );
    assert!(text(&doubler(value("x", OnnxType::Bfloat16, &[Of(1)]), float("y"))).contains("BFLOAT16 is not supported"));
    let external = TensorProto { data_location: Some(1), ..weight("w", &[1], 0.0) };
    assert!(text(&graph(add(), vec![float("x")], vec![external])).contains("save the model as a single file"));
    assert!(
        text(&graph(node("Add", &["x", "x"], "z", Vec::new()), vec![float("x")], Vec::new()))
            .contains("no node gives its output \"y\"")
    );
    assert!(text(&graph(add(), vec![float("x"), float("x")], Vec::new())).contains("a name of its own"));
    assert!(text(&graph(add(), Vec::new(), vec![weight("x", &[1], 0.0)])).contains("it has no input"));
    assert!(text(&graph(node("Add", &["x", "up"], "y", Vec::new()), vec![float("x")], Vec::new())).contains("up"));
    let own = NodeProto { domain: "com.example".into(), ..node("Frobnicate", &["x"], "y", Vec::new()) };
    assert!(text(&graph(own, vec![float("x")], Vec::new())).contains("it has no operator Frobnicate (of com.example)"));
}

#[test]
fn a_size_that_no_memory_has_is_an_error() {
    let shape = TensorProto {
        name: "w".into(),
        dims: vec![1],
        data_type: OnnxType::Int64 as i32,
        int64_data: vec![1 << 60],
        ..TensorProto::default()
    };
    let onnx = model(GraphProto {
        node: vec![node("ConstantOfShape", &["w"], "zeros", Vec::new()), node("Add", &["x", "zeros"], "y", Vec::new())],
        input: vec![value("x", OnnxType::Float, &[Of(1)])],
        output: vec![value("y", OnnxType::Float, &[Unknown])],
        initializer: vec![shape],
        ..GraphProto::default()
    });
    if let Ok(model) = TractRuntime.load(&onnx, &LoadOptions::default()) {
        let error = model.run(&[Tensor::from_f32("x", vec![1], &[1.0]).unwrap()]).unwrap_err();
        assert!(!error.is_request_fault(), "{error}");
    }
}

#[test]
fn operators_missing_in_a_branch_are_named() {
    let branch = |operator: &str| AttributeProto {
        name: format!("{}_branch", if operator == "Abs" { "then" } else { "else" }),
        r#type: 5,
        g: Some(GraphProto {
            node: vec![node(operator, &["x"], "inner", Vec::new())],
            output: vec![value("inner", OnnxType::Float, &[Of(1)])],
            ..GraphProto::default()
        }),
        ..AttributeProto::default()
    };
    let onnx = model(GraphProto {
        node: vec![node("If", &["choice"], "y", vec![branch("Abs"), branch("Frobnicate")])],
        input: vec![value("choice", OnnxType::Bool, &[]), value("x", OnnxType::Float, &[Of(1)])],
        output: vec![value("y", OnnxType::Float, &[Of(1)])],
        ..GraphProto::default()
    });
    let error = refused(&onnx);
    assert_eq!(error, LoadError::UnsupportedOperators { runtime: NAME, operators: vec!["Frobnicate".into()] });
}

#[test]
fn nodes_at_a_border_need_a_tensor_of_32_bit_numbers() {
    use crate::runtime::{Border, BorderNode};
    let onnx =
        doubler(value("x", OnnxType::Float, &[Named("N"), Of(2)]), value("y", OnnxType::Float, &[Named("N"), Of(2)]));
    let border = |tensor: &str, numbers: &[f32]| {
        vec![Border {
            tensor: tensor.into(),
            name: tensor.into(),
            outside: DataType::Fp32,
            nodes: vec![BorderNode::Multiply(numbers.to_vec())],
        }]
    };
    let load = |onnx: &[u8], inputs, outputs| {
        TractRuntime.load(onnx, &LoadOptions { inputs, outputs, ..LoadOptions::default() })
    };
    let model = load(&onnx, border("x", &[2.0, 3.0]), border("y", &[10.0])).unwrap();
    assert_eq!(model.signature(), loaded(&onnx).signature());
    for rows in [1, 2] {
        let answers = model.run(&[Tensor::from_f32("x", vec![rows, 2], &vec![1.0; 2 * rows]).unwrap()]).unwrap();
        assert_eq!(answers[0].values().collect::<Vec<_>>(), [40.0, 60.0].repeat(rows));
    }
    let refused = |loaded: Result<Box<dyn Model>, LoadError>| loaded.err().unwrap();
    assert!(
        matches!(refused(load(&onnx, border("z", &[2.0]), Vec::new())), LoadError::Tensor { tensor, .. } if tensor == "z")
    );
    assert!(matches!(refused(load(&onnx, Vec::new(), border("x", &[2.0]))), LoadError::Tensor { .. }));
    assert!(matches!(refused(load(&onnx, border("x", &[1.0, 2.0, 3.0]), Vec::new())), LoadError::Refused { .. }));
    let column = doubler(value("x", OnnxType::Float, &[Of(1), Of(1)]), value("y", OnnxType::Float, &[Of(1), Of(1)]));
    assert!(matches!(refused(load(&column, Vec::new(), border("y", &[1.0, 2.0]))), LoadError::Refused { .. }));
    let whole = doubler(value("x", OnnxType::Int64, &[Of(1)]), value("y", OnnxType::Int64, &[Of(1)]));
    assert!(matches!(refused(load(&whole, Vec::new(), border("y", &[2.0]))), LoadError::Tensor { .. }));
}
