//! Which steps fold, and that a model answers the same with them inside as with all of them outside.

use muster_shared::pipeline::Norm;
use proptest::prelude::*;
use tract_onnx::pb::tensor_proto::DataType as OnnxType;
use tract_onnx::pb::{GraphProto, TensorProto};

use super::*;
use crate::golden::{Example, GoldenSet, Tolerance};
use crate::pipeline::{load, surround};
use crate::runtime::{LoadError, LoadOptions, Model, Runtime};
use crate::tensor::Tensor;
use crate::tract::tests::{Size, model, node, value};
use crate::{RunError, TractRuntime};

/// Columns of what is made here.
const WIDTH: usize = 8;

fn spec(name: &str, datatype: DataType, columns: i64) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: vec![-1, columns] }
}

fn step(from: &str, to: &str, operation: Operation) -> Step {
    Step { from: vec![from.into()], to: to.into(), operation }
}

fn scale(center: f64, scale: f64) -> Operation {
    Operation::Scale { center: vec![center], scale: vec![scale] }
}

fn unscale(center: f64, scale: f64) -> Operation {
    Operation::Unscale { center: vec![center], scale: vec![scale] }
}

/// Inputs `a` and `b`; a model from `x` and `z` to `y` and `r`.
fn pipeline(pre: Vec<Step>, post: Vec<Step>) -> Pipeline {
    let model = ModelSignature {
        inputs: vec![spec("x", DataType::Fp32, 8), spec("z", DataType::Fp32, 8)],
        outputs: vec![spec("y", DataType::Fp32, 8), spec("r", DataType::Fp32, 8)],
    };
    Pipeline { model, pre, post }
}

/// The numbers of the steps that fold when the caller sends `a` as `datatype` and gets `outputs`.
fn folded(pipeline: &Pipeline, datatype: DataType, outputs: &[&str]) -> [Vec<usize>; 2] {
    let outer = ModelSignature {
        inputs: vec![spec("a", datatype, 8), spec("b", DataType::Fp32, 8)],
        outputs: outputs.iter().map(|name| spec(name, DataType::Fp32, 8)).collect(),
    };
    pipeline.validate(&outer).unwrap();
    let steps = folded_steps(pipeline, &outer);
    [Half::Pre, Half::Post].map(|half| steps.iter().filter(|step| step.half == half).map(|step| step.number).collect())
}

/// Steps to both inputs that do not fold.
fn plain() -> Vec<Step> {
    vec![step("a", "x", Operation::Join), step("b", "z", Operation::Join)]
}

#[test]
fn the_last_steps_before_an_input_fold_and_no_others() {
    let before = |pre: Vec<Step>, datatype| folded(&pipeline(pre, Vec::new()), datatype, &["y"])[0].clone();
    let to_z = || step("b", "z", scale(1.0, 2.0));
    assert_eq!(before(plain(), DataType::Fp32), [0; 0]);
    assert_eq!(before(vec![step("a", "x", scale(1.0, 2.0)), to_z()], DataType::Fp32), [1, 2]);
    // One after the other, under names that are used again.
    let chain = vec![
        step("a", "a", Operation::Log1p),
        step("a", "a", scale(1.0, 2.0)),
        step("b", "z", Operation::Join),
        step("a", "x", unscale(1.0, 2.0)),
    ];
    assert_eq!(before(chain, DataType::Fp32), [2, 4]);
    // What stands behind a step that stays outside stays there, too.
    let cut = vec![step("a", "n", scale(1.0, 2.0)), step("n", "x", Operation::Log1p), to_z()];
    assert_eq!(before(cut, DataType::Fp32), [3]);
    // The scaled numbers go two ways; what is scaled once more goes one.
    let two_ways =
        vec![step("a", "n", scale(1.0, 2.0)), step("n", "x", scale(0.0, 3.0)), step("n", "z", Operation::Log1p)];
    assert_eq!(before(two_ways, DataType::Fp32), [2]);
    let read_again = vec![step("a", "x", scale(1.0, 2.0)), step("x", "z", Operation::Log1p)];
    assert_eq!(before(read_again, DataType::Fp32), [0; 0]);
    // What goes to one input is no intermediate value of another's.
    let passed_on = vec![step("a", "x", scale(1.0, 2.0)), step("x", "z", scale(0.0, 3.0))];
    assert_eq!(before(passed_on, DataType::Fp32), [2]);
    let joined = vec![
        Step { from: vec!["a".into(), "b".into()], to: "n".into(), operation: scale(1.0, 2.0) },
        step("n", "x", Operation::Select { indices: (0..8).collect() }),
        to_z(),
    ];
    assert_eq!(before(joined, DataType::Fp32), [3]);
}

