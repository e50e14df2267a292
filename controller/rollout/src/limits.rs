//! Holds what a wave measured against the rollout's limits, and says so in sentences. How its devices compare with others is
//! [`crate::gate`]'s matter, and what becomes of it all [`crate::judgement`]'s.
//!
//! Limits are absolute: they need no test, and one that is passed stops the wave at once. What cannot be judged, for
//! want of data or of a control, is `Inconclusive` in its check. The least numbers of reports and requests are needed
//! always; a comparison without a control is not, but the verdict says then that it rests on limits only.
//!
//! [`inputs`] adds up what devices measured; [`hold`] takes nothing but that, so that it comes to the same whenever it is asked.

mod disagreement;
mod predictions;

use muster_shared::rollout::{Check, ComparedRows, LimitsInputs, Outcome, Rule};
use muster_shared::trust::Stage;

use crate::abort;
use crate::evidence::Arm;
use crate::judgement::Judgement;
use crate::rollout::Rollout;
use crate::wording::{comparison, count, counted, latency, listed};

/// What came of holding a wave against its limits.
pub(crate) struct Held {
    pub(crate) checks: Vec<Check>,
    /// The column of predictions that decided.
    pub(crate) decisive: Option<String>,
    /// Predictions after which a score above its limit, and within chance so far, will be beyond it.
    pub(crate) predictions_needed: Option<u64>,
    /// Rows that were compared with the incumbent's, and rows needed, where these are more.
    pub(crate) compared_needed: Option<(u64, u64)>,
}

/// Judges the current wave of `rollout`.
pub(crate) fn judge(rollout: &Rollout, canary: &Arm<'_>, control: &Arm<'_>) -> Judgement {
    Judgement::of(inputs(rollout, canary, control), abort::inputs(rollout))
}

/// What the limits of `rollout` are held against.
fn inputs(rollout: &Rollout, canary: &Arm<'_>, control: &Arm<'_>) -> LimitsInputs {
    let (limits, emergency) = (rollout.spec.limits, rollout.spec.emergency);
    let (agreed, disagreed) = canary.compared;
    let is_shadow = matches!(rollout.wave_stage(), Stage::Shadow { .. });
    let failed = rollout.targets.iter().filter_map(|(id, target)| target.failure.as_ref().map(|why| (id, why)));
    LimitsInputs {
        limits,
        emergency,
        canary: canary.summary,
        control: control.summary,
        failing: if canary.summary.failures == 0 {
            String::new()
        } else {
            listed(failed.map(|(id, why)| format!("{id} ({why})")))
        },
        on_both_sides: control.canaries,
        shadowed: control.shadowed,
        compared: limits.max_disagreement.filter(|_| is_shadow).map(|_| ComparedRows { agreed, disagreed }),
        columns: u32::try_from(canary.predictions.len()).unwrap_or(u32::MAX),
        predictions: if emergency { Default::default() } else { predictions::counts(rollout, canary, control) },
    }
}

/// Holds a wave against its limits.
pub(crate) fn hold(inputs: &LimitsInputs) -> Held {
    let (disagreement, compared_needed) = disagreement::hold(inputs).unzip();
    let predictions = predictions::hold(inputs);
    Held {
        checks: [
            failures(inputs),
            error_rate(inputs),
            latency_ratio(inputs),
            predictions.check,
            min_reports(inputs),
            min_requests(inputs),
        ]
        .into_iter()
        .chain(disagreement)
        .collect(),
        decisive: predictions.decisive,
        predictions_needed: predictions.needed,
        compared_needed: compared_needed.flatten(),
    }
}

fn outcome(measured: f64, limit: f64) -> Outcome {
    if measured > limit { Outcome::Failed } else { Outcome::Successful }
}

fn failures(inputs: &LimitsInputs) -> Check {
    let LimitsInputs { limits, canary, failing, .. } = inputs;
    let (n, allowed) = (f64::from(canary.failures), f64::from(limits.max_failures));
    let sentence = if canary.failures == 0 {
        format!("no device failed, reverted or crashed, {} allowed", count(u64::from(limits.max_failures)))
    } else {
        format!(
            "{} failed, reverted or crashed, {} allowed: {failing}",
            counted(u64::from(canary.failures), "device"),
            count(u64::from(limits.max_failures)),
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

fn error_rate(inputs: &LimitsInputs) -> Check {
    let LimitsInputs { limits, canary, control, .. } = inputs;
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

fn latency_ratio(inputs: &LimitsInputs) -> Check {
    let LimitsInputs { limits, canary, control, shadowed, .. } = inputs;
    let shadowed = *shadowed;
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

fn min_reports(inputs: &LimitsInputs) -> Check {
    let LimitsInputs { limits, canary, .. } = inputs;
    let (have, need) = (u64::from(canary.reports), u64::from(limits.min_reports));
    least(Rule::MinReports, have, need, u64::from(canary.reporting), "reports")
}

fn min_requests(inputs: &LimitsInputs) -> Check {
    let LimitsInputs { limits, canary, .. } = inputs;
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
