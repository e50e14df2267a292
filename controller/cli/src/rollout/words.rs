//! How a rollout's parts are said.

use std::collections::BTreeMap;

use muster_shared::rollout::{
    ArmSummary, Check, DeviceProgress, Outcome, RolloutStatus, RolloutView, Verdict, Waiting, WaveSpec, WaveView,
};

use crate::duration::Millis;
use crate::output::{self, Tone};

/// Why a rollout waits, with times that people can read.
pub(super) fn waiting(reason: &Waiting, now_ms: u64) -> String {
    match reason {
        Waiting::Soaking { until_ms } => {
            let left = Millis(until_ms.saturating_sub(now_ms)).rough();
            format!("soaking until {} ({left} left)", output::time(*until_ms))
        }
        Waiting::Analysing { metric, have, of, next_ms } => {
            format!("analysis {metric}: {have} of {of} measurements, the next at {}", output::time(*next_ms))
        }
        Waiting::Frozen { until_ms, why } => format!("a freeze until {}: {why}", output::time(*until_ms)),
        Waiting::Rate { next_ms, .. } => {
            let without = up_to(reason, " at ");
            format!("{without} at {}", output::time(*next_ms))
        }
        Waiting::OutsideWindow { next_ms: Some(next_ms), .. } => {
            let without = up_to(reason, "; open at");
            format!("{without}; open at {}", output::time(*next_ms))
        }
        Waiting::Scheduled { at_ms } => {
            let left = Millis(at_ms.saturating_sub(now_ms)).rough();
            format!("it begins at {} (in {left})", output::time(*at_ms))
        }
        Waiting::Approval { until_ms: Some(until_ms), .. } => {
            let without = up_to(reason, "; until");
            let left = Millis(until_ms.saturating_sub(now_ms)).rough();
            format!("{without}; until {} ({left} left)", output::time(*until_ms))
        }
        Waiting::Switching { groups } => {
            let when = |(group, at_ms): (&String, &u64)| format!("{group} at {}", output::time(*at_ms));
            format!("to switch together: {}", groups.iter().map(when).collect::<Vec<_>>().join(", "))
        }
        Waiting::Approval { until_ms: None, .. }
        | Waiting::Queued { .. }
        | Waiting::OutsideWindow { next_ms: None, .. }
        | Waiting::NoDevices
        | Waiting::Updating { .. }
        | Waiting::HeldBack { .. }
        | Waiting::Preparing { .. }
        | Waiting::Offline { .. }
        | Waiting::TimedOut { .. }
        | Waiting::TooFewReports { .. }
        | Waiting::TooFewRequests { .. }
        | Waiting::TooFewPredictions { .. }
        | Waiting::TooFewCompared { .. }
        | Waiting::Unscored { .. }
        | Waiting::HeldByOtherRollout { .. }
        | Waiting::Unsuitable { .. }
        | Waiting::CannotBeTold { .. }
        | Waiting::HoldbackGroup { .. }
        | Waiting::CameLater { .. }
        | Waiting::Paused { .. }
        | Waiting::GoingBack { .. } => reason.to_string(),
    }
}

/// What a reason says before the last `mark`: a time follows, in milliseconds.
fn up_to(reason: &Waiting, mark: &str) -> String {
    let text = reason.to_string();
    text.rsplit_once(mark).map_or(text.as_str(), |(before, _)| before).to_owned()
}

/// Every reason why a rollout waits, in one line.
pub(super) fn all_waiting(view: &RolloutView, now_ms: u64) -> String {
    view.waiting.iter().map(|reason| waiting(reason, now_ms)).collect::<Vec<_>>().join("; ")
}

/// How good a state is.
pub(super) fn status_tone(status: RolloutStatus) -> Tone {
    match status {
        RolloutStatus::Completed => Tone::Good,
        RolloutStatus::RollingBack | RolloutStatus::RolledBack | RolloutStatus::Stopped => Tone::Bad,
        RolloutStatus::Draft
        | RolloutStatus::WaitingForApproval
        | RolloutStatus::Ready
        | RolloutStatus::Running
        | RolloutStatus::Paused => Tone::Busy,
    }
}