#[test]
fn what_comes_in_is_cast_where_32_bits_hold_it() {
    let pre =
        || vec![step("a", "n", scale(0.0, 255.0)), step("n", "x", unscale(0.0, 2.0)), step("b", "z", Operation::Join)];
    let before = |datatype| folded(&pipeline(pre(), Vec::new()), datatype, &["y"])[0].clone();
    for datatype in [DataType::Uint8, DataType::Int16, DataType::Fp16] {
        assert_eq!(before(datatype), [1, 2], "{datatype}");
    }
    // These may hold what 32 bits do not, but what was made of whole numbers is like any other.
    assert_eq!(before(DataType::Int32), [2]);
    assert_eq!(before(DataType::Fp64), [0; 0]);
}

#[test]
fn the_first_steps_behind_an_output_fold_unless_somebody_gets_what_is_before_them() {
    let after =
        |post: Vec<Step>, outputs: &[&str]| folded(&pipeline(plain(), post), DataType::Fp32, outputs)[1].clone();
    let post = || {
        vec![step("y", "p", unscale(1.0, 2.0)), step("p", "p", Operation::Softmax), step("r", "c", Operation::Sigmoid)]
    };
    assert_eq!(after(post(), &["p", "c"]), [1, 2]);
    assert_eq!(after(post(), &["p", "y"]), [0; 0]);
    let mut read_again = post();
    read_again.push(step("y", "q", Operation::Sigmoid));
    assert_eq!(after(read_again, &["p"]), [0; 0]);
    // The name of what callers get stands for what comes last.
    assert_eq!(after(vec![step("y", "y", Operation::Softmax), step("y", "q", Operation::Sigmoid)], &["y", "q"]), [1]);
    // Another value takes the name of a model's output.
    assert_eq!(after(vec![step("y", "r", Operation::Softmax), step("r", "r", unscale(1.0, 2.0))], &["r"]), [1, 2]);
    // Whoever reads what a folded step gives may read it often.
    let often =
        vec![step("y", "p", Operation::Softmax), step("p", "q", Operation::Sigmoid), step("p", "c", Operation::Log1p)];
    assert_eq!(after(often, &["p", "q", "c"]), [1]);
}

