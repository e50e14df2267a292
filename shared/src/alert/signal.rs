//! Signals: what a rule can measure, on which side of its threshold that is bad, and what can be said of it.

use serde::{Deserialize, Serialize};

use crate::quality::Metric;

/// On which side of a threshold a value is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worse {
    /// Large values are bad.
    Above,
    /// Small values are bad.
    Below,
}

/// What a rule measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Signal {
    /// Population stability index of an input column against the reference; beyond chance only.
    InputDrift,
    /// The same of what the model answers: classes, scores.
    PredictionDrift,
    /// The same of how sure the model is.
    ConfidenceDrift,
    /// Share of requests in which an input column had no value.
    MissingShare,
    /// Share of an input column's values that the reference does not know: out of range, not finite, in no known class.
    UnexpectedShare,
    /// Share of rows in which a feature broke a rule of the data schema, cause by cause; beyond chance only.
    SchemaViolations,
    /// Share of rows of which a model that runs beside another predicts another class; beyond chance only.
    ShadowDisagreement,
    /// By labels: how much worse a bundle is than on its reference sample, beyond chance only; the loss of accuracy, or the growth of the mean
    /// absolute error as a share of the reference's.
    QualityLoss,
    /// By labels: share of right answers.
    Accuracy,
    /// By labels: share of right answers among the answers of each class.
    Precision,
    /// By labels: share of right answers among the labels of each class.
    Recall,
    /// By labels: the harmonic mean of both.
    F1,
    /// By labels: expected calibration error.
    CalibrationError,
    /// By labels: mean absolute error of each target.
    Mae,
    /// By labels: root of the mean squared error of each target.
    Rmse,
    /// Share of requests that the model failed.
    ErrorRate,
    /// Share of requests that took longer than `latency_above_us`.
    LatencyShare,
    /// Seconds since a device was last heard.
    DeviceSilence,
    /// 1 where a device's last update was reverted or failed, else 0.
    DeviceUpdateFailed,
    /// 1 where updates failed on a device so often that no rollout takes it in any more, else 0.
    DeviceQuarantined,
    /// Crashes of a device's agent.
    DeviceCrashes,
    /// Seconds for which the last assignment a device holds has been out of date.
    StaleMetadata,
    /// Seconds until a device's certificate ends.
    CertificateLife,
    /// Bytes free where a device keeps its data.
    DiskFree,
}

impl Signal {
    /// Every signal.
    pub const ALL: [Self; 24] = [
        Self::InputDrift,
        Self::PredictionDrift,
        Self::ConfidenceDrift,
        Self::MissingShare,
        Self::UnexpectedShare,
        Self::SchemaViolations,
        Self::ShadowDisagreement,
        Self::QualityLoss,
        Self::Accuracy,
        Self::Precision,
        Self::Recall,
        Self::F1,
        Self::CalibrationError,
        Self::Mae,
        Self::Rmse,
        Self::ErrorRate,
        Self::LatencyShare,
        Self::DeviceSilence,
        Self::DeviceUpdateFailed,
        Self::DeviceQuarantined,
        Self::DeviceCrashes,
        Self::StaleMetadata,
        Self::CertificateLife,
        Self::DiskFree,
    ];

    /// On which side of a threshold its values are bad.
    #[must_use]
    pub const fn worse(self) -> Worse {
        match self {
            Self::Accuracy | Self::Precision | Self::Recall | Self::F1 | Self::CertificateLife | Self::DiskFree => {
                Worse::Below
            }
            Self::InputDrift
            | Self::PredictionDrift
            | Self::ConfidenceDrift
            | Self::MissingShare
            | Self::UnexpectedShare
            | Self::SchemaViolations
            | Self::ShadowDisagreement
            | Self::QualityLoss
            | Self::CalibrationError
            | Self::Mae
            | Self::Rmse
            | Self::ErrorRate
            | Self::LatencyShare
            | Self::DeviceSilence
            | Self::DeviceUpdateFailed
            | Self::DeviceQuarantined
            | Self::DeviceCrashes
            | Self::StaleMetadata => Worse::Above,
        }
    }

    /// Whether it is measured for each column of a bundle.
    #[must_use]
    pub const fn is_of_columns(self) -> bool {
        matches!(
            self,
            Self::InputDrift
                | Self::PredictionDrift
                | Self::ConfidenceDrift
                | Self::MissingShare
                | Self::UnexpectedShare
        )
    }