/// How good an outcome is.
pub(crate) fn outcome_tone(outcome: Outcome) -> Tone {
    match outcome {
        Outcome::Successful => Tone::Good,
        Outcome::Failed | Outcome::Error => Tone::Bad,
        Outcome::Inconclusive => Tone::Busy,
    }
}

/// Whether a device has arrived where the rollout wants it: on the new bundle, or back on the old one.
pub(super) fn has_arrived(progress: DeviceProgress, status: RolloutStatus) -> bool {
    let going_back = matches!(status, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
    match progress {
        DeviceProgress::Committed | DeviceProgress::Beside => !going_back,
        DeviceProgress::Back => going_back,
        DeviceProgress::Pending
        | DeviceProgress::Assigned
        | DeviceProgress::Updating
        | DeviceProgress::Ready
        | DeviceProgress::Trial
        | DeviceProgress::TimedOut
        | DeviceProgress::Failed
        | DeviceProgress::GoingBack
        | DeviceProgress::Revoked => false,
    }
}

/// Devices of a wave that have arrived, and all that can.
pub(super) fn arrived(wave: &WaveView, status: RolloutStatus) -> (u64, u64) {
    let done = wave.devices.values().filter(|progress| has_arrived(**progress, status)).count();
    let all = wave.devices.values().filter(|progress| **progress != DeviceProgress::Revoked).count();
    (done as u64, all as u64)
}

/// Devices of a wave by how far they are, as `3 committed, 1 trial`.
pub(super) fn progress(wave: &WaveView) -> String {
    let mut counts: BTreeMap<DeviceProgress, u32> = BTreeMap::new();
    for progress in wave.devices.values() {
        *counts.entry(*progress).or_default() += 1;
    }
    if counts.is_empty() && wave.verdict.is_some() {
        return "gone on to later waves".to_owned();
    }
    if counts.is_empty() {
        return "no device yet".to_owned();
    }
    // The furthest first.
    let said =
        counts.iter().rev().map(|(progress, count)| format!("{count} {}", output::word(progress).replace('_', " ")));
    said.collect::<Vec<_>>().join(", ")
}

/// A wave by number, size and the part it has of its own, as `wave 1/3 (25% of site=lyon, shadow of 100 %)`.
pub(super) fn wave_name(index: usize, waves: usize, spec: Option<&WaveSpec>) -> String {
    let size = spec.map_or_else(String::new, |spec| {
        let stage = spec.stage.as_ref().map_or_else(String::new, |stage| format!(", {stage}"));
        match &spec.selector {
            Some(selector) => format!(" ({} of {selector}{stage})", spec.size),
            None => format!(" ({}{stage})", spec.size),
        }
    });
    format!("wave {}/{waves}{size}", index + 1)
}

/// One side of a comparison in a line.
pub(super) fn arm(arm: &ArmSummary) -> String {
    let p99 = output::optional(arm.latency_p99_us, |us| format!("{} ms", output::significant(us / 1_000.0)));
    format!(
        "{}; {} reports, {} requests, {} errors, p99 {p99}, {} predictions, {} failures",
        arm.outcomes(),
        arm.reports,
        arm.requests,
        arm.errors,
        arm.predictions,
        arm.failures
    )
}

fn measured(check: &Check) -> String {
    check.measured.map_or_else(|| "nothing".to_owned(), output::significant)
}

/// A check in a line.
pub(super) fn check(check: &Check) -> String {
    if check.sentence.is_empty() {
        let limit = output::significant(check.limit);
        return format!("{}: {} against {limit}", check.rule.as_str(), measured(check));
    }
    check.sentence.clone()
}

/// A verdict with its checks, one a line.
pub(super) fn verdict(verdict: &Verdict) -> Vec<String> {
    let mut lines = vec![format!("verdict on wave {}: {}: {}", verdict.wave + 1, verdict.outcome, verdict.summary)];
    lines.extend(verdict.checks.iter().map(|c| format!("  {:<12}  {:<17}  {}", c.outcome, c.rule.as_str(), check(c))));
    lines.push(format!("  canary: {}", arm(&verdict.canary)));
    lines.push(format!("  control: {}", arm(&verdict.control)));
    lines
}

#[cfg(test)]
pub(super) mod tests {
    use muster_shared::ids::{DeviceId, Digest};
    use muster_shared::rollout::{DeviceOutcomes, RolloutSpec, Rule, WaveSize};
    use muster_shared::selector::Selector;

    use super::*;

    /// A running rollout with a canary wave of two devices.
    pub(in crate::rollout) fn running() -> RolloutView {
        let wave = |size: WaveSize| WaveSpec::of(size, 1, 2);
        let device = |name: &str| DeviceId::new(name).unwrap();
        RolloutView {
            id: "r1".parse().unwrap(),
            spec: RolloutSpec::of(
                "digits@1.1.0".parse().unwrap(),
                Selector::all(),
                vec![wave(WaveSize::Count(2)), wave(WaveSize::Percent(100))],
            ),
            manifest: Digest::of(b"m"),
            status: RolloutStatus::Running,
            status_reason: "started".into(),
            created_at_ms: 0,
            created_by: None,
            approval: None,
            updated_at_ms: 0,
            current_wave: 0,
            waves: vec![
                WaveView {
                    devices: [(device("a"), DeviceProgress::Committed), (device("b"), DeviceProgress::Trial)].into(),
                    started_at_ms: Some(0),
                    verdict: None,
                    analyses: vec![],
                },
                WaveView { devices: BTreeMap::new(), started_at_ms: None, verdict: None, analyses: vec![] },
            ],
            outcomes: DeviceOutcomes { targeted: 2, succeeded: 1, reported: 1, ..DeviceOutcomes::default() },
            waiting: vec![Waiting::Soaking { until_ms: 90_000 }, Waiting::TooFewRequests { have: 12, need: 100 }],
            verdicts: vec![],
        }
    }

    /// A verdict that stopped a wave.
    pub(in crate::rollout) fn failed() -> Verdict {
        let sentence = "prediction PSI 3.41 > 0.25 (canary 412 predictions, control 1,604)";
        Verdict {
            at_ms: 0,
            wave: 0,
            outcome: Outcome::Failed,
            checks: vec![Check {
                rule: Rule::PredictionPsi,
                outcome: Outcome::Failed,
                measured: Some(3.41),
                limit: 0.25,
                canary_samples: 412,
                control_samples: 1_604,
                sentence: sentence.into(),
            }],
            canary: ArmSummary { devices: 2, latency_p99_us: Some(1_234.0), ..ArmSummary::default() },
            control: ArmSummary::default(),
            gate: None,
            analyses: vec![],
            summary: "predictions moved".into(),
            inputs: None,
        }
    }

    #[test]
    fn everything_is_said_in_words() {
        let view = running();
        assert_eq!(all_waiting(&view, 0), "soaking until 1970-01-01T00:01:30Z (1m 30s left); 12 of 100 requests");
        let held = Waiting::Rate { per_minute: 20, left: 340, next_ms: 60_000 };
        let said = "20 devices a minute: 340 still to come in, the next at 1970-01-01T00:01:00Z";
        assert_eq!(waiting(&held, 0), said);
        assert_eq!(progress(&view.waves[0]), "1 committed, 1 trial");
        assert_eq!(progress(&view.waves[1]), "no device yet");
        assert_eq!(arrived(&view.waves[0], RolloutStatus::Running), (1, 2));
        assert_eq!(arrived(&view.waves[0], RolloutStatus::RollingBack), (0, 2));
        assert_eq!(wave_name(0, 2, view.spec.waves.first()), "wave 1/2 (2)");
        let lines = verdict(&failed());
        assert_eq!(lines[0], "verdict on wave 1: Failed: predictions moved");
        assert_eq!(
            lines[1],
            "  Failed        prediction-psi     prediction PSI 3.41 > 0.25 (canary 412 predictions, control 1,604)"
        );
        assert!(lines[2].contains("p99 1.23 ms"), "{}", lines[2]);
    }
}
