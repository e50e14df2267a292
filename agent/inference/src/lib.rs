//! Model execution: tensors, runtimes, golden examples and the columns that monitoring watches.
//!
//! The agent serves with it and `muster bundle build` checks and measures with it, so that what was checked
//! before release is what runs on a device. It decides how a model is loaded, what shape of request it accepts and whether its
//! answers are right; it leaves transport, signatures of bundles, sketches and the choice of model to others.
//!
//! Everything it reads may be hostile: a model, a request, a file of golden examples. It answers with an error in
//! plain words, and a panic inside a runtime becomes one.

mod categories;
pub mod columns;
mod elements;
pub mod golden;
mod guard;
pub mod images;
mod json;
pub mod outliers;
pub mod pipeline;
pub mod quality;
pub mod runtime;
pub mod slices;
pub mod tally;
pub mod tensor;
mod tract;
mod wide;

pub use columns::{ColumnError, ColumnExtractor};
pub use golden::{GoldenError, GoldenReport, GoldenSet};
pub use images::{Decoded, Images};
pub use json::{TensorJson, quote_non_finite};
pub use outliers::{OutlierFinder, OutliersFound};
pub use runtime::{LoadError, LoadOptions, Model, RunError, Runtime};
pub use slices::SliceFinder;
pub use tally::{Counted, Tally};
pub use tensor::{Tensor, TensorError};
pub use tract::TractRuntime;

#[cfg(target_endian = "big")]
compile_error!("tensors are little-endian on the wire and in memory; a big-endian machine needs a conversion here");
