//! Holds what a wave measured against the rollout's limits, and says so in sentences. How its devices compare with others is
//! [`crate::gate`]'s matter; here it becomes part of the verdict.
//!
//! Limits are absolute: they need no test, and one that is passed stops the wave at once. What cannot be judged, for
//! want of data or of a control, is `Inconclusive` in its check. The least numbers of reports and requests are needed
//! always; a comparison without a control is not, but the verdict says then that it rests on limits only.

mod disagreement;

use std::collections::BTreeMap;

use muster_shared::drift::{homogeneity, psi};
use muster_shared::ids::DeviceId;
use muster_shared::rollout::{AnalysisReport, ArmSummary, Check, GateReport, Limits, Outcome, Rule, Verdict};

use crate::abort;
use crate::emergency;
use crate::evidence::{Arm, total};
use crate::fleet::Predictions;
use crate::rollout::{Rollout, Target};
use crate::wording::{comparison, count, counted, duration, latency, listed};

/// A prediction score above its limit counts only if chance alone makes as much of nothing less often than this. With few
/// predictions a score is large by itself.
const PREDICTION_ALPHA: f64 = 0.001;

/// What is known of one wave at one time.
pub(crate) struct Judgement {
    checks: Vec<Check>,
    gate: Option<GateReport>,
    analyses: Vec<AnalysisReport>,
    /// An analysis showed neither, or could not be made.
    is_open: bool,
    /// What the rollout's devices reported.
    pub(crate) canary: ArmSummary,
    /// What those did that it is compared with.
    pub(crate) control: ArmSummary,
    compared: bool,
    /// It is an emergency, held against nothing.
    is_emergency: bool,
    /// Predictions after which a score above its limit, and within chance so far, will be beyond it.
    pub(crate) predictions_needed: Option<u64>,
    /// Rows that were compared with the incumbent's, and rows needed, where these are more.
    pub(crate) compared_needed: Option<(u64, u64)>,
}

/// Judges the current wave of `rollout`.
pub(crate) fn judge(rollout: &Rollout, canary: &Arm<'_>, control: &Arm<'_>) -> Judgement {
    emergency::judged(&rollout.spec, canary, control).unwrap_or_else(|| {
        let mut judgement = hold(rollout, canary, control);
        judgement.checks.extend(abort::checks(rollout));
        judgement
    })
}

/// Holds a wave against its limits.
fn hold(rollout: &Rollout, canary: &Arm<'_>, control: &Arm<'_>) -> Judgement {
    let (limits, reference) = (&rollout.spec.limits, &rollout.bundle.reference_predictions);
    let (disagreement, compared_needed) = disagreement::hold(limits, rollout.wave_stage(), canary.compared).unzip();
    let compared = control.summary.reports >= limits.min_reports && control.summary.requests >= limits.min_requests;
    let (prediction_psi, predictions_needed) = prediction_psi(limits, canary, control, reference);
    Judgement {
        predictions_needed,
        compared_needed: compared_needed.flatten(),
        gate: None,
        analyses: Vec::new(),
        is_open: false,
        checks: [
            failures(limits, &canary.summary, &rollout.targets),
            error_rate(limits, &canary.summary, &control.summary),
            latency_ratio(limits, &canary.summary, control),
            prediction_psi,
            min_reports(limits, &canary.summary),
            min_requests(limits, &canary.summary),
        ]
        .into_iter()
        .chain(disagreement)
        .collect(),
        canary: canary.summary,
        control: control.summary,
        compared,
        is_emergency: false,
    }
}

impl Judgement {
    /// What is known of an emergency: `checks` that nothing follows from.
    pub(crate) fn of_emergency(checks: Vec<Check>, canary: &Arm<'_>, control: &Arm<'_>) -> Self {
        let (canary, control) = (canary.summary, control.summary);
        Self {
            checks,
            gate: None,
            analyses: Vec::new(),
            is_open: false,
            canary,
            control,
            compared: false,
            is_emergency: true,
            predictions_needed: None,
            compared_needed: None,
        }
    }

    /// The same with what came of the comparison of devices.
    pub(crate) fn with_gate(mut self, report: GateReport) -> Self {
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

    /// The same with what analyses came to; `is_open` where one showed neither, or could not be made.
    pub(crate) fn with_analyses(mut self, checks: Vec<Check>, reports: Vec<AnalysisReport>, is_open: bool) -> Self {
        self.checks.extend(checks);
        (self.analyses, self.is_open) = (reports, is_open);
        self
    }

    /// Whether an analysis showed neither, or could not be made.
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
        self.into_verdict(wave, at_ms, Outcome::Failed, summary)
    }