    /// The metric of labels it is; none for those of other things.
    #[must_use]
    pub const fn metric(self) -> Option<Metric> {
        match self {
            Self::Accuracy => Some(Metric::Accuracy),
            Self::Precision => Some(Metric::Precision),
            Self::Recall => Some(Metric::Recall),
            Self::F1 => Some(Metric::F1),
            Self::CalibrationError => Some(Metric::CalibrationError),
            Self::Mae => Some(Metric::Mae),
            Self::Rmse => Some(Metric::Rmse),
            Self::InputDrift
            | Self::PredictionDrift
            | Self::ConfidenceDrift
            | Self::MissingShare
            | Self::UnexpectedShare
            | Self::SchemaViolations
            | Self::ShadowDisagreement
            | Self::QualityLoss
            | Self::ErrorRate
            | Self::LatencyShare
            | Self::DeviceSilence
            | Self::DeviceUpdateFailed
            | Self::DeviceQuarantined
            | Self::DeviceCrashes
            | Self::StaleMetadata
            | Self::CertificateLife
            | Self::DiskFree => None,
        }
    }

    /// Whether it is measured by labels.
    #[must_use]
    pub const fn is_of_labels(self) -> bool {
        matches!(self, Self::QualityLoss) || self.metric().is_some()
    }

    /// Whether it is a share of rows, for each column that devices count.
    #[must_use]
    pub const fn is_of_rows(self) -> bool {
        matches!(self, Self::SchemaViolations | Self::ShadowDisagreement)
    }

    /// Whether it can be measured within each slice of a bundle's rows. How good a bundle was on its reference sample is known of the whole
    /// alone.
    #[must_use]
    pub const fn knows_slices(self) -> bool {
        self.is_of_columns() || self.metric().is_some()
    }

    /// Whether it is measured for each device.
    #[must_use]
    pub const fn is_of_devices(self) -> bool {
        matches!(
            self,
            Self::DeviceSilence
                | Self::DeviceUpdateFailed
                | Self::DeviceQuarantined
                | Self::DeviceCrashes
                | Self::StaleMetadata
                | Self::CertificateLife
                | Self::DiskFree
        )
    }

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InputDrift => "input-drift",
            Self::PredictionDrift => "prediction-drift",
            Self::ConfidenceDrift => "confidence-drift",
            Self::MissingShare => "missing-share",
            Self::UnexpectedShare => "unexpected-share",
            Self::SchemaViolations => "schema-violations",
            Self::ShadowDisagreement => "shadow-disagreement",
            Self::QualityLoss => "quality-loss",
            Self::Accuracy => "accuracy",
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::F1 => "f1",
            Self::CalibrationError => "calibration-error",
            Self::Mae => "mae",
            Self::Rmse => "rmse",
            Self::ErrorRate => "error-rate",
            Self::LatencyShare => "latency-share",
            Self::DeviceSilence => "device-silence",
            Self::DeviceUpdateFailed => "device-update-failed",
            Self::DeviceQuarantined => "device-quarantined",
            Self::DeviceCrashes => "device-crashes",
            Self::StaleMetadata => "stale-metadata",
            Self::CertificateLife => "certificate-life",
            Self::DiskFree => "disk-free",
        }
    }

    /// The fields that annotations of a rule on this signal may name as `{field}`.
    #[must_use]
    pub fn fields(self) -> Vec<&'static str> {
        let mut fields = vec!["rule", "severity", "value", "threshold", "group"];
        if self.is_of_devices() {
            fields.extend(["device", "detail"]);
        } else {
            fields.extend(["bundle", "devices", "n"]);
        }
        if self.is_of_columns() {
            fields.extend(["column", "n_effective", "critical", "p_value"]);
        }
        if self.is_of_rows() {
            fields.extend(["column", "cause", "n_effective", "p_value"]);
        }
        if self.is_of_labels() {
            fields.extend(["detail", "class", "target", "n_effective", "critical", "p_value"]);
        }
        if self.knows_slices() {
            fields.push("slice");
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_spelled_one_way() {
        for signal in Signal::ALL {
            assert_eq!(serde_json::to_value(signal).unwrap(), signal.as_str());
            let worse_below = signal.metric().map(Metric::is_worse_below);
            assert!(worse_below.is_none_or(|below| below == (signal.worse() == Worse::Below)), "{signal:?}");
        }
    }
}