#[test]
fn a_step_folds_only_where_32_bits_do() {
    let form = Form { datatype: DataType::Fp32, shape: vec![-1, 2] };
    let made = |operation: Operation| nodes(&operation, &form);
    let columns = |center: [f64; 2], scale: [f64; 2]| Operation::Scale { center: center.into(), scale: scale.into() };
    let (subtract, multiply, add) = (BorderNode::Subtract, BorderNode::Multiply, BorderNode::Add);
    let many = |one: f64, other: f64| [vec![one; MIN_COLUMNS], vec![other]].concat();
    let by_column = made(Operation::Scale { center: many(1.0, 2.0), scale: many(4.0, 0.5) });
    let Some([BorderNode::Subtract(center), BorderNode::Multiply(factor)]) = by_column.as_deref() else {
        panic!("a scaling by column folds");
    };
    assert_eq!((center.len(), center[0], center[MIN_COLUMNS]), (MIN_COLUMNS + 1, 1.0, 2.0));
    assert_eq!((factor.len(), factor[0], factor[MIN_COLUMNS]), (MIN_COLUMNS + 1, 0.25, 2.0));
    assert_eq!(made(columns([1.0, 2.0], [4.0, 0.5])), None, "it would take longer inside");
    assert_eq!(made(columns([0.0, 0.0], [16.0, 16.0])), Some(vec![multiply(vec![0.0625])]));
    assert_eq!(made(scale(3.0, 1.0)), Some(vec![subtract(vec![3.0])]));
    assert_eq!(made(unscale(3.0, -2.0)), Some(vec![multiply(vec![-2.0]), add(vec![3.0])]));
    let min_max = |data_min: f64, data_max: f64, clip| Operation::MinMax {
        data_min: vec![data_min],
        data_max: vec![data_max],
        low: -1.0,
        high: 1.0,
        clip,
    };
    assert_eq!(made(min_max(2.0, 6.0, false)), Some(vec![multiply(vec![0.5]), add(vec![-2.0])]));
    for stays in [
        // A time in seconds, its day as the unit: the rounding of the time itself would be a minute.
        scale(1.7e9, 86_400.0),
        columns([1.0, 65.0], [1.0, 1.0]),
        unscale(65.0, 1.0),
        // tract would make 0 of NaN · 0.
        unscale(0.0, 0.0),
        scale(0.0, 1e-40),
        scale(1e33, 1e33),
        min_max(1e4, 1e4 + 1.0, false),
        min_max(2.0, 6.0, true),
        Operation::Clip { min: Some(0.0), max: None },
        Operation::Sigmoid,
        Operation::Argmax,
        Operation::Normalize { norm: Norm::L2 },
    ] {
        assert_eq!(made(stays.clone()), None, "{stays:?}");
    }
    let softmax = |shape: &[i64]| nodes(&Operation::Softmax, &Form { datatype: DataType::Fp32, shape: shape.to_vec() });
    assert_eq!(softmax(&[-1, 2, 8]), Some(vec![BorderNode::Softmax]));
    for (shape, why) in
        [(&[-1, 7][..], "it would take longer inside"), (&[-1, -1], "as it might"), (&[9], "rows are its columns")]
    {
        assert_eq!(softmax(shape), None, "{why}");
    }
}

/// Numbers for weights, in -1 to 1, the same every time.
fn weights(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(i16::from_be_bytes(state.to_be_bytes()[..2].try_into().unwrap())) / 32_768.0
    };
    (0..count).map(next).collect()
}

/// A model from `x` and `z` to `y` and `r`, all of `width` columns. What it computes, `kind` says.
fn onnx(width: usize, kind: u8, seed: u64) -> Vec<u8> {
    let columns = i64::try_from(width).unwrap();
    let tensor = |name: &str| value(name, OnnxType::Float, &[Size::Named("N"), Size::Of(columns)]);
    let weight = |name: &str, dims: Vec<i64>, seed| TensorProto {
        name: name.into(),
        data_type: OnnxType::Float as i32,
        float_data: weights(usize::try_from(dims.iter().product::<i64>()).unwrap(), seed),
        dims,
        ..TensorProto::default()
    };
    let nodes = match kind {
        // Products of matrices, with which tract merges what follows.
        0 => vec![node("Gemm", &["x", "w", "b"], "y", Vec::new()), node("MatMul", &["z", "v"], "r", Vec::new())],
        1 => vec![
            node("Gemm", &["x", "w", "b"], "h", Vec::new()),
            node("Relu", &["h"], "g", Vec::new()),
            node("Gemm", &["g", "v", "b"], "r", Vec::new()),
            node("Add", &["r", "z"], "y", Vec::new()),
        ],
        // An input as it is, and read twice.
        2 => vec![node("Identity", &["x"], "y", Vec::new()), node("Add", &["x", "z"], "r", Vec::new())],
        _ => vec![node("Mul", &["x", "z"], "y", Vec::new()), node("Tanh", &["z"], "r", Vec::new())],
    };
    model(GraphProto {
        node: nodes,
        initializer: vec![
            weight("w", vec![columns, columns], seed),
            weight("v", vec![columns, columns], seed ^ 1),
            weight("b", vec![columns], seed ^ 2),
        ],
        input: vec![tensor("x"), tensor("z")],
        output: vec![tensor("y"), tensor("r")],
        ..GraphProto::default()
    })
}

