//! What is known of a wave at one time, and the verdict that it comes to.
//!
//! Nothing here looks at devices: [`Judgement::of`] takes what they came to ([`crate::limits::judge`] adds that up), analyses and the comparison of
//! devices join it, and [`Judgement::outcome`] says what follows. All of these inputs are stored with the verdict, so that [`crate::replay`] takes
//! the same way again.

use muster_shared::limits::MAX_VERDICT_CELLS;
use muster_shared::rollout::{
    AnalysisReport, ArmSummary, Check, CriteriaInputs, GateReport, LimitsInputs, LongestDuration, Outcome, Rule,
    Verdict, VerdictInputs,
};

use crate::abort;
use crate::emergency;
use crate::gate::is_open;
use crate::limits::{self, Held};
use crate::wording::{count, counted, duration};

/// What is known of one wave at one time.
pub(crate) struct Judgement {
    inputs: VerdictInputs,
    checks: Vec<Check>,
    gate: Option<GateReport>,
    analyses: Vec<AnalysisReport>,
    /// An analysis, or the comparison of devices, showed neither or could not be made.
    is_open: bool,
    /// The column of predictions that decided.
    decisive: Option<String>,
    /// Predictions after which a score above its limit, and within chance so far, will be beyond it.
    pub(crate) predictions_needed: Option<u64>,
    /// Rows that were compared with the incumbent's, and rows needed, where these are more.
    pub(crate) compared_needed: Option<(u64, u64)>,
}

impl Judgement {
    /// Holds a wave against its limits and abort criteria; an emergency is held against nothing.
    pub(crate) fn of(inputs: LimitsInputs, criteria: Option<CriteriaInputs>) -> Self {
        let held = if inputs.emergency { emergency::hold(&inputs) } else { limits::hold(&inputs) };
        let Held { mut checks, decisive, predictions_needed, compared_needed } = held;
        checks.extend(criteria.iter().flat_map(abort::checks));
        Self {
            inputs: VerdictInputs { limits: inputs, criteria, analyses: Vec::new(), waited: None, waived_by: None },
            checks,
            gate: None,
            analyses: Vec::new(),
            is_open: false,
            decisive,
            predictions_needed,
            compared_needed,
        }
    }

    /// What the rollout's devices reported.
    pub(crate) fn canary(&self) -> &ArmSummary {
        &self.inputs.limits.canary
    }

    /// What those did that it is compared with.
    pub(crate) fn control(&self) -> &ArmSummary {
        &self.inputs.limits.control
    }

    /// The same with what came of the comparison of devices; `waived_by` let the wave go on, where it showed neither.
    pub(crate) fn with_gate(mut self, report: GateReport, waived_by: Option<String>) -> Self {
        self.is_open |= is_open(&report) && waived_by.is_none();
        self.inputs.waived_by = waived_by;
        self.checks.push(Check {
            rule: Rule::Gate,
            outcome: report.outcome,
            measured: Some(report.log_e),
            limit: report.log_threshold,
            canary_samples: u64::from(report.blocks),
            control_samples: u64::from(report.blocks),
            sentence: report.sentence.clone(),
        });
        self.gate = Some(report);
        self
    }

    /// The same with what analyses came to: each by its place in [`crate::Rollout::analyses`]. `is_open` where one showed neither, or could not
    /// be made.
    pub(crate) fn with_analyses(
        mut self,
        checks: Vec<Check>,
        reports: Vec<(u32, AnalysisReport)>,
        is_open: bool,
    ) -> Self {
        self.checks.extend(checks);
        (self.inputs.analyses, self.analyses) = reports.into_iter().unzip();
        self.is_open |= is_open;
        self
    }

    /// The same when the wave's longest duration is over and something is still missing.
    pub(crate) fn with_wait(mut self, at_ms: u64, waited: LongestDuration) -> Self {
        let LongestDuration { since_ms, max_ms } = waited;
        let took_ms = at_ms.saturating_sub(since_ms);
        self.checks.push(Check {
            rule: Rule::MaxDuration,
            outcome: Outcome::Inconclusive,
            measured: Some(took_ms as f64),
            limit: max_ms as f64,
            canary_samples: u64::from(self.canary().devices),
            control_samples: u64::from(self.control().devices),
            sentence: format!("no verdict after {}, {} allowed", duration(took_ms), duration(max_ms)),
        });
        self.inputs.waited = Some(waited);
        self
    }

    /// What follows. That nothing keeps the wave waiting any more is what [`crate::wave`] sees to.
    pub(crate) fn outcome(&self) -> Outcome {
        if self.is_failed() {
            Outcome::Failed
        } else if self.is_open || self.inputs.waited.is_some() {
            Outcome::Inconclusive
        } else {
            Outcome::Successful
        }
    }

    /// Whether an analysis, or the comparison of devices, showed neither or could not be made.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether a limit is passed, an analysis failed, or canaries are worse.
    pub(crate) fn is_failed(&self) -> bool {
        self.checks.iter().any(|check| check.outcome == Outcome::Failed)
    }