    /// The verdict that the wave passed; `waived_by` let it, where the comparison of devices showed neither.
    pub(crate) fn successful(self, wave: u32, at_ms: u64, waived_by: Option<&str>) -> Verdict {
        let (basis, devices) = (self.basis(), self.canary.devices);
        let summary = if self.is_emergency {
            let said: Vec<&str> = self.checks.iter().map(|check| check.sentence.as_str()).collect();
            format!("wave {} passed: {}; {basis}", u64::from(wave) + 1, said.join("; "))
        } else if let Some(report) = &self.gate {
            let by = waived_by.map_or_else(String::new, |actor| format!(", as {actor} decided"));
            format!("wave {} passed{by}: {}; {basis} within the limits", u64::from(wave) + 1, report.sentence)
        } else if self.compared {
            format!("wave {} passed: {basis} within every limit", u64::from(wave) + 1)
        } else {
            let why = match self.control.devices {
                0 => "there is no control to compare with".to_owned(),
                control => {
                    let all = u64::from(devices) + u64::from(control);
                    format!("{} are too few to compare", counted(all, "device"))
                }
            };
            format!("wave {} passed, limits only: {why}; {basis} within the limits", u64::from(wave) + 1)
        };
        self.into_verdict(wave, at_ms, Outcome::Successful, summary)
    }

    /// What would be said now, though nothing is decided.
    pub(crate) fn so_far(self, wave: u32, at_ms: u64) -> Verdict {
        let outcome = if self.is_failed() { Outcome::Failed } else { Outcome::Inconclusive };
        let summary = format!("wave {} so far: {}", u64::from(wave) + 1, self.basis());
        self.into_verdict(wave, at_ms, outcome, summary)
    }

    /// What it rests on.
    fn basis(&self) -> String {
        let ArmSummary { devices, reporting, reports, requests, timed_out, .. } = self.canary;
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
        self.into_verdict(wave, at_ms, Outcome::Inconclusive, summary)
    }

    /// The verdict that time ran out; `why` says what was missing.
    pub(crate) fn inconclusive(mut self, wave: u32, at_ms: u64, since_ms: u64, max_ms: u64, why: &[String]) -> Verdict {
        let took_ms = at_ms.saturating_sub(since_ms);
        let sentence = format!("no verdict after {}, {} allowed", duration(took_ms), duration(max_ms));
        self.checks.push(Check {
            rule: Rule::MaxDuration,
            outcome: Outcome::Inconclusive,
            measured: Some(took_ms as f64),
            limit: max_ms as f64,
            canary_samples: u64::from(self.canary.devices),
            control_samples: u64::from(self.control.devices),
            sentence,
        });
        let missing = if why.is_empty() { String::new() } else { format!(": {}", why.join("; ")) };
        let summary = format!("wave {} had no verdict after {}{missing}", u64::from(wave) + 1, duration(took_ms));
        self.into_verdict(wave, at_ms, Outcome::Inconclusive, summary)
    }

    fn into_verdict(self, wave: u32, at_ms: u64, outcome: Outcome, summary: String) -> Verdict {
        let Self { checks, gate, analyses, canary, control, .. } = self;
        Verdict { at_ms, wave, outcome, checks, canary, control, gate, analyses, summary }
    }
}

fn outcome(measured: f64, limit: f64) -> Outcome {
    if measured > limit { Outcome::Failed } else { Outcome::Successful }
}

fn failures(limits: &Limits, canary: &ArmSummary, targets: &BTreeMap<DeviceId, Target>) -> Check {
    let (n, allowed) = (f64::from(canary.failures), f64::from(limits.max_failures));
    let sentence = if canary.failures == 0 {
        format!("no device failed, reverted or crashed, {} allowed", count(u64::from(limits.max_failures)))
    } else {
        let failed = targets.iter().filter_map(|(id, target)| target.failure.as_ref().map(|why| (id, why)));
        format!(
            "{} failed, reverted or crashed, {} allowed: {}",
            counted(u64::from(canary.failures), "device"),
            count(u64::from(limits.max_failures)),
            listed(failed.map(|(id, why)| format!("{id} ({why})"))),
        )
    };
    Check {
        rule: Rule::Failures,
        outcome: outcome(n, allowed),
        measured: Some(n),
        limit: allowed,
        canary_samples: u64::from(canary.devices),
        control_samples: 0,
        sentence,
    }
}

fn error_rate(limits: &Limits, canary: &ArmSummary, control: &ArmSummary) -> Check {
    let measured = (canary.requests > 0).then(|| canary.errors as f64 / canary.requests as f64);
    let judged = measured.filter(|_| canary.requests >= limits.min_requests);
    let sentence = match judged {
        Some(rate) => {
            let beside = match control.requests {
                0 => String::new(),
                requests => format!(", control {} of {}", count(control.errors), count(requests)),
            };
            format!(
                "error rate {} (canary {} of {}{beside})",
                comparison(rate * 100.0, limits.max_error_rate * 100.0, " %"),
                count(canary.errors),
                counted(canary.requests, "request"),
            )
        }
        None => format!("error rate not judged: {}", too_few(canary.requests, limits.min_requests, "requests")),
    };
    Check {
        rule: Rule::ErrorRate,
        outcome: judged.map_or(Outcome::Inconclusive, |rate| outcome(rate, limits.max_error_rate)),
        measured,
        limit: limits.max_error_rate,
        canary_samples: canary.requests,
        control_samples: control.requests,
        sentence,
    }
}

