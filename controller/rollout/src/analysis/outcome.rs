//! What the measurements of a metric come to, as Argo Rollouts has it (`assessMetricStatus`): more failures than `failureLimit` fail it, more
//! inconclusive measurements than `inconclusiveLimit` leave it open, more errors in a row than `consecutiveErrorLimit` mean that it cannot be
//! measured, in that order; when `count` measurements were made that were no errors, it is successful.

use muster_shared::rollout::{Measurement, MetricTemplate, Outcome};

/// How many measurements came to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tally {
    pub(super) counted: u32,
    pub(super) failed: u32,
    pub(super) inconclusive: u32,
    pub(super) errors_in_a_row: u32,
}

impl Tally {
    pub(super) fn of(measurements: &[Measurement]) -> Self {
        let mut tally = Self::default();
        for measurement in measurements {
            let error = measurement.outcome == Outcome::Error;
            tally.counted += u32::from(!error);
            tally.failed += u32::from(measurement.outcome == Outcome::Failed);
            tally.inconclusive += u32::from(measurement.outcome == Outcome::Inconclusive);
            tally.errors_in_a_row = if error { tally.errors_in_a_row + 1 } else { 0 };
        }
        tally
    }
}

/// What the metric has come to; none while it is being measured.
pub(crate) fn outcome(metric: &MetricTemplate, measurements: &[Measurement]) -> Option<Outcome> {
    let tally = Tally::of(measurements);
    if tally.failed > metric.failure_limit {
        Some(Outcome::Failed)
    } else if tally.inconclusive > metric.inconclusive_limit {
        Some(Outcome::Inconclusive)
    } else if tally.errors_in_a_row > metric.consecutive_error_limit {
        Some(Outcome::Error)
    } else if tally.counted >= metric.needed() {
        Some(Outcome::Successful)
    } else {
        None
    }
}