fn any_operation(width: usize) -> impl Strategy<Value = Operation> {
    let list = |range: std::ops::Range<f64>| {
        prop_oneof![prop::collection::vec(range.clone(), width), prop::collection::vec(range, 1)]
    };
    prop_oneof![
        3 => (list(-4.0..4.0), list(0.5..2.0)).prop_map(|(center, scale)| Operation::Scale { center, scale }),
        3 => (list(-4.0..4.0), list(0.5..2.0)).prop_map(|(center, scale)| Operation::Unscale { center, scale }),
        2 => (list(-3.0..-1.0), any::<bool>()).prop_map(|(data_min, clip)| {
            let data_max = data_min.iter().map(|min| min.abs() + 1.0).collect();
            Operation::MinMax { data_min, data_max, low: -1.0, high: 2.0, clip }
        }),
        2 => Just(Operation::Softmax),
        1 => Just(Operation::Sigmoid),
        1 => Just(Operation::Join),
        1 => (-3.0..0.0, 0.0..3.0).prop_map(|(min, max)| Operation::Clip { min: Some(min), max: Some(max) }),
        1 => list(-1.0..1.0).prop_map(|values| Operation::Impute { values }),
    ]
}

/// Steps between the values named `from` and those named `to`.
fn any_steps(
    from: &'static [&'static str],
    to: &'static [&'static str],
    width: usize,
) -> impl Strategy<Value = Vec<Step>> {
    let any_step = (prop::sample::select(from), prop::sample::select(to), any_operation(width));
    prop::collection::vec(any_step.prop_map(|(from, to, operation)| step(from, to, operation)), 0..4)
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        12 => -8.0..8.0,
        1 => Just(f64::NAN),
        1 => prop::sample::select(&[f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e30][..]),
    ]
}

#[derive(Debug)]
struct Case {
    onnx: Vec<u8>,
    pipeline: Pipeline,
    outer: ModelSignature,
    requests: Vec<Vec<Tensor>>,
}

prop_compose! {
    fn any_case()(width in prop_oneof![1..10_usize, Just(MIN_COLUMNS)])(
        width in Just(width),
        kind in 0..4_u8,
        seed in any::<u64>(),
        mut pre in any_steps(&["a", "b"], &["a", "b", "n"], width),
        ends in [any_operation(width), any_operation(width)],
        crossed in any::<bool>(),
        mut post in any_steps(&["y", "r"], &["y", "r", "p"], width),
        outputs in prop::sample::subsequence(vec!["y", "r"], 1..=2),
        datatype in prop::sample::select(vec![DataType::Fp32, DataType::Fp32, DataType::Fp16, DataType::Int8, DataType::Fp64]),
        numbers in prop::collection::vec(any_number(), 8 * width),
    ) -> Case {
        let [x, z] = ends;
        pre.push(step("a", "x", x));
        pre.push(step(if crossed { "x" } else { "b" }, "z", z));
        post.retain(|step| step.operation != Operation::Join);
        let columns = i64::try_from(width).unwrap();
        let specs = |names: &[&str]| names.iter().map(|name| spec(name, DataType::Fp32, columns)).collect::<Vec<_>>();
        let model = ModelSignature { inputs: specs(&["x", "z"]), outputs: specs(&["y", "r"]) };
        let mut outer = ModelSignature { inputs: specs(&["a", "b"]), outputs: specs(&outputs) };
        outer.inputs[0].datatype = datatype;
        let whole = |x: &f64| if datatype == DataType::Int8 { if x.abs() < 100.0 { x.trunc() } else { 7.0 } } else { *x };
        let a: Vec<f64> = numbers.iter().map(whole).collect();
        let request = |rows: usize, from: usize| {
            let range = from * width..(from + rows) * width;
            vec![
                Tensor::from_f64("a", datatype, vec![rows, width], &a[range.clone()]).unwrap(),
                Tensor::from_f64("b", DataType::Fp32, vec![rows, width], &numbers[range]).unwrap(),
            ]
        };
        let requests = vec![request(1, 0), request(5, 1), request(2, 6)];
        Case { onnx: onnx(width, kind, seed), pipeline: Pipeline { model, pre, post }, outer, requests }
    }
}

