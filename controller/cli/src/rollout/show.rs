//! `muster rollout list` and `show`.

use muster_shared::ids::RolloutId;
use muster_shared::rollout::{Check, RolloutStatus, RolloutView, Verdict};

use super::evidence::guardrails_table;
use super::{abort, approval, deadline, stop, words};
use crate::analysis::report_table;
use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::output::{self, cell, number, toned};

/// Does what `list` asks.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(super) fn list(context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let rollouts: Vec<RolloutView> = block_on(client.list(&["rollouts"], &[]))?;
    stop::note(&client);
    if rollouts.is_empty() {
        output::note("no rollout");
    }
    context.output.show(&rollouts, |rollouts| {
        let rows = rollouts.iter().map(|view| {
            vec![
                cell(view.id.as_str()),
                cell(view.spec.bundle.to_string()),
                cell(view.spec.selector.to_string()),
                toned(view.status.as_str(), words::status_tone(view.status)),
                number(format!("{}/{}", view.current_wave + 1, view.spec.waves.len())),
                cell(output::time(view.updated_at_ms)),
                cell(reason(view)),
            ]
        });
        output::table(&["id", "bundle", "selector", "status", "wave", "updated", "reason"], rows)
    })
}

/// Why it stands so; of one that waits for people, whom it waits for.
fn reason(view: &RolloutView) -> String {
    if view.status == RolloutStatus::WaitingForApproval {
        words::all_waiting(view, output::now_ms())
    } else {
        view.status_reason.clone()
    }
}

fn check_row(check: &Check) -> Vec<comfy_table::Cell> {
    vec![
        cell(check.rule.as_str()),
        toned(check.outcome.to_string(), words::outcome_tone(check.outcome)),
        number(output::optional(check.measured, output::significant)),
        number(output::significant(check.limit)),
        number(check.canary_samples.to_string()),
        number(check.control_samples.to_string()),
        cell(&check.sentence),
    ]
}

/// Every rule with its numbers.
pub(super) fn checks_table(checks: &[Check]) -> String {
    output::table(
        &["rule", "outcome", "measured", "limit", "canary n", "control n", "in words"],
        checks.iter().map(check_row),
    )
}

fn verdict_text(verdict: &Verdict) -> String {
    let (wave, at) = (verdict.wave + 1, output::time(verdict.at_ms));
    format!("verdict on wave {wave} at {at}: {}: {}", verdict.outcome, numbers_text(verdict))
}

/// What a verdict, or what would be one, rests on.
pub(super) fn numbers_text(verdict: &Verdict) -> String {
    let checks = checks_table(&verdict.checks);
    let arms =
        output::properties(&[("canary", words::arm(&verdict.canary)), ("control", words::arm(&verdict.control))]);
    let gate = verdict.gate.as_ref().map_or_else(String::new, |report| format!("\n{}", guardrails_table(report)));
    let analyses = match verdict.analyses.as_slice() {
        [] => String::new(),
        reports => format!("\n{}", report_table(reports)),
    };
    format!("{}\n{checks}{gate}{analyses}\n{arms}", output::clean(&verdict.summary))
}

fn waves_text(view: &RolloutView) -> String {
    let rows = view.waves.iter().enumerate().map(|(index, wave)| {
        let spec = view.spec.waves.get(index);
        let (done, of) = words::arrived(wave, view.status);
        let verdict = wave.verdict.as_ref();
        vec![
            cell(words::wave_name(index, view.waves.len(), spec)),
            cell(spec.map_or_else(String::new, |spec| Millis(spec.soak_ms).rough())),
            cell(output::time_or_dash(wave.started_at_ms)),
            number(format!("{done}/{of}")),
            cell(words::progress(wave)),
            verdict.map_or_else(|| cell("-"), |v| toned(v.outcome.to_string(), words::outcome_tone(v.outcome))),
        ]
    });
    output::table(&["wave", "soak", "started", "arrived", "devices", "verdict"], rows)
}

fn created(view: &RolloutView) -> String {
    let by = view.created_by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
    format!("{}{by}", output::time(view.created_at_ms))
}

/// A rollout with everything that is known of it.
pub(super) fn text(view: &RolloutView, now_ms: u64) -> String {
    let waiting: Vec<String> = view.waiting.iter().map(|reason| words::waiting(reason, now_ms)).collect();
    let mut pairs = vec![
        ("rollout", view.id.to_string()),
        ("bundle", format!("{} ({})", view.spec.bundle, view.manifest.short())),
        ("selector", view.spec.selector.to_string()),
        ("status", format!("{}: {}", view.status, view.status_reason)),
        ("created", created(view)),
        ("updated", output::time(view.updated_at_ms)),
    ];
    if let Some(record) = &view.approval {
        pairs.push(("approval", approval::text(record)));
    }
    if let Some(rate) = &view.spec.rate {
        pairs.push(("rate", rate.to_string()));
    }
    pairs.extend(view.spec.deadlines.as_ref().map(|deadlines| ("deadlines", deadline::text(deadlines))));
    if !view.spec.abort_criteria.is_empty() {
        pairs.push(("ends by itself", abort::text(&view.spec.abort_criteria)));
    }
    if view.outcomes.targeted > 0 {
        pairs.push(("so far", view.outcomes.to_string()));
    }
    if !waiting.is_empty() {
        pairs.push(("waiting", waiting.join("\n")));
    }
    let mut parts = vec![output::properties(&pairs), waves_text(view)];
    // What a verdict rests on is shown with it.
    let current = view.waves.get(view.current_wave as usize).filter(|_| view.status == RolloutStatus::Running);
    parts.extend(current.filter(|wave| !wave.analyses.is_empty()).map(|wave| report_table(&wave.analyses)));
    parts.extend(view.verdicts.iter().map(verdict_text));
    parts.join("\n\n")
}

/// Does what `show` asks.
///
/// # Errors
/// [`Failure`] when there is no such rollout.
pub(super) fn show(context: &Context, id: &RolloutId) -> Result<(), Failure> {
    let client = context.client()?;
    let view: RolloutView = block_on(client.get(&["rollouts", id.as_str()], &[]))?;
    context.output.show(&view, |view| text(view, output::now_ms()))
}

#[cfg(test)]
mod tests {
    use super::super::words::tests::{failed, running};
    use super::*;

    #[test]
    fn a_rollout_is_shown_with_its_evidence() {
        let mut view = running();
        view.verdicts.push(failed());
        view.waves[0].verdict = Some(failed());
        let text = text(&view, 0);
        for part in [
            "status    running: started",
            "waiting   soaking until 1970-01-01T00:01:30Z (1m 30s left)\n          12 of 100 requests",
            "wave 1/2 (2)",
            "1 committed, 1 trial",
            "prediction-psi  Failed",
            "3.41",
            "412",
            "so far    success on 1 of 2 devices targeted (50.0 %), errors on 0 of 1 that reported (0.0 %)",
            "canary   success on 0 of 2 devices targeted (0.0 %), errors on 0 of 0 that reported; 0 reports",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