fn latency_ratio(limits: &Limits, canary: &ArmSummary, control: &Arm<'_>) -> Check {
    let (control, shadowed) = (&control.summary, control.shadowed);
    let timed = shadowed.unwrap_or(control.requests);
    let unjudged = if canary.requests < limits.min_requests {
        Some(format!("latency p99 not judged: {}", too_few(canary.requests, limits.min_requests, "requests")))
    } else if control.devices == 0 {
        Some("latency p99 not compared: no control".to_owned())
    } else if let Some(timed) = shadowed.filter(|timed| *timed < limits.min_requests) {
        let few = too_few(timed, limits.min_requests, "requests");
        Some(format!("model time p99 not compared: the incumbent's is known of {few}"))
    } else if shadowed.is_none() && control.reports < limits.min_reports {
        let (have, need) = (u64::from(control.reports), u64::from(limits.min_reports));
        Some(format!("latency p99 not compared: the control has {}", too_few(have, need, "reports")))
    } else if timed < limits.min_requests {
        let few = too_few(control.requests, limits.min_requests, "requests");
        Some(format!("latency p99 not compared: the control has {few}"))
    } else {
        None
    };
    let both = canary.latency_p99_us.zip(control.latency_p99_us);
    // The least a sketch holds is 1 µs, so the control's is never zero.
    let measured = both.map(|(new, old)| new / old);
    let (outcome, sentence) = match (unjudged, both.zip(measured)) {
        (Some(sentence), _) => (Outcome::Inconclusive, sentence),
        (None, None) => (Outcome::Inconclusive, "latency p99 not compared: no latency was reported".to_owned()),
        (None, Some(((new, old), ratio))) => (
            outcome(ratio, limits.max_latency_p99_ratio),
            match shadowed {
                None => format!(
                    "latency p99 {} the control's (canary {} over {}, control {} over {})",
                    comparison(ratio, limits.max_latency_p99_ratio, " ×"),
                    latency(new),
                    counted(canary.requests, "request"),
                    latency(old),
                    count(control.requests),
                ),
                Some(timed) => format!(
                    "model time p99 {} the incumbent's for the same requests (shadow {} over {}, incumbent {} over {})",
                    comparison(ratio, limits.max_latency_p99_ratio, " ×"),
                    latency(new),
                    counted(canary.requests, "request"),
                    latency(old),
                    count(timed),
                ),
            },
        ),
    };
    Check {
        rule: Rule::LatencyP99Ratio,
        outcome,
        measured,
        limit: limits.max_latency_p99_ratio,
        canary_samples: canary.requests,
        control_samples: timed,
        sentence,
    }
}

/// The score of one column, and what it was compared with.
struct ColumnScore<'a> {
    column: &'a str,
    score: f64,
    /// The chance of as much when nothing has moved.
    p_value: f64,
    /// How many times the predictions at hand would show this score to be beyond chance.
    times_needed: f64,
    canary: u64,
    control: u64,
    reference: Option<u64>,
}