    /// The verdict that a limit is passed, an analysis failed, or canaries are worse.
    pub(crate) fn failed(self, wave: u32, at_ms: u64) -> Verdict {
        let broken = self.checks.iter().filter(|check| check.outcome == Outcome::Failed);
        let broken: Vec<&str> = broken.map(|check| check.sentence.as_str()).collect();
        let summary = format!("wave {} failed: {}", u64::from(wave) + 1, broken.join("; "));
        self.into_verdict(wave, at_ms, summary)
    }

    /// The verdict that the wave passed.
    pub(crate) fn successful(self, wave: u32, at_ms: u64) -> Verdict {
        let basis = self.basis();
        let summary = if self.inputs.limits.emergency {
            let said: Vec<&str> = self.checks.iter().map(|check| check.sentence.as_str()).collect();
            format!("wave {} passed: {}; {basis}", u64::from(wave) + 1, said.join("; "))
        } else if let Some(report) = &self.gate {
            let waived_by = self.inputs.waived_by.as_ref();
            let by = waived_by.map_or_else(String::new, |actor| format!(", as {actor} decided"));
            format!("wave {} passed{by}: {}; {basis} within the limits", u64::from(wave) + 1, report.sentence)
        } else if self.inputs.limits.is_compared() {
            format!("wave {} passed: {basis} within every limit", u64::from(wave) + 1)
        } else {
            let why = match (self.control().devices, self.inputs.limits.devices()) {
                (0, _) => "there is no control to compare with".to_owned(),
                (_, 1) => "1 device is too few to compare".to_owned(),
                (_, all) => format!("{} are too few to compare", counted(all, "device")),
            };
            format!("wave {} passed, limits only: {why}; {basis} within the limits", u64::from(wave) + 1)
        };
        self.into_verdict(wave, at_ms, summary)
    }

    /// What would be said now, though nothing is decided.
    pub(crate) fn so_far(mut self, wave: u32, at_ms: u64) -> Verdict {
        self.is_open = true;
        let summary = format!("wave {} so far: {}", u64::from(wave) + 1, self.basis());
        self.into_verdict(wave, at_ms, summary)
    }

    /// What it rests on.
    fn basis(&self) -> String {
        let ArmSummary { devices, reporting, reports, requests, timed_out, .. } = *self.canary();
        let late = if timed_out > 0 { format!(" ({} timed out)", count(u64::from(timed_out))) } else { String::new() };
        format!(
            "{} in {} from {} of {}{late}",
            counted(requests, "request"),
            counted(u64::from(reports), "report"),
            count(u64::from(reporting)),
            counted(u64::from(devices), "device"),
        )
    }

    /// The verdict that the comparison of devices, or an analysis, showed neither.
    pub(crate) fn undecided(self, wave: u32, at_ms: u64) -> Verdict {
        let compared = self.gate.iter().map(|report| report.sentence.as_str());
        let metrics = self.analyses.iter().flat_map(|report| &report.metrics);
        let open = metrics.filter(|metric| matches!(metric.outcome, Some(Outcome::Inconclusive | Outcome::Error)));
        let why = compared.chain(open.map(|metric| metric.sentence.as_str())).collect::<Vec<_>>().join("; ");
        let summary = format!("wave {} is inconclusive: {why}", u64::from(wave) + 1);
        self.into_verdict(wave, at_ms, summary)
    }

    /// The verdict that time ran out; `why` says what was missing.
    pub(crate) fn inconclusive(self, wave: u32, at_ms: u64, waited: LongestDuration, why: &[String]) -> Verdict {
        let missing = if why.is_empty() { String::new() } else { format!(": {}", why.join("; ")) };
        let took = duration(at_ms.saturating_sub(waited.since_ms));
        let summary = format!("wave {} had no verdict after {took}{missing}", u64::from(wave) + 1);
        self.with_wait(at_ms, waited).into_verdict(wave, at_ms, summary)
    }

    /// The verdict, in the words of `summary`.
    pub(crate) fn into_verdict(self, wave: u32, at_ms: u64, summary: String) -> Verdict {
        let outcome = self.outcome();
        let Self { mut inputs, checks, gate, analyses, decisive, .. } = self;
        keep_few(&mut inputs.limits, decisive.as_deref());
        let (canary, control) = (inputs.limits.canary, inputs.limits.control);
        Verdict { at_ms, wave, outcome, checks, canary, control, gate, analyses, summary, inputs: Some(inputs) }
    }
}

/// Leaves out columns of predictions that did not decide, so that what is stored has an end.
fn keep_few(inputs: &mut LimitsInputs, decisive: Option<&str>) {
    let mut room = MAX_VERDICT_CELLS;
    inputs.predictions.retain(|column, counts| {
        if decisive == Some(column.as_str()) {
            return true;
        }
        let left = room.checked_sub(counts.cells());
        room = left.unwrap_or(room);
        left.is_some()
    });
}
