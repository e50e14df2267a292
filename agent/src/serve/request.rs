//! Reading an inference request: the JSON, the binary tensors behind it, and which outputs are wanted in which form.
//!
//! The bytes come from any program on the device and may be anything; they are refused with the reason or read, and cost no
//! more memory than a small multiple of themselves. Whether the inputs are those of the model is [`muster_inference::Model::run`]'s to say.

use muster_inference::{Tensor, TensorError, TensorJson, quote_non_finite};
use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// An inference request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct InferRequest {
    /// The caller's name for the request.
    pub(super) id: Option<String>,
    /// Whom or what it belongs to, if the caller says so.
    pub(super) sticky_key: Option<String>,
    /// The inputs, in the caller's order.
    pub(super) inputs: Vec<Tensor>,
    /// The outputs wanted, in the caller's order.
    pub(super) outputs: Vec<WantedOutput>,
}

/// An output of the model that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WantedOutput {
    /// Its position in the model's signature.
    pub(super) at: usize,
    /// Whether it is wanted as binary data behind the JSON.
    pub(super) binary: bool,
}

/// Why bytes are not an inference request.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The JSON is said to be longer than the body.
    #[error("Inference-Header-Content-Length is {header_bytes}, but the body has only {body_bytes} bytes")]
    HeaderLength {
        /// Bytes of JSON announced.
        header_bytes: usize,
        /// Bytes of the body.
        body_bytes: usize,
    },
    /// The JSON does not parse or lacks a member.
    #[error("the request's JSON is not an inference request")]
    Json(#[from] serde_json::Error),
    /// The JSON is not UTF-8, as it cannot be when a tensor of `BYTES` holds an image.
    #[error(
        "the request's JSON is not UTF-8 from byte {at} on{}: BYTES that are no text go in the binary data format",
        input.as_ref().map(|input| format!(", in input {input:?}")).unwrap_or_default()
    )]
    NotText {
        /// The first such byte.
        at: usize,
        /// The input it belongs to, as far as can be told.
        input: Option<String>,
    },
    /// A tensor is not consistent.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The size of a binary tensor is no size.
    #[error("input {input:?}: binary_data_size must be a number of bytes, not {got}")]
    BinarySize {
        /// The input.
        input: String,
        /// What was given.
        got: String,
    },
    /// An input comes in both forms.
    #[error("input {input:?} has both data and binary_data_size: send one of them")]
    BothForms {
        /// The input.
        input: String,
    },
    /// The body ends within a binary tensor.
    #[error(
        "input {input:?} is said to have {size_bytes} bytes of binary data, but only {left_bytes} are left in the body"
    )]
    BinaryTooShort {
        /// The input.
        input: String,
        /// Bytes announced.
        size_bytes: usize,
        /// Bytes there.
        left_bytes: usize,
    },
    /// The body goes on after the last binary tensor.
    #[error(
        "{extra_bytes} bytes follow the last input: do the inputs' binary_data_size and Inference-Header-Content-Length add up?"
    )]
    BinaryTooLong {
        /// Bytes too many.
        extra_bytes: usize,
    },
    /// An extension that is not offered.
    #[error("tensor {tensor:?} asks for the extension {extension}, which this server does not have")]
    Extension {
        /// The tensor.
        tensor: String,
        /// The extension.
        extension: &'static str,
    },
    /// The model has no such output.
    #[error("the model has no output {output:?}; it gives {}", known.join(", "))]
    UnknownOutput {
        /// The name given.
        output: String,
        /// The model's outputs.
        known: Vec<String>,
    },
    /// An output is asked for twice.
    #[error("output {output:?} is asked for twice")]
    RepeatedOutput {
        /// The output.
        output: String,
    },
    /// JSON has no form for FP16.
    #[error("output {output:?} is FP16, for which JSON has no form: ask for it with binary_data")]
    HalfInJson {
        /// The output.
        output: String,
    },
}

#[derive(Deserialize)]
struct Head {
    id: Option<String>,
    parameters: Option<RequestParameters>,
    inputs: Vec<TensorJson>,
    outputs: Option<Vec<OutputJson>>,
}

#[derive(Deserialize)]
struct RequestParameters {
    binary_data_output: Option<bool>,
    muster_sticky_key: Option<String>,
}

#[derive(Deserialize)]
struct OutputJson {
    name: String,
    parameters: Option<OutputParameters>,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    binary_data: Option<bool>,
    classification: Option<IgnoredAny>,
    shared_memory_region: Option<IgnoredAny>,
}

