//! The quality report: per group of devices, per slice and per time.

use serde::{Deserialize, Serialize};

use super::concept::{Baseline, ConceptDrift};
use super::metrics::{ClassificationQuality, TargetQuality, device_score, measure_classes, measure_target};
use crate::feedback::FeedbackCounts;
use crate::ids::{BundleRef, Digest};
use crate::labels::{LabelSpec, LabelTask};
use crate::sketch::LabelCounts;

/// How good a model was on some labels.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quality {
    /// Rows with a label.
    pub labels: u64,
    /// Devices they come from.
    pub devices: u32,
    /// There are fewer than `k_min` labels, so nothing more is shown.
    pub suppressed: bool,
    /// Of a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<ClassificationQuality>,
    /// Of a regression, target by target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetQuality>,
    /// One number by which slices are put in order, larger being worse: the share of wrong answers, or the mean absolute error as a share
    /// of the scale.
    pub score: Option<f64>,
}

/// Quality within a slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SliceQuality {
    /// Its name in the profile.
    pub slice: String,
    /// Of it.
    pub quality: Quality,
}

/// Quality within a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TrendPoint {
    /// When the labels came, in milliseconds since the Unix epoch: the start of it.
    pub start_ms: u64,
    /// Of it.
    pub quality: Quality,
}

/// How labels stand to predictions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LabelStanding {
    /// Rows answered that could be labelled.
    pub predictions: u64,
    /// Labels by what came of them.
    pub results: FeedbackCounts,
    /// Answers that devices gave up without a label, for want of room or because they stopped.
    pub forgotten: u64,
    /// Labelled rows as a share of those answered.
    pub coverage: Option<f64>,
    /// Median time from answer to label, in milliseconds.
    pub delay_p50_ms: Option<f64>,
    /// Nine in ten labels came within this time, in milliseconds.
    pub delay_p90_ms: Option<f64>,
}

/// Quality of a group of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QualityGroup {
    /// The label's value; empty for the whole fleet, and for devices without it.
    pub group: String,
    /// Devices that sent windows with labels or predictions.
    pub devices: u32,
    /// Their windows.
    pub windows: u64,
    /// How labels stand to predictions.
    pub standing: LabelStanding,
    /// Over all labels.
    pub quality: Quality,
    /// Held against the reference; empty where it had no labels.
    pub concept: Vec<ConceptDrift>,
    /// Within each slice, the worst first.
    pub slices: Vec<SliceQuality>,
    /// Over time, oldest first.
    pub trend: Vec<TrendPoint>,
}

/// How good a bundle is by its labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QualityReport {
    /// The bundle.
    pub bundle: BundleRef,
    /// Digest of its profile.
    pub profile: Digest,
    /// The label by which devices are grouped.
    pub group_by: Option<String>,
    /// Only windows from then on, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Labels below which nothing is shown.
    pub k_min: u64,
    /// Confidence of every interval.
    pub interval: f64,
    /// Length of a point of the trend, in milliseconds.
    pub trend_ms: u64,
    /// What the bundle's labels are; none where it declares none.
    pub task: Option<LabelTask>,
    /// How good the model was on the reference sample, where that had labels.
    pub baseline: Option<Baseline>,
    /// Group by group.
    pub groups: Vec<QualityGroup>,
}

/// Measures the labels of some devices, one sum a device. Class by class and in detail only where `detail` is wanted.
#[must_use]
pub fn quality_of(spec: &LabelSpec, devices: &[&LabelCounts], k_min: u64, detail: bool) -> Quality {
    let with: Vec<&LabelCounts> = devices.iter().copied().filter(|counts| counts.total() > 0).collect();
    let labels = with.iter().fold(0_u64, |sum, counts| sum.saturating_add(counts.total()));
    let mut quality = Quality {
        labels,
        devices: u32::try_from(with.len()).unwrap_or(u32::MAX),
        suppressed: labels > 0 && labels < k_min,
        ..Quality::default()
    };
    let Some(first) = with.first().filter(|_| !quality.suppressed) else { return quality };
    let mut sum = (*first).clone();
    for counts in with.iter().skip(1) {
        // They are of one task, so they can be added.
        drop(sum.merge(counts));
    }
    quality.score = device_score(&sum, &spec.task);
    match &spec.task {
        LabelTask::Classification { classes } => {
            let of_classes = with.iter().filter_map(|counts| match counts {
                LabelCounts::Classes(counts) => Some(counts),
                LabelCounts::Targets(_) => None,
            });
            quality.classification = measure_classes(&of_classes.collect::<Vec<_>>(), classes);
            if let (Some(classification), false) = (&mut quality.classification, detail) {
                classification.classes.clear();
                classification.reliability.clear();
                classification.confusions.clear();
            }
        }
        LabelTask::Regression { targets } => {
            let measure = |(at, target)| {
                let of_target = with.iter().filter_map(|counts| match counts {
                    LabelCounts::Targets(targets) => targets.get(at),
                    LabelCounts::Classes(_) => None,
                });
                measure_target(&of_target.collect::<Vec<_>>(), target)
            };
            quality.targets = targets.iter().enumerate().filter_map(measure).collect();
        }
    }
    quality
}

#[cfg(test)]
mod tests {
    use super::super::estimate::tests::{device, two_classes};
    use super::*;
    use crate::suppression::K_MIN;

    #[test]
    fn too_few_labels_show_nothing() {
        let few = quality_of(&two_classes(), &[&device(9, 10), &device(9, 9)], K_MIN, true);
        assert_eq!((few.labels, few.devices, few.suppressed, few.score), (19, 2, true, None));
        assert!(few.classification.is_none() && few.targets.is_empty());
        let enough = quality_of(&two_classes(), &[&device(9, 10), &device(9, 10), &device(0, 0)], K_MIN, true);
        let classification = enough.classification.unwrap();
        assert_eq!((enough.labels, enough.devices, enough.suppressed), (20, 2, false));
        assert!((classification.accuracy.value - 0.9).abs() < 1e-12 && (enough.score.unwrap() - 0.1).abs() < 1e-12);
        assert_eq!(classification.confusions, [("a".to_owned(), "b".to_owned(), 2)]);
        assert_eq!(quality_of(&two_classes(), &[], K_MIN, true), Quality::default());
        let brief = quality_of(&two_classes(), &[&device(9, 30)], K_MIN, false).classification.unwrap();
        assert!(brief.classes.is_empty() && brief.confusions.is_empty() && brief.macro_f1 > 0.0);
    }
}
