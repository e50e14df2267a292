//! `muster gate check`: the gate of a rollout over a file of scores.
//!
//! The file holds what devices scored, however it was come by; the functions that judge are the controller's own. Nothing is asked of a
//! controller, so it serves for post-mortems, for trying out margins, and for holding the gate against another implementation.

mod scores;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use muster_rollout::statistics::{MIN_BLOCKS, wave_alpha};
use muster_rollout::{Gate, scales};
use muster_shared::rollout::{GateReport, GateSpec, Outcome};
use serde::Serialize;

use self::scores::Scores;
use crate::command::Context;
use crate::failure::Failure;
use crate::output::{self, cell, number, toned};
use crate::rollout::{GateOptions, evidence, outcome_tone, report_text};
use crate::{disk, settings_file};

const MAX_POLICY_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum GateCommand {
    /// Judge a file of device scores, block by block in order of time. Exits with 0 if it is successful, 1 if canaries are worse, 5 if it
    /// shows neither.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// What is asked: alpha and guardrails in the words of a rollout's [gate], in YAML (.yaml, .yml) or TOML.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The scores, as CSV with the columns time, block, device, arm (canary or control) and one for each guardrail, named as in the
    /// policy without margin and range (metric:line_stops). A cell is a share from 0 to 1, of confidence or a guardrail with a range the mean
    /// itself; prediction-drift has a column predicted:CLASS with a count for each class instead. An empty one is a device that had nothing to score, "silent" one that was not heard of.
    #[arg(long, value_name = "FILE.csv")]
    data: PathBuf,
    /// Which wave of how many this is, as 2/3: it gets that wave's part of alpha.
    #[arg(long, value_name = "N/M", default_value = "1/1")]
    wave: Wave,
}

/// `N/M`, N counted from 1.
#[derive(Debug, Clone, Copy)]
struct Wave {
    number: u32,
    of: u32,
}

impl std::str::FromStr for Wave {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = |(number, of): (&str, &str)| Some(Self { number: number.parse().ok()?, of: of.parse().ok()? });
        let wave = text.split_once('/').and_then(read).filter(|wave| (1..=wave.of).contains(&wave.number));
        wave.ok_or_else(|| format!("{text:?} is no wave of so many: write 2/3"))
    }
}

/// What is known after one block.
#[derive(Debug, Serialize)]
struct Step {
    time: String,
    block: String,
    /// Everything so far. `log_e` is the strongest evidence after any block up to here.
    report: GateReport,
}

/// What the whole came to, and how.
#[derive(Debug, Serialize)]
struct Checked {
    steps: Vec<Step>,
    report: GateReport,
}

fn policy(path: &Path) -> Result<GateSpec, Failure> {
    let text = disk::read_text(path, MAX_POLICY_BYTES)?;
    let options: GateOptions = settings_file::parse(&text, path)?;
    let fault = |field, reason: &dyn std::fmt::Display| settings_file::fault(&text, path, &[field], reason);
    let gate = options.gate().ok_or_else(|| fault("guardrails", &"it names no guardrail"))?;
    // Which part the devices ran it in is not in the file.
    gate.validate_alone().map_err(|error| fault(error.field(), &error))?;
    Ok(gate)
}

fn judge(spec: &GateSpec, alpha: f64, scores: Scores) -> Checked {
    let Scores { blocks, predicted } = scores;
    let plain: Vec<_> = blocks.iter().map(|timed| timed.block.clone()).collect();
    let all = u32::try_from(plain.len()).unwrap_or(u32::MAX);
    let mut gate = Gate::new(spec, alpha, &scales(spec, &plain), all);
    let steps = blocks
        .into_iter()
        .zip(1..)
        .map(|(timed, so_far): (_, u32)| {
            gate.add(&timed.block);
            Step { time: timed.time, block: timed.name, report: gate.report(so_far < MIN_BLOCKS) }
        })
        .collect();
    if let Some(classes) = &predicted {
        gate.compare_predictions(&plain, classes);
    }
    Checked { steps, report: gate.report(all < MIN_BLOCKS) }
}