/// The check, and how many predictions would settle it where they are too few to.
fn prediction_psi(
    limits: &Limits,
    canary: &Arm<'_>,
    control: &Arm<'_>,
    reference: &Predictions,
) -> (Check, Option<u64>) {
    let limit = limits.max_prediction_psi;
    let passes = |score: &ColumnScore<'_>| score.score > limit;
    let worst = canary
        .predictions
        .iter()
        .filter_map(|(column, classes)| column_score(limits, column, classes, canary, control, reference))
        // Beyond chance first: one column that has moved for sure outweighs a larger score that may mean nothing.
        .max_by(|a, b| {
            let sure = |score: &ColumnScore<'_>| passes(score) && score.p_value < PREDICTION_ALPHA;
            sure(a).cmp(&sure(b)).then(a.score.total_cmp(&b.score))
        });
    let outcome = match &worst {
        None => Outcome::Inconclusive,
        Some(worst) if !passes(worst) => Outcome::Successful,
        Some(worst) if worst.p_value < PREDICTION_ALPHA => Outcome::Failed,
        Some(_) => Outcome::Inconclusive,
    };
    let sentence = match &worst {
        Some(worst) => {
            let of = if canary.predictions.len() > 1 { format!(" of {}", worst.column) } else { String::new() };
            let beside = match worst.reference {
                None => format!("control {}", count(worst.control)),
                Some(rows) => format!("no control of that size, the bundle's reference {}", count(rows)),
            };
            let within = if outcome == Outcome::Inconclusive {
                format!("; within chance so far, p = {:.3}", worst.p_value)
            } else {
                String::new()
            };
            format!(
                "prediction PSI{of} {} (canary {}, {beside}{within})",
                comparison(worst.score, limit, ""),
                counted(worst.canary, "prediction"),
            )
        }
        None if canary.summary.predictions == 0 => "prediction PSI not judged: no class predictions".to_owned(),
        None if canary.summary.predictions < limits.min_requests => format!(
            "prediction PSI not judged: {}",
            too_few(canary.summary.predictions, limits.min_requests, "predictions")
        ),
        None => format!(
            "prediction PSI not compared: neither the control ({}) nor the bundle's reference has {} of the same column",
            count(control.summary.predictions),
            counted(limits.min_requests, "prediction"),
        ),
    };
    let needed = worst.as_ref().filter(|_| outcome == Outcome::Inconclusive).map(|worst| {
        let needed = (worst.canary as f64 * worst.times_needed).ceil().clamp(0.0, 1e15);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped just above")]
        let needed = needed as u64;
        needed.max(worst.canary.saturating_add(1))
    });
    let check = Check {
        rule: Rule::PredictionPsi,
        outcome,
        measured: worst.as_ref().map(|worst| worst.score),
        limit,
        canary_samples: worst.as_ref().map_or(canary.summary.predictions, |worst| worst.canary),
        control_samples: worst.as_ref().map_or(control.summary.predictions, |worst| worst.control),
        sentence,
    };
    (check, needed)
}

fn column_score<'a>(
    limits: &Limits,
    column: &'a str,
    classes: &BTreeMap<&str, u64>,
    arm: &Arm<'_>,
    control: &Arm<'_>,
    reference: &Predictions,
) -> Option<ColumnScore<'a>> {
    let canary = total(classes);
    if canary < limits.min_requests {
        return None;
    }
    let beside = control.predictions.get(column);
    let in_control = beside.map_or(0, total);
    let of_reference: BTreeMap<&str, u64>;
    let (other, rows) = match beside.filter(|_| in_control >= limits.min_requests) {
        Some(beside) => (beside, None),
        None => {
            of_reference = reference.get(column)?.iter().map(|(class, n)| (class.as_str(), *n)).collect();
            let rows = total(&of_reference);
            if rows < limits.min_requests {
                return None;
            }
            (&of_reference, Some(rows))
        }
    };
    let (other, current) = aligned(other, classes);
    let score = psi(&other, &current)?;
    // What is within the limit needs no test, which takes another look at every device.
    let test = (score > limits.max_prediction_psi).then(|| {
        let other_effective = rows.map_or_else(|| control.effective_predictions(column), |rows| rows as f64);
        homogeneity(&other, other_effective, &current, arm.effective_predictions(column))
    });
    // A single class on both sides cannot have moved.
    let test = test.flatten();
    let p_value = test.map_or(1.0, |test| test.p_value);
    let times_needed = test.map_or(1.0, |test| test.critical(PREDICTION_ALPHA) / test.statistic.max(f64::MIN_POSITIVE));
    Some(ColumnScore { column, score, p_value, times_needed, canary, control: in_control, reference: rows })
}

/// The counts of two sides over the same classes.
fn aligned(reference: &BTreeMap<&str, u64>, current: &BTreeMap<&str, u64>) -> (Vec<u64>, Vec<u64>) {
    let mut cells: BTreeMap<&str, (u64, u64)> = reference.iter().map(|(class, n)| (*class, (*n, 0))).collect();
    for (class, n) in current {
        cells.entry(class).or_default().1 = *n;
    }
    cells.into_values().unzip()
}

fn min_reports(limits: &Limits, canary: &ArmSummary) -> Check {
    let (have, need) = (u64::from(canary.reports), u64::from(limits.min_reports));
    least(Rule::MinReports, have, need, u64::from(canary.reporting), "reports")
}

fn min_requests(limits: &Limits, canary: &ArmSummary) -> Check {
    least(Rule::MinRequests, canary.requests, limits.min_requests, canary.requests, "requests")
}

fn least(rule: Rule, have: u64, need: u64, samples: u64, things: &str) -> Check {
    let enough = have >= need;
    Check {
        rule,
        outcome: if enough { Outcome::Successful } else { Outcome::Inconclusive },
        measured: Some(have as f64),
        limit: need as f64,
        canary_samples: samples,
        control_samples: 0,
        sentence: if enough {
            format!("{} {things}, {} needed", count(have), count(need))
        } else {
            too_few(have, need, things)
        },
    }
}

fn too_few(have: u64, need: u64, things: &str) -> String {
    format!("{} of {} {things}", count(have), count(need))
}
