//! Pipelines: what is done to a caller's tensors before the model sees them, and to the model's before the caller does.
//!
//! A pipeline is part of the signed manifest, with every number it needs. It is a list of steps over named values: the caller's
//! inputs are the first values, each step reads some and writes one (which may take the name of an earlier one), and the model
//! reads those that have the names of its inputs. Afterwards the model's outputs are the values, and the caller gets those that
//! the manifest's signature names. Here is what a pipeline may say and whether it fits together, type by type; carrying it out is
//! the device's matter.
//!
//! **Numbers** are 64-bit floating point between the steps and rounded once, where the model or the caller gets them; 32-bit in steps that a
//! device carries out inside the model.
//! **Columns** are the positions of a value's last dimension; a value of shape `[-1]` has one. **Rows** are counted by the first.

mod check;
mod operation;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::operation::{
    Categories, Colour, ImageOperation, Layout, Norm, Operation, Resize, ResizeMode, Size, Unknown,
};
use crate::bundle::{DataType, ModelSignature, TensorSpec};

/// Steps before the model, and as many after it.
pub const MAX_STEPS: usize = 64;
/// Values one step may read.
pub const MAX_SOURCES: usize = 1_024;
/// Elements of one value, whatever the request: 128 MiB of numbers.
pub const MAX_ELEMENTS: usize = 16 * 1024 * 1024;
/// Categories of one column, or labels of one step.
pub const MAX_CATEGORIES: usize = 4_096;
/// Longest name of a value, category or label, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest side of an image after resizing, in pixels.
pub const MAX_IMAGE_SIDE: u32 = 4_096;
/// Pixels that the images of one request may have together, as decoded, whatever a step asks for.
pub const MAX_IMAGE_PIXELS: u32 = 64 * 1024 * 1024;

/// What surrounds a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pipeline {
    /// What the model itself takes and gives; the manifest's signature is what callers send and get.
    pub model: ModelSignature,
    /// Steps before the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pre: Vec<Step>,
    /// Steps after it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Step {
    /// The values it reads, laid side by side.
    pub from: Vec<String>,
    /// The value it writes.
    pub to: String,
    /// What it does.
    #[serde(rename = "do")]
    pub operation: Operation,
}

/// Element type and shape of a value. In a shape, -1 is a size that a request chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Its element type, as callers would get it.
    pub datatype: DataType,
    /// Its shape.
    pub shape: Vec<i64>,
}

/// Which half of a pipeline a step is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Before the model.
    Pre,
    /// After it.
    Post,
}

impl std::fmt::Display for Half {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pre => "pre",
            Self::Post => "post",
        })
    }
}

