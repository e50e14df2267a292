//! Writing the answer to an inference request: the JSON, and behind it the outputs that were wanted in binary form.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use muster_inference::{Tensor, TensorError};
use muster_shared::bundle::DataType;
use serde::Serialize;

use super::request::WantedOutput;
use crate::host::ServedModel;

/// Says how much of a body is JSON; the rest is binary tensors.
pub(super) const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// About what the JSON around the data needs, in bytes.
const FRAME_BYTES: usize = 256;
/// About what an element of a tensor needs in JSON, in bytes.
const ELEMENT_BYTES: usize = 13;

/// Why an answer cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnswerError {
    /// The model did not give what its signature promises.
    #[error("the model gave no output {output:?}")]
    Missing {
        /// The output.
        output: String,
    },
    /// An output has no form in JSON.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    bytes: Vec<u8>,
    /// Bytes of JSON, when binary data follows it.
    header_bytes: Option<usize>,
}

impl Answer {
    /// Writes the `wanted` of `outputs`, which may come in any order. `parameters` are texts about the request as a whole.
    ///
    /// # Errors
    /// [`AnswerError`] when an output is missing, or has no form in JSON and was not wanted in binary form.
    pub(super) fn write(
        model: &ServedModel,
        id: &str,
        parameters: &[(&'static str, String)],
        wanted: &[WantedOutput],
        outputs: &[Tensor],
    ) -> Result<Self, AnswerError> {
        let mut chosen = Vec::with_capacity(wanted.len());
        let mut size = FRAME_BYTES;
        for want in wanted {
            let spec = &model.signature.outputs[want.at];
            let tensor = outputs.iter().find(|tensor| tensor.name() == spec.name);
            let tensor = tensor.ok_or_else(|| AnswerError::Missing { output: spec.name.clone() })?;
            let data_bytes = if want.binary || tensor.datatype() == DataType::Bytes {
                tensor.data().len()
            } else {
                tensor.element_count().saturating_mul(ELEMENT_BYTES)
            };
            size = size.saturating_add(FRAME_BYTES).saturating_add(data_bytes);
            chosen.push((want.binary, tensor));
        }
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(b"{\"model_name\":");
        write_text(model.bundle.name.as_str(), &mut bytes);
        bytes.extend_from_slice(b",\"model_version\":");
        write_text(&model.bundle.version.to_string(), &mut bytes);
        bytes.extend_from_slice(b",\"id\":");
        write_text(id, &mut bytes);
        if !parameters.is_empty() {
            bytes.extend_from_slice(b",\"parameters\":");
            let members: serde_json::Map<_, _> =
                parameters.iter().map(|(name, text)| ((*name).to_owned(), text.as_str().into())).collect();
            // Writing texts to memory cannot fail.
            let _ = serde_json::to_writer(&mut bytes, &members);
        }
        bytes.extend_from_slice(b",\"outputs\":[");
        for (count, (binary, tensor)) in chosen.iter().enumerate() {
            if count > 0 {
                bytes.push(b',');
            }
            if *binary {
                write_binary_head(tensor, &mut bytes);
            } else {
                tensor.write_json(&mut bytes)?;
            }
        }
        bytes.extend_from_slice(b"]}");
        let json_bytes = bytes.len();
        let mut is_binary = false;
        for (_, tensor) in chosen.iter().filter(|(binary, _)| *binary) {
            bytes.extend_from_slice(tensor.data());
            is_binary = true;
        }
        Ok(Self { bytes, header_bytes: is_binary.then_some(json_bytes) })
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let kind = if self.header_bytes.is_some() { "application/octet-stream" } else { "application/json" };
        let mut response = Response::new(Body::from(self.bytes));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(bytes) = self.header_bytes {
            response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(bytes));
        }
        response
    }
}

#[derive(Serialize)]
struct BinaryHead<'a> {
    name: &'a str,
    datatype: DataType,
    shape: &'a [usize],
    parameters: BinaryParameters,
}

#[derive(Serialize)]
struct BinaryParameters {
    binary_data_size: usize,
}

fn write_binary_head(tensor: &Tensor, out: &mut Vec<u8>) {
    let head = BinaryHead {
        name: tensor.name(),
        datatype: tensor.datatype(),
        shape: tensor.shape(),
        parameters: BinaryParameters { binary_data_size: tensor.data().len() },
    };
    // Writing text and numbers to memory cannot fail.
    let _ = serde_json::to_writer(out, &head);
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    // Writing text to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}
