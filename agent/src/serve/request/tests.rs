use muster_shared::bundle::TensorSpec;
use proptest::prelude::*;

use super::*;

fn signature() -> ModelSignature {
    let spec = |name: &str, datatype, width| TensorSpec { name: name.into(), datatype, shape: vec![-1, width] };
    ModelSignature {
        inputs: vec![spec("a", DataType::Fp32, 2), spec("b", DataType::Int64, 1)],
        outputs: vec![spec("y", DataType::Fp32, 2), spec("z", DataType::Int64, 1), spec("h", DataType::Fp16, 1)],
    }
}

fn parse(json: &str) -> Result<InferRequest, String> {
    parse_with(json, None, b"")
}

fn parse_with(json: &str, header_bytes: Option<usize>, binary: &[u8]) -> Result<InferRequest, String> {
    let body = [json.as_bytes(), binary].concat();
    InferRequest::parse(&body, header_bytes, &signature()).map_err(|error| error.to_string())
}

/// Ask for these outputs, so that FP16 is not among them.
const Y: &str = r#""outputs":[{"name":"y"}]"#;

#[test]
fn json_tensors_flat_and_nested_are_read() {
    let json = format!(
        r#"{{"id":"x-1","inputs":[
            {{"name":"a","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[-3e2,NaN]]}},
            {{"data":[9007199254740993],"name":"b","shape":[1,1],"datatype":"INT64"}}],{Y}}}"#
    );
    let request = parse(&json).unwrap();
    assert_eq!(request.id.as_deref(), Some("x-1"));
    let [a, b] = request.inputs.as_slice() else { panic!() };
    assert_eq!((a.name(), a.shape()), ("a", [2, 2].as_slice()));
    let values: Vec<f64> = a.values().collect();
    assert_eq!(values[..3], [1.0, 2.5, -300.0]);
    assert!(values[3].is_nan());
    assert_eq!(b.data(), 9_007_199_254_740_993_i64.to_le_bytes());
    assert_eq!(request.outputs, [WantedOutput { at: 0, binary: false }]);
}

#[test]
fn binary_tensors_follow_the_json_in_order_and_may_be_mixed_with_json() {
    let json = format!(
        r#"{{"inputs":[
            {{"name":"a","shape":[1,2],"datatype":"FP32","parameters":{{"binary_data_size":8}}}},
            {{"name":"b","shape":[2,1],"datatype":"INT64","data":[1,2]}},
            {{"name":"c","shape":[3],"datatype":"UINT8","parameters":{{"binary_data_size":3}}}}],{Y}}}"#
    );
    let mut binary = Vec::new();
    binary.extend(1.5f32.to_le_bytes());
    binary.extend((-2.0f32).to_le_bytes());
    binary.extend([7, 8, 9]);
    let request = parse_with(&json, Some(json.len()), &binary).unwrap();
    let values: Vec<Vec<f64>> = request.inputs.iter().map(|tensor| tensor.values().collect()).collect();
    assert_eq!(values, [vec![1.5, -2.0], vec![1.0, 2.0], vec![7.0, 8.0, 9.0]]);
}

#[test]
fn texts_are_strings_in_json_and_elements_with_their_lengths_in_binary() {
    let json =
        format!(r#"{{"inputs":[{{"name":"s","shape":[2,1],"datatype":"BYTES","data":[["Öl"],["\u0041"]]}}],{Y}}}"#);
    let by_json = parse(&json).unwrap().inputs;
    let head = format!(
        r#"{{"inputs":[{{"name":"s","shape":[2,1],"datatype":"BYTES","parameters":{{"binary_data_size":12}}}}],{Y}}}"#
    );
    let binary = b"\x03\0\0\0\xc3\x96l\x01\0\0\0A";
    assert_eq!(parse_with(&head, Some(head.len()), binary).unwrap().inputs, by_json);
    let lies = parse_with(&head, Some(head.len()), b"\xff\0\0\0\xc3\x96l\x01\0\0\0A").unwrap_err();
    assert!(lies.contains("element 0: its length needs 4 bytes"), "{lies}");
    let mut body = json.into_bytes();
    let at = body.iter().position(|byte| *byte == 0xc3).unwrap();
    body[at + 1] = b'!';
    let error = InferRequest::parse(&body, None, &signature()).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "the request's JSON is not UTF-8 from byte {at} on, in input \"s\": BYTES that are no text go in the binary data format"
        )
    );
}

