//! The runtime on tract.
//!
//! A model is read once ([`onnx`]), prepared for concrete shapes ([`plan`]) with what is done at its [`border`], and kept for a
//! bounded number of them ([`prepared`]). tract runs a model whose batch is left symbolic up to 18 times slower, or not at all, so no shape is ever left
//! open: a request of another shape gets a plan of its own.

mod border;
mod convert;
mod load;
mod ml;
mod model;
mod onnx;
mod plan;
mod prepared;
#[cfg(test)]
pub(crate) mod tests;

use crate::runtime::{LoadError, LoadOptions, Model, Runtime};

/// The name in errors and server metadata.
const NAME: &str = "tract";

/// Runs ONNX models with tract.
#[derive(Debug, Clone, Copy, Default)]
pub struct TractRuntime;

impl Runtime for TractRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, onnx: &[u8], options: &LoadOptions) -> Result<Box<dyn Model>, LoadError> {
        Ok(Box::new(load::load(onnx, options)?))
    }
}