/// The model of `case` with what folds inside it, and with every step outside.
fn two_ways(case: &Case) -> (super::super::Loaded, Box<dyn Model>) {
    let tolerance = Tolerance { abs: 0.0, rel: 0.0 };
    let example = Example { inputs: case.requests[0].clone(), outputs: Vec::new() };
    let golden = GoldenSet { tolerance, examples: vec![example] };
    let inside = load(&TractRuntime, &case.onnx, &case.outer, Some(&case.pipeline), &golden).unwrap();
    let bare = TractRuntime.load(&case.onnx, &LoadOptions::default()).unwrap();
    (inside, surround(bare, &case.outer, &case.pipeline).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_the_same_with_steps_inside_the_model(case in any_case()) {
        prop_assume!(case.pipeline.validate(&case.outer).is_ok());
        let (inside, outside) = two_ways(&case);
        prop_assume!(!inside.folded.is_empty());
        prop_assert_eq!(inside.model.signature(), outside.signature());
        for request in &case.requests {
            let (got, expected) = (inside.model.run(request).unwrap(), outside.run(request).unwrap());
            for (got, expected) in got.iter().zip(&expected) {
                prop_assert_eq!((got.name(), got.datatype(), got.shape()), (expected.name(), expected.datatype(), expected.shape()));
                for (at, (got, expected)) in got.values().zip(expected.values()).enumerate() {
                    let close = (got - expected).abs() <= 2e-5 * expected.abs().max(1.0);
                    prop_assert!(
                        close || got.total_cmp(&expected).is_eq() || (got.is_nan() && expected.is_nan()),
                        "element {}: {} for {}, {:?} folded", at, got, expected, inside.folded
                    );
                }
            }
        }
    }

    /// As much as the module says, for numbers of the size that a scaling is made for.
    #[test]
    fn a_folded_scaling_is_off_by_little_of_its_unit(
        offset in -MAX_OFFSET..MAX_OFFSET, unit in 1e-3..1e3_f64, x in -10.0..10.0_f64, back: bool,
    ) {
        let operation = if back { unscale(offset * unit, unit) } else { scale(offset * unit, unit) };
        let numbers = [if back { x } else { (offset + x) * unit }; WIDTH];
        let given = |name| Tensor::from_f64(name, DataType::Fp32, vec![1, WIDTH], &numbers).unwrap();
        let case = Case {
            onnx: onnx(WIDTH, 2, 0),
            pipeline: pipeline(vec![step("a", "x", operation), step("b", "z", Operation::Join)], Vec::new()),
            outer: ModelSignature {
                inputs: vec![spec("a", DataType::Fp32, 8), spec("b", DataType::Fp32, 8)],
                outputs: vec![spec("y", DataType::Fp32, 8)],
            },
            requests: vec![vec![given("a"), given("b")]],
        };
        let (inside, outside) = two_ways(&case);
        prop_assert_eq!(inside.folded.len(), 1);
        let value = |model: &dyn Model| model.run(&case.requests[0]).unwrap()[0].value(0).unwrap();
        let off = (value(&*inside.model) - value(&*outside)).abs();
        prop_assert!(off <= if back { 2e-5 * unit } else { 2e-5 }, "{off}");
    }
}

/// A runtime that does nothing at a model's border.
struct Plain;

impl Runtime for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn load(&self, onnx: &[u8], options: &LoadOptions) -> Result<Box<dyn Model>, LoadError> {
        if options.inputs.is_empty() && options.outputs.is_empty() {
            return TractRuntime.load(onnx, options);
        }
        Err(LoadError::Refused { runtime: "plain", reason: "nothing can be done at the border".into() })
    }
}