#[test]
fn outputs_follow_the_wishes_in_every_combination() {
    let inputs = r#""inputs":[]"#;
    let outputs = |json: &str| parse(&format!("{{{inputs},{json}}}")).map(|request| request.outputs);
    let want = |at, binary| WantedOutput { at, binary };
    let all = vec![want(0, true), want(1, true), want(2, true)];
    assert_eq!(outputs(r#""parameters":{"binary_data_output":true}"#).unwrap(), all);
    assert_eq!(outputs(r#""parameters":{"binary_data_output":true},"outputs":[]"#).unwrap(), all);
    assert_eq!(
        outputs(r#""outputs":[{"name":"z"},{"name":"y","parameters":{"binary_data":true}}]"#).unwrap(),
        [want(1, false), want(0, true)]
    );
    assert_eq!(
        outputs(
            r#""parameters":{"binary_data_output":true,"priority":3},"outputs":[{"name":"z","parameters":{"binary_data":false}},{"name":"h"}]"#
        )
        .unwrap(),
        [want(1, false), want(2, true)]
    );
    for (json, reason) in [
        (r#""id":"no outputs named""#, "output \"h\" is FP16"),
        (r#""outputs":[{"name":"h"}]"#, "output \"h\" is FP16"),
        (r#""outputs":[{"name":"q"}]"#, "no output \"q\"; it gives y, z, h"),
        (r#""outputs":[{"name":"y"},{"name":"y"}]"#, "\"y\" is asked for twice"),
        (r#""outputs":[{"name":"y","parameters":{"classification":3}}]"#, "classification"),
        (r#""outputs":[{"name":"y","parameters":{"shared_memory_region":"r"}}]"#, "shared memory"),
    ] {
        let error = outputs(json).unwrap_err();
        assert!(error.contains(reason), "{json}: {error}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let tensor = |rest: &str| format!(r#"{{"inputs":[{{"name":"a",{rest}}}],{Y}}}"#);
    for (json, header_bytes, binary, reason) in [
        (String::new(), None, b"".as_slice(), "not an inference request"),
        ("[]".into(), None, b"", "not an inference request"),
        (format!("{{{Y}}}"), None, b"", "not an inference request"),
        ("{}".into(), Some(3), b"", "Inference-Header-Content-Length is 3, but the body has only 2"),
        ("{}".into(), Some(usize::MAX), b"", "the body has only 2 bytes"),
        (tensor(r#""shape":[1,2],"datatype":"FP8","data":[1,2]"#), None, b"", "not an inference request"),
        (tensor(r#""shape":[1,-2],"datatype":"FP32","data":[1,2]"#), None, b"", "not an inference request"),
        (tensor(r#""shape":[1,2],"datatype":"FP32""#), None, b"", "\"data\" must be an array"),
        (tensor(r#""shape":[1,2],"datatype":"FP32","data":[1]"#), None, b"", "needs 2 elements, but 1 are given"),
        (tensor(r#""shape":[1,2],"datatype":"FP32","data":[1,2,3]"#), None, b"", "needs 2 elements"),
        (tensor(r#""shape":[1,2],"datatype":"FP32","data":[1,"2"]"#), None, b"", "element 1"),
        (tensor(r#""shape":[1],"datatype":"INT64","data":[1.5]"#), None, b"", "1.5 is not a value of INT64"),
        (tensor(r#""shape":[1],"datatype":"UINT8","data":[256]"#), None, b"", "256 is not a value of UINT8"),
        (tensor(r#""shape":[1],"datatype":"FP16","data":[1]"#), None, b"", "FP16"),
        (tensor(r#""shape":[1],"datatype":"BYTES","data":[7]"#), None, b"", "7 is not a value of BYTES"),
        (
            tensor(r#""shape":[18446744073709551615,2],"datatype":"FP32","data":[1]"#),
            None,
            b"",
            "larger than any memory",
        ),
        (
            tensor(r#""shape":[1],"datatype":"UINT8","data":[1],"parameters":{"binary_data_size":1}"#),
            None,
            b"",
            "both data and binary_data_size",
        ),
        (
            tensor(r#""shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":-1}"#),
            None,
            b"",
            "binary_data_size must be a number of bytes, not -1",
        ),
        (
            tensor(r#""shape":[1],"datatype":"UINT8","parameters":{"shared_memory_region":"r"}"#),
            None,
            b"",
            "shared memory",
        ),
    ] {
        let error = parse_with(&json, header_bytes, binary).unwrap_err();
        assert!(error.contains(reason), "{json}: {error}");
    }
    let json = tensor(r#""shape":[4],"datatype":"UINT8","parameters":{"binary_data_size":4}"#);
    for (binary, reason) in [
        (b"123".as_slice(), "4 bytes of binary data, but only 3 are left"),
        (b"12345", "1 bytes follow the last input"),
    ] {
        let error = parse_with(&json, Some(json.len()), binary).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let json = tensor(r#""shape":[4],"datatype":"UINT8","parameters":{"binary_data_size":3}"#);
    let error = parse_with(&json, Some(json.len()), b"123").unwrap_err();
    assert!(error.contains("needs 4 bytes, but 3 were given"), "{error}");
    let json = tensor(r#""shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":18446744073709551615}"#);
    let error = parse_with(&json, Some(json.len()), b"1").unwrap_err();
    assert!(error.contains("only 1 are left"), "{error}");
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for place in ["\"data\"", "\"parameters\""] {
        let json = format!(r#"{{"inputs":[{{"name":"a","shape":[1],"datatype":"FP32",{place}:{deep}}}],{Y}}}"#);
        assert!(parse(&json).is_err());
    }
}

fn valid() -> Vec<u8> {
    let json = format!(
        r#"{{"id":"7","parameters":{{"binary_data_output":true}},"inputs":[{{"name":"a","shape":[1,2],"datatype":"FP32","parameters":{{"binary_data_size":8}}}},{{"name":"b","shape":[1,1],"datatype":"INT64","data":[-5]}}],{Y}}}"#
    );
    [json.as_bytes(), &[0; 8]].concat()
}

#[test]
fn the_request_that_is_damaged_below_is_valid() {
    let body = valid();
    assert!(InferRequest::parse(&body, Some(body.len() - 8), &signature()).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_refused(
        body in prop::collection::vec(any::<u8>(), 0..300),
        header_bytes in prop::option::of(prop_oneof![0usize..400, any::<usize>()]),
    ) {
        let _ = InferRequest::parse(&body, header_bytes, &signature());
    }

    #[test]
    fn a_damaged_request_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        moved in -3isize..=3,
    ) {
        let mut body = valid();
        for (at, value) in changes {
            let at = at.index(body.len());
            body[at] = value;
        }
        let header_bytes = (body.len() - 8).checked_add_signed(moved);
        let _ = InferRequest::parse(&body, header_bytes, &signature());
        body.truncate(cut.index(body.len()));
        let _ = InferRequest::parse(&body, header_bytes, &signature());
        let _ = InferRequest::parse(&body, None, &signature());
    }

    /// JSON and binary give the same tensor, whatever its values.
    #[test]
    fn both_forms_of_a_tensor_are_the_same(values in prop::collection::vec(any::<f32>(), 2..20)) {
        let tensor = Tensor::from_f32("a", vec![values.len()], &values).unwrap();
        let mut as_json = Vec::new();
        tensor.write_json(&mut as_json).unwrap();
        let json = format!(r#"{{"inputs":[{}],{Y}}}"#, String::from_utf8(as_json).unwrap());
        let by_json = parse(&json).unwrap().inputs.remove(0);
        let json = format!(
            r#"{{"inputs":[{{"name":"a","shape":[{}],"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}],{Y}}}"#,
            values.len(), tensor.data().len()
        );
        let by_binary = parse_with(&json, Some(json.len()), tensor.data()).unwrap().inputs.remove(0);
        prop_assert_eq!(by_binary.data(), tensor.data());
        for (a, b) in by_json.values().zip(by_binary.values()) {
            prop_assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{} {}", a, b);
        }
    }
}
