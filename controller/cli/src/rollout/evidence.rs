//! `muster rollout evidence` and `replay`: what a gate's verdicts rest on, and the same verdicts reached again.

use std::path::{Path, PathBuf};

use clap::Args;
use muster_rollout::judge;
use muster_shared::ids::RolloutId;
use muster_shared::rollout::{Block, GateEvidence, GateReport, GuardrailReport};

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
    let all: Vec<GateEvidence> = block_on(client.get(&["rollouts", args.id.as_str(), "evidence"], &[]))?;
    if all.is_empty() {
        output::note("no wave of this rollout was compared with controls so far");
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

/// Every guardrail of a wave.
pub(super) fn guardrails_table(report: &GateReport) -> String {
    output::table(
        &["guardrail", "outcome", "blocks", "evidence of a loss", "difference", "at most", "margin"],
        report.guardrails.iter().map(guardrail_row),
    )
}

/// What a gate made of a wave.
pub(crate) fn report_text(report: &GateReport) -> String {
    let title = output::clean(&format!("{}: {}", report.outcome, report.sentence));
    format!("{title}\n{}", guardrails_table(report))
}

fn parse(path: &Path) -> Result<Vec<GateEvidence>, Failure> {
    let fault = |reason: String| Failure::input(format!("{}: {reason}", path.display()));
    let all: Vec<GateEvidence> = serde_json::from_str(&disk::read_text(path, MAX_EVIDENCE_BYTES)?)
        .map_err(|error| fault(format!("this is not what `muster rollout evidence` writes: {error}")))?;
    for evidence in &all {
        let scores = evidence.gate.guardrails.len();
        let mut devices = evidence.blocks.iter().flat_map(Block::members);
        if let Some(device) = devices.find(|device| device.scores.len() != scores) {
            return Err(fault(format!(
                "{} of wave {} has {} scores, its gate has {scores} guardrails",
                device.device,
                evidence.wave + 1,
                device.scores.len()
            )));
        }
    }
    Ok(all)
}

/// Reaches the verdicts of a file again.
///
/// # Errors
/// [`Failure`] when the file is none, or a verdict comes out otherwise.
pub(super) fn replay(context: &Context, path: &Path) -> Result<(), Failure> {
    let stored = parse(path)?;
    let again = stored
        .iter()
        .map(|one| judge(&one.gate, one.alpha, &one.blocks, one.dealt, one.predicted.as_ref()))
        .collect::<Vec<_>>();
    context.output.show(&again, |again| {
        let all = stored.iter().zip(again).map(|(stored, report)| {
            let title = format!(
                "{} of {}, wave {}, {}",
                stored.rollout,
                stored.bundle,
                stored.wave + 1,
                output::time(stored.at_ms)
            );
            format!("{}\n{}", output::clean(&title), report_text(report))
        });
        all.collect::<Vec<_>>().join("\n\n")
    })?;
    // Another machine may round the last digit otherwise, and sentences may be worded anew.
    let alike = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + a.abs());
    let same = |a: &GateReport, b: &GateReport| a.outcome == b.outcome && alike(a.log_e, b.log_e);
    match stored.iter().zip(&again).find(|(stored, again)| !same(&stored.report, again)) {
        None => {
            output::note(&format!("{} verdict(s), each as it was stored", stored.len()));
            Ok(())
        }
        Some((stored, again)) => Err(Failure::unmet(format!(
            "wave {} was stored as {} and comes out as {}",
            stored.wave + 1,
            stored.report.outcome,
            again.outcome
        ))),
    }
}
