//! What is noticed about one inference: its confidence, and which values the reference never had.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_inference::{ColumnExtractor, Tensor};
use muster_shared::collection::UNSEEN_FLAG;
use muster_shared::profile::{Profile, Reference, Source};

use crate::host::ServedModel;

/// Flags one sample has at most.
const MAX_FLAGS: usize = 32;

/// A model's profile, made ready to look at single inferences.
pub(super) struct Outlook {
    profile: Arc<Profile>,
    /// None when the profile names what the model does not have.
    extractor: Option<ColumnExtractor>,
    /// The column that holds the confidence.
    confidence: Option<usize>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Read {
    /// The confidence of each row.
    pub(super) confidence: Vec<f64>,
    /// Flags, sorted.
    pub(super) flags: Vec<String>,
}

impl Outlook {
    pub(super) fn new(model: &ServedModel) -> Self {
        let columns = &model.profile.columns;
        Self {
            confidence: columns.iter().position(|column| matches!(column.source, Source::Confidence { .. })),
            extractor: ColumnExtractor::new(&model.profile, &model.signature).ok(),
            profile: Arc::clone(&model.profile),
        }
    }

    /// Looks at every value that the profile names.
    pub(super) fn read(&self, inputs: &[Tensor], outputs: &[Tensor]) -> Read {
        let mut confidence = Vec::new();
        let mut unseen: BTreeSet<usize> = BTreeSet::new();
        if let Some(extractor) = &self.extractor {
            extractor.visit(inputs, outputs, |_, at, value| {
                if Some(at) == self.confidence && !outputs.is_empty() {
                    confidence.push(value.unwrap_or(f64::NAN));
                }
                let Some(column) = self.profile.columns.get(at).filter(|column| !column.is_prediction()) else {
                    return;
                };
                if value.is_some_and(|value| is_unseen(&column.reference, value)) && unseen.len() < MAX_FLAGS {
                    unseen.insert(at);
                }
            });
        }
        let name = |at: &usize| format!("{UNSEEN_FLAG}{}", self.profile.columns[*at].name);
        let mut flags: Vec<String> = unseen.iter().map(name).collect();
        flags.sort();
        Read { confidence, flags }
    }
}

/// Whether the reference has nothing like `value`: it lies outside its range, or is none of its classes. NaN is a missing value, which is no
/// outlier.
fn is_unseen(reference: &Reference, value: f64) -> bool {
    if value.is_nan() {
        return false;
    }
    match reference {
        Reference::Numeric { lower_edges, max, .. } => {
            lower_edges.first().is_some_and(|least| value < f64::from(*least)) || value > f64::from(*max)
        }
        Reference::Class { classes, .. } => {
            #[expect(clippy::cast_precision_loss, reason = "a profile has at most 256 classes")]
            let known = classes.len() as f64;
            !(value >= 0.0 && value < known && value.fract() == 0.0)
        }
    }
}