fn text(checked: &Checked) -> String {
    let guardrails = checked.report.guardrails.iter().map(|report| report.guardrail.to_string());
    let header: Vec<String> = ["time".to_owned(), "block".to_owned(), "evidence".to_owned()]
        .into_iter()
        .chain(guardrails.flat_map(|name| [format!("{name} e"), format!("{name} at most")]))
        .chain(["verdict".to_owned()])
        .collect();
    let rows = checked.steps.iter().map(|step| {
        let bound = |share: f64| format!("{:+.2} pp", share * 100.0);
        let each =
            step.report.guardrails.iter().flat_map(|report| {
                [number(evidence(report.log_e)), number(output::optional(report.upper_bound, bound))]
            });
        let verdict = step.report.outcome;
        [cell(&step.time), cell(&step.block), number(evidence(step.report.log_e))]
            .into_iter()
            .chain(each)
            .chain([toned(verdict.to_string(), outcome_tone(verdict))])
            .collect()
    });
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    format!("{}\n\n{}", output::table(&header, rows), report_text(&checked.report))
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when a file is wrong, or the verdict is not `Successful`.
pub(crate) fn run(context: &Context, command: GateCommand) -> Result<(), Failure> {
    let GateCommand::Check(args) = command;
    let spec = policy(&args.policy)?;
    let scores = scores::read(&args.data, &spec.guardrails, u64::from(args.wave.number))?;
    let checked = judge(&spec, wave_alpha(spec.alpha, args.wave.number - 1, args.wave.of), scores);
    context.output.show(&checked, text)?;
    match checked.report.outcome {
        Outcome::Successful => Ok(()),
        Outcome::Failed => Err(Failure::unmet("canaries are worse than their controls")),
        Outcome::Inconclusive | Outcome::Error => Err(Failure::undecided("the scores show neither")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(policy_name: &str, policy_text: &str, worse_by: f64) -> Checked {
        let folder = tempfile::tempdir().unwrap();
        let (policy_path, data) = (folder.path().join(policy_name), folder.path().join("scores.csv"));
        std::fs::write(&policy_path, policy_text).unwrap();
        let mut csv = String::from("time,block,device,arm,error-rate,latency-share:50ms\n");
        // In any order; blocks go by when they were complete.
        for n in (0..30).rev() {
            let score = f64::from(n % 7) / 100.0;
            csv.push_str(&format!("{n},b{n},c{n},canary,{:.3},\n", score + worse_by));
            csv.push_str(&format!("{n},b{n},d{n},control,{:.3},0.1\n", f64::from((n * 3) % 7) / 100.0));
        }
        std::fs::write(&data, csv).unwrap();
        let spec = policy(&policy_path).unwrap();
        judge(&spec, spec.alpha, scores::read(&data, &spec.guardrails, 1).unwrap())
    }

    #[test]
    fn a_policy_that_cannot_be_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text, words) in [
            ("g.yaml", "guardrails: [error-rate=3%]\nalpha: 0.9\n", "g.yaml: line 2: alpha: above 0"),
            (
                "g.toml",
                "alpha = 0.05\nguardrails = ['failures', 'failures']\n",
                "g.toml: line 2: guardrail failures: it is there twice",
            ),
            ("g.yml", "alpha: 0.05\n", "g.yml: it names no guardrail"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = policy(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{error:?} does not say {words:?}");
        }
    }

    #[test]
    fn the_same_in_yaml_and_toml_and_the_verdict_after_every_block() {
        let yaml = "alpha: 0.05\nguardrails:\n  - error-rate=3%\n";
        let toml = "alpha = 0.05\nguardrails = [\"error-rate=3%\"]\n";
        let good = checked("gate.yaml", yaml, 0.0);
        assert_eq!(
            serde_json::to_string(&good).unwrap(),
            serde_json::to_string(&checked("gate.toml", toml, 0.0)).unwrap()
        );
        assert_eq!((good.steps.len(), good.report.outcome), (30, Outcome::Successful));
        assert_eq!(good.steps[0].block, "b0");
        assert!(good.steps[8].report.guardrails[0].upper_bound.is_none(), "nine blocks prove nothing");
        let bad = checked("gate.yaml", yaml, 0.08);
        assert_eq!(bad.report.outcome, Outcome::Failed);
        assert!(bad.steps.iter().any(|step| step.report.outcome == Outcome::Failed));
        assert!(text(&bad).contains("canaries are worse"), "{}", text(&bad));
        let neither = checked("gate.yml", "guardrails: [error-rate=0.1%, 'latency-share:50ms']\n", 0.0);
        assert_eq!((neither.report.outcome, neither.report.guardrails[1].blocks), (Outcome::Inconclusive, 0));
    }
}
