//! `muster rollout evidence` and `replay`: what verdicts rest on, and the same verdicts reached again.

use std::path::{Path, PathBuf};

use clap::Args;
use muster_rollout::{Replayed, replay as judge_again};
use muster_shared::ids::RolloutId;
use muster_shared::rollout::{GateReport, GuardrailReport, RolloutEvidence};

use super::show::checks_table;
use super::words;
use crate::command::{Context, block_on};
use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;
use crate::output::{self, cell, number, toned};

const MAX_EVIDENCE_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Debug, Args)]
pub(crate) struct EvidenceArgs {
    /// The rollout's id.
    id: RolloutId,
    /// Write to this file, which must not exist yet [default: standard output].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Writes the evidence of a rollout.
///
/// # Errors
/// [`Failure`] when there is no such rollout, or the file cannot be written.
pub(super) fn write(context: &Context, args: &EvidenceArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let all: Vec<RolloutEvidence> = block_on(client.get(&["rollouts", args.id.as_str(), "evidence"], &[]))?;
    if all.is_empty() {
        output::note("there is no verdict on this rollout so far");
    }
    let text = serde_json::to_string_pretty(&all)
        .map_err(|error| Failure::unmet("this evidence is no JSON").because(error))?;
    match &args.out {
        Some(path) => disk::write(path, format!("{text}\n").as_bytes(), Privacy::Public, Existing::Keep),
        None => output::print(&text),
    }
}

/// Evidence of a loss, given as a natural logarithm: how many to 1.
pub(crate) fn evidence(log_e: f64) -> String {
    const MOST: f64 = 1e6;
    let odds = log_e.exp();
    if odds > MOST { format!("> {MOST}") } else { format!("{odds:.2}") }
}

/// One guardrail in a row.
fn guardrail_row(report: &GuardrailReport) -> Vec<comfy_table::Cell> {
    let points = |share: f64| format!("{:+.2} pp", share * 100.0);
    vec![
        cell(report.guardrail.to_string()),
        toned(report.outcome.to_string(), words::outcome_tone(report.outcome)),
        number(report.blocks.to_string()),
        number(evidence(report.log_e)),
        number(output::optional(report.mean_difference, points)),
        number(output::optional(report.upper_bound, points)),
        number(output::optional(report.guardrail.margin, points)),
    ]
}

/// The wave's part of α, and every guardrail.
pub(super) fn guardrails_table(report: &GateReport) -> String {
    let left = report.alpha_left.map_or_else(String::new, |left| format!(", later waves have {}", level(left)));
    let table = output::table(
        &["guardrail", "outcome", "blocks", "evidence of a loss", "difference", "at most", "margin"],
        report.guardrails.iter().map(guardrail_row),
    );
    format!("alpha {} in this wave{left}\n{table}", level(report.alpha))
}

/// What a gate made of a wave.
pub(crate) fn report_text(report: &GateReport) -> String {
    let title = output::clean(&format!("{}: {}", report.outcome, report.sentence));
    format!("{title}\n{}", guardrails_table(report))
}

/// A chance to be wrong, as `3.67 %`.
fn level(alpha: f64) -> String {
    format!("{:.2} %", alpha * 100.0)
}

fn parse(path: &Path) -> Result<Vec<Replayed>, Failure> {
    let fault = |reason: String| Failure::input(format!("{}: {reason}", path.display()));
    let all: Vec<RolloutEvidence> = serde_json::from_str(&disk::read_text(path, MAX_EVIDENCE_BYTES)?)
        .map_err(|error| fault(format!("this is not what `muster rollout evidence` writes: {error}")))?;
    all.iter().map(|evidence| judge_again(evidence).map_err(&fault)).collect()
}

/// One verdict as it comes out, and what is stored otherwise.
fn replayed_text(replayed: &Replayed) -> String {
    let Replayed { rollout, bundle, wave, at_ms, stored, outcome, checks, gate, differences } = replayed;
    let came =
        if stored == outcome { format!("{outcome}, as stored") } else { format!("{outcome}, stored as {stored}") };
    let title = format!("{rollout} of {bundle}, wave {}, {}: {came}", u64::from(*wave) + 1, output::time(*at_ms));
    let mut lines = vec![output::clean(&title)];
    if !checks.is_empty() {
        lines.push(checks_table(checks));
    }
    lines.extend(gate.as_ref().map(report_text));
    lines.extend(differences.iter().map(|difference| output::clean(&format!("differs: {difference}"))));
    lines.join("\n")
}

/// Reaches the verdicts of a file again.
///
/// # Errors
/// [`Failure`] when the file is none, or a verdict comes out otherwise.
pub(super) fn replay(context: &Context, path: &Path) -> Result<(), Failure> {
    let again = parse(path)?;
    context.output.show(&again, |again| again.iter().map(replayed_text).collect::<Vec<_>>().join("\n\n"))?;
    let differs = |replayed: &&Replayed| !replayed.differences.is_empty();
    match again.iter().find(differs) {
        None => {
            output::note(&format!("{} verdict(s), each as it was stored", again.len()));
            Ok(())
        }
        Some(first) => Err(Failure::unmet(format!(
            "{} of {} verdict(s) come out otherwise than stored; wave {}: {}",
            again.iter().filter(differs).count(),
            again.len(),
            u64::from(first.wave) + 1,
            first.differences.join("; ")
        ))),
    }
}
