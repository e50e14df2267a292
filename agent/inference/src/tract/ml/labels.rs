//! The labels of a classifier's classes.

use tract_onnx::tract_hir::internal::*;

use super::attributes::{Attributes, MAX_COLUMNS};

/// Labels, at least two.
#[derive(Debug, Clone)]
pub(super) enum Labels {
    Ints(Vec<i64>),
    Texts(Vec<String>),
}

impl Labels {
    /// Reads the attributes of these names.
    pub(super) fn read(attributes: &Attributes<'_>, ints: &str, texts: &str) -> TractResult<Self> {
        let (numbers, names) = (attributes.ints(ints)?, attributes.texts(texts)?);
        ensure!(numbers.is_empty() || names.is_empty(), "both '{ints}' and '{texts}' are given");
        let labels = if names.is_empty() { Self::Ints(numbers.to_vec()) } else { Self::Texts(names) };
        let count = labels.count();
        ensure!((2..=MAX_COLUMNS).contains(&count), "it has {count} class labels; 2 to {MAX_COLUMNS} are possible");
        Ok(labels)
    }

    pub(super) fn count(&self) -> usize {
        match self {
            Self::Ints(labels) => labels.len(),
            Self::Texts(labels) => labels.len(),
        }
    }

    pub(super) fn datum(&self) -> DatumType {
        match self {
            Self::Ints(_) => i64::datum_type(),
            Self::Texts(_) => String::datum_type(),
        }
    }

    /// The labels of `classes`, one for each row.
    pub(super) fn column(&self, classes: &[usize]) -> TractResult<Tensor> {
        fn pick<T: Clone>(labels: &[T], classes: &[usize]) -> TractResult<Vec<T>> {
            classes.iter().map(|class| labels.get(*class).cloned().context("no such class")).collect()
        }
        Ok(match self {
            Self::Ints(labels) => tensor1(&pick(labels, classes)?),
            Self::Texts(labels) => tensor1(&pick(labels, classes)?),
        })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Ints(labels) => size_of_val(labels.as_slice()),
            Self::Texts(labels) => labels.iter().map(|label| label.len() + size_of::<String>()).sum(),
        }
    }
}