/// Why a pipeline is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// A step that cannot be carried out. Steps are counted from 1.
    #[error("pipeline, {half} step {number} ({operation} to {to:?}): {reason}")]
    Step {
        /// Its half.
        half: Half,
        /// Its place there.
        number: usize,
        /// What it does.
        operation: &'static str,
        /// The value it writes.
        to: String,
        /// What is wrong.
        reason: String,
    },
    /// Too many steps.
    #[error("pipeline: at most {MAX_STEPS} steps are allowed before the model, and as many after it")]
    TooLong,
    /// A tensor of the model or the caller that the steps do not give as it must be.
    #[error("pipeline: {what} {name:?} {reason}")]
    Tensor {
        /// Whose tensor it is.
        what: &'static str,
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// The forms of the values after `steps`, the values before them being `specs`.
///
/// # Errors
/// [`PipelineError`] with the first step that cannot be carried out.
pub fn forms_after(half: Half, specs: &[TensorSpec], steps: &[Step]) -> Result<BTreeMap<String, Form>, PipelineError> {
    if steps.len() > MAX_STEPS {
        return Err(PipelineError::TooLong);
    }
    let given = |spec: &TensorSpec| (spec.name.clone(), Form { datatype: spec.datatype, shape: spec.shape.clone() });
    let mut values: BTreeMap<String, Form> = specs.iter().map(given).collect();
    for (at, step) in steps.iter().enumerate() {
        let refuse = |reason: String| PipelineError::Step {
            half,
            number: at + 1,
            operation: step.operation.name(),
            to: step.to.chars().take(80).collect(),
            reason,
        };
        let written = check::written(step, &values).map_err(refuse)?;
        values.extend(written);
    }
    Ok(values)
}

/// What callers get of `outputs`, in that order, when `post` follows a model that gives `model`; all of the model's own outputs
/// as they are where no name is given.
///
/// # Errors
/// [`PipelineError`] when a step cannot be carried out, or nothing has one of the names.
pub fn outputs_after(
    model: &ModelSignature,
    post: &[Step],
    outputs: &[String],
) -> Result<Vec<TensorSpec>, PipelineError> {
    let values = forms_after(Half::Post, &model.outputs, post)?;
    let spec = |name: &String| {
        let form = values.get(name).ok_or_else(|| PipelineError::Tensor {
            what: "output",
            name: name.clone(),
            reason: format!("is written by no step; there {}", known(&values)),
        })?;
        Ok(TensorSpec { name: name.clone(), datatype: form.datatype, shape: form.shape.clone() })
    };
    if outputs.is_empty() {
        return model.outputs.iter().map(|output| spec(&output.name)).collect();
    }
    outputs.iter().map(spec).collect()
}

/// The names of `values`, for messages.
fn known(values: &BTreeMap<String, Form>) -> String {
    let names: Vec<String> = values.keys().take(20).map(|name| format!("{name:?}")).collect();
    format!("{} {}", if names.len() == 1 { "is" } else { "are" }, names.join(", "))
}

/// Whether a value of the shape `given` may be what is `wanted`: sizes that a request chooses fit any. A single column may be given
/// without its dimension.
#[must_use]
pub fn shape_fits(given: &[i64], wanted: &[i64]) -> bool {
    let fits = |(given, wanted): (&i64, &i64)| *given == -1 || *wanted == -1 || given == wanted;
    match (given, wanted) {
        ([_], [_, 1]) => fits((&given[0], &wanted[0])),
        _ => given.len() == wanted.len() && given.iter().zip(wanted).all(fits),
    }
}

impl Pipeline {
    /// Checks that the steps lead from what callers send, by `outer`, to what the model takes, and from what it gives to what
    /// callers get; that every parameter is finite, of the right length and within its bounds.
    ///
    /// # Errors
    /// [`PipelineError`] with the first step or tensor that is wrong.
    pub fn validate(&self, outer: &ModelSignature) -> Result<(), PipelineError> {
        let before = forms_after(Half::Pre, &outer.inputs, &self.pre)?;
        for input in &self.model.inputs {
            let refuse = |reason: String| {
                Err(PipelineError::Tensor { what: "the model's input", name: input.name.clone(), reason })
            };
            let Some(form) = before.get(&input.name) else {
                return refuse(format!("is given by no step; there {}", known(&before)));
            };
            if (form.datatype == DataType::Bytes) != (input.datatype == DataType::Bytes) {
                return refuse(format!("is {}, but the steps give {}", input.datatype, form.datatype));
            }
            if !shape_fits(&form.shape, &input.shape) {
                return refuse(format!("has the shape {:?}, but the steps give {:?}", input.shape, form.shape));
            }
        }
        let wanted: Vec<String> = outer.outputs.iter().map(|output| output.name.clone()).collect();
        let given = outputs_after(&self.model, &self.post, &wanted)?;
        for (given, promised) in given.iter().zip(&outer.outputs) {
            if given != promised {
                return Err(PipelineError::Tensor {
                    what: "output",
                    name: promised.name.clone(),
                    reason: format!(
                        "is promised as {} {:?}, but the steps give {} {:?}",
                        promised.datatype, promised.shape, given.datatype, given.shape
                    ),
                });
            }
        }
        Ok(())
    }

    /// Whether the callers' input `name` holds encoded images.
    #[must_use]
    pub fn takes_images(&self, name: &str) -> bool {
        let is_image = |step: &Step| matches!(step.operation, Operation::Image(_));
        self.pre.iter().any(|step| is_image(step) && step.from.iter().any(|from| from == name))
    }

    /// The step whose images are watched of the callers' input `name`, if it holds any.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&ImageOperation> {
        let steps = self.pre.iter().map(|step| (step.from.as_slice(), step.to.as_str(), Some(&step.operation)));
        first_image(name, steps).map(|(_, image)| image)
    }

    /// Whether a request's rows are not the model's, so that answers cannot be told row by row.
    #[must_use]
    pub fn changes_rows(&self) -> bool {
        self.pre.iter().chain(&self.post).any(|step| matches!(step.operation, Operation::Window { .. }))
    }
}

/// The first of `steps` (what each reads and writes, and what it does if that is known) that decodes the images that callers send as
/// `input`, with its place. What it gives is what is watched of them.
pub fn first_image<'a>(
    input: &str,
    steps: impl Iterator<Item = (&'a [String], &'a str, Option<&'a Operation>)>,
) -> Option<(usize, &'a ImageOperation)> {
    for (at, (from, to, operation)) in steps.enumerate() {
        match (operation, from) {
            (Some(Operation::Image(image)), [only]) if only == input => return Some((at, image)),
            // From here on the name stands for another value.
            _ if to == input => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests;