#[test]
fn a_runtime_that_refuses_steps_runs_the_model_without() {
    let post = vec![step("y", "p", Operation::Softmax)];
    let pipeline = pipeline(vec![step("a", "x", scale(1.0, 2.0)), step("b", "z", Operation::Join)], post);
    let outer = ModelSignature {
        inputs: vec![spec("a", DataType::Fp32, 8), spec("b", DataType::Fp32, 8)],
        outputs: vec![spec("p", DataType::Fp32, 8)],
    };
    let golden = GoldenSet { tolerance: Tolerance { abs: 0.0, rel: 0.0 }, examples: Vec::new() };
    let load = |runtime: &dyn Runtime, onnx: &[u8]| load(runtime, onnx, &outer, Some(&pipeline), &golden);
    let good = onnx(WIDTH, 0, 1);
    assert_eq!(load(&TractRuntime, &good).unwrap().folded.len(), 2);
    let loaded = load(&Plain, &good).unwrap();
    assert!(loaded.folded.is_empty());
    let ones = |name| Tensor::from_f32(name, vec![2, WIDTH], &[1.0; 2 * WIDTH]).unwrap();
    let sum: f64 = loaded.model.run(&[ones("a"), ones("b")]).unwrap()[0].values().sum();
    assert!((sum - 2.0).abs() < 1e-6, "two rows of probabilities");
    assert!(load(&TractRuntime, &onnx(4, 0, 1)).is_err(), "a model of other columns is refused either way");
}

#[test]
fn a_step_that_fails_has_its_own_number_beside_folded_ones() {
    let strict = Operation::Cast { datatype: DataType::Uint8 };
    let pre = vec![step("a", "x", scale(1.0, 2.0)), step("b", "z", strict)];
    let post = vec![step("y", "p", unscale(0.0, 300.0)), step("p", "q", Operation::Cast { datatype: DataType::Int8 })];
    let case = Case {
        onnx: onnx(WIDTH, 2, 0),
        pipeline: pipeline(pre, post),
        outer: ModelSignature {
            inputs: vec![spec("a", DataType::Fp32, 8), spec("b", DataType::Fp32, 8)],
            outputs: vec![spec("q", DataType::Int8, 8)],
        },
        requests: vec![vec![
            Tensor::from_f32("a", vec![1, WIDTH], &[3.0; WIDTH]).unwrap(),
            Tensor::from_f32("b", vec![1, WIDTH], &[1.0; WIDTH]).unwrap(),
        ]],
    };
    let (inside, outside) = two_ways(&case);
    assert_eq!(inside.folded.len(), 2);
    let mut request = case.requests[0].clone();
    let numbers = |model: &dyn Model, request: &[Tensor]| {
        let error = model.run(request).unwrap_err();
        let RunError::Step { half, number, .. } = error else { panic!("{error}") };
        (half, number)
    };
    for model in [&*inside.model, &*outside] {
        assert_eq!(numbers(model, &request), (Half::Post, 2), "300 is no INT8");
    }
    request[1] = Tensor::from_f32("b", vec![1, WIDTH], &[-1.0; WIDTH]).unwrap();
    for model in [&*inside.model, &*outside] {
        assert_eq!(numbers(model, &request), (Half::Pre, 2));
    }
}