impl InferRequest {
    /// Reads `body`, whose first `header_bytes` are JSON and whose rest is binary tensors; all of it is JSON when there is no
    /// such number.
    ///
    /// # Errors
    /// [`RequestError`] when it is not a request, or asks for outputs that `signature` does not have.
    pub(super) fn parse(
        body: &[u8],
        header_bytes: Option<usize>,
        signature: &ModelSignature,
    ) -> Result<Self, RequestError> {
        let header_bytes = header_bytes.unwrap_or(body.len());
        let (json, binary) = body
            .split_at_checked(header_bytes)
            .ok_or(RequestError::HeaderLength { header_bytes, body_bytes: body.len() })?;
        let Head { id, parameters, inputs, outputs } = parse_head(json)?;
        let binary_by_default = parameters.as_ref().and_then(|p| p.binary_data_output).unwrap_or(false);
        let sticky_key = parameters.and_then(|p| p.muster_sticky_key);
        let outputs = match outputs {
            Some(outputs) if !outputs.is_empty() => wanted(outputs, binary_by_default, &signature.outputs)?,
            Some(_) | None => {
                (0..signature.outputs.len()).map(|at| WantedOutput { at, binary: binary_by_default }).collect()
            }
        };
        for output in outputs.iter().filter(|output| !output.binary) {
            let spec = &signature.outputs[output.at];
            if spec.datatype == DataType::Fp16 {
                return Err(RequestError::HalfInJson { output: spec.name.clone() });
            }
        }
        Ok(Self { id, sticky_key, inputs: tensors(inputs, binary)?, outputs })
    }
}

fn parse_head(json: &[u8]) -> Result<Head, RequestError> {
    serde_json::from_slice(json).or_else(|error| {
        if let Err(error) = std::str::from_utf8(json) {
            return Err(RequestError::NotText { at: error.valid_up_to(), input: input_not_text(json) });
        }
        // Looking for the words that JSON lacks costs a pass over every byte, and hardly any request has them.
        match quote_non_finite(json) {
            std::borrow::Cow::Borrowed(_) => Err(error.into()),
            std::borrow::Cow::Owned(quoted) => Ok(serde_json::from_slice(&quoted)?),
        }
    })
}

/// The first input of `BYTES` whose data cannot be read as text.
fn input_not_text(json: &[u8]) -> Option<String> {
    let head: Head = serde_json::from_str(&String::from_utf8_lossy(json)).ok()?;
    let is_damaged = |input: &&TensorJson| {
        input.datatype == DataType::Bytes
            && input.data.as_deref().is_some_and(|data| data.get().contains(char::REPLACEMENT_CHARACTER))
    };
    head.inputs.iter().find(is_damaged).map(|input| input.name.clone())
}

fn wanted(
    outputs: Vec<OutputJson>,
    binary_by_default: bool,
    known: &[TensorSpec],
) -> Result<Vec<WantedOutput>, RequestError> {
    let mut found: Vec<WantedOutput> = Vec::new();
    for OutputJson { name, parameters } in outputs {
        let parameters = parameters.unwrap_or_default();
        let unasked = [
            (parameters.classification.is_some(), "classification"),
            (parameters.shared_memory_region.is_some(), "shared memory"),
        ];
        if let Some((_, extension)) = unasked.into_iter().find(|(asked, _)| *asked) {
            return Err(RequestError::Extension { tensor: name, extension });
        }
        let Some(at) = known.iter().position(|spec| spec.name == name) else {
            let known = known.iter().map(|spec| spec.name.clone()).collect();
            return Err(RequestError::UnknownOutput { output: name, known });
        };
        if found.iter().any(|output| output.at == at) {
            return Err(RequestError::RepeatedOutput { output: name });
        }
        found.push(WantedOutput { at, binary: parameters.binary_data.unwrap_or(binary_by_default) });
    }
    Ok(found)
}

/// Reads every input, taking binary ones off the front of `binary` in their order, which must use it up.
fn tensors(inputs: Vec<TensorJson>, mut binary: &[u8]) -> Result<Vec<Tensor>, RequestError> {
    let mut tensors = Vec::with_capacity(inputs.len());
    for input in inputs {
        if input.parameters.contains_key("shared_memory_region") {
            return Err(RequestError::Extension { tensor: input.name, extension: "shared memory" });
        }
        let Some(size) = input.parameters.get("binary_data_size") else {
            tensors.push(input.into_tensor()?);
            continue;
        };
        let Some(size_bytes) = size.as_u64().and_then(|size| usize::try_from(size).ok()) else {
            let got = size.to_string().chars().take(40).collect();
            return Err(RequestError::BinarySize { input: input.name, got });
        };
        if input.data.is_some() {
            return Err(RequestError::BothForms { input: input.name });
        }
        let Some((data, rest)) = binary.split_at_checked(size_bytes) else {
            let left_bytes = binary.len();
            return Err(RequestError::BinaryTooShort { input: input.name, size_bytes, left_bytes });
        };
        binary = rest;
        tensors.push(Tensor::new(input.name, input.datatype, input.shape, data.to_vec())?);
    }
    if !binary.is_empty() {
        return Err(RequestError::BinaryTooLong { extra_bytes: binary.len() });
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests;
