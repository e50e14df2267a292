//! What is noticed about one inference: its confidence, and the flags its caller is told of.

use muster_inference::{ColumnExtractor, Images, OutlierFinder, Tensor};
use muster_shared::profile::{Profile, Source};

use crate::host::ServedModel;

/// A model's profile, made ready to look at single inferences.
pub(super) struct Outlook {
    /// Reads the column that is a confidence; none where the profile has none, or names what the model does not have.
    confidence: Option<ColumnExtractor>,
    /// None where the profile flags nothing.
    outliers: Option<OutlierFinder>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Read {
    /// The confidence of each row.
    pub(super) confidence: Vec<f64>,
    /// Whether the profile says what an outlier is.
    pub(super) knows_outliers: bool,
    /// Flags, as the answer has them.
    pub(super) flags: Vec<String>,
}

impl Outlook {
    pub(super) fn new(model: &ServedModel) -> Self {
        let confidence = model.profile.columns.iter().find(|column| matches!(column.source, Source::Confidence { .. }));
        let extractor = confidence.and_then(|column| {
            let only = Profile { columns: vec![column.clone()], ..Profile::default() };
            ColumnExtractor::new(&only, &model.signature).ok()
        });
        Self { confidence: extractor, outliers: OutlierFinder::new(&model.profile, &model.signature).ok().flatten() }
    }

    /// Looks at the values that rules ask for.
    pub(super) fn read(&self, inputs: &[Tensor], images: &Images, outputs: &[Tensor]) -> Read {
        let mut confidence = Vec::new();
        if let Some(extractor) = self.confidence.as_ref().filter(|_| !outputs.is_empty()) {
            extractor.visit(&[], &Images::NONE, outputs, |_, _, value| confidence.push(value.unwrap_or(f64::NAN)));
        }
        let found = self.outliers.as_ref().map(|finder| finder.find(inputs, images));
        let knows_outliers = found.is_some();
        Read { confidence, knows_outliers, flags: found.map(|found| found.flags().to_vec()).unwrap_or_default() }
    }
}
