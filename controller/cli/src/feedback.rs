//! `muster feedback`: labels that are known at the centre, on their way to the devices that made the predictions.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use muster_shared::feedback::{
    DeviceFeedback, FeedbackFormat, FeedbackLine, FeedbackResult, PushFeedback, PushedFeedback, RefusedFeedback,
};
use muster_shared::ids::DeviceId;
use muster_shared::selector::Selector;
use serde::Serialize;

use crate::api_client::ApiClient;
use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::output::{self, cell, number};
use crate::quality;

/// Labels in one request: fewer than the controller takes, so that their bytes fit too.
const PUSHED_AT_ONCE: usize = 1_000;
/// Lines that are named when they are no labels; the others are counted.
const NAMED_LINES: usize = 5;
/// How often it is looked whether devices have taken their labels.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(crate) enum FeedbackCommand {
    /// Push labels from a file to the devices that made the predictions.
    Push(PushArgs),
    /// Show what waits for devices, and what came of the labels they have taken.
    Status,
    /// Show how good a bundle is by its labels; the same as `muster quality show`.
    Show(quality::ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The labels: a .csv file with columns id and label (and row, for one row of several), or a .jsonl file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The device that made all the predictions; the file needs no column device then.
    #[arg(long, value_name = "ID", conflicts_with = "selector")]
    device: Option<DeviceId>,
    /// Refuse labels of devices that this does not select. Every label names its device in the column device.
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<Selector>,
    /// Wait until the devices have taken the labels, at most for this long.
    #[arg(long, value_name = "DURATION")]
    wait: Option<crate::duration::Millis>,
}

/// What came of a push.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    pushed: PushedFeedback,
    /// How the labels of the devices stand; only where it was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    standing: Option<Vec<DeviceFeedback>>,
}

fn standing_text(standing: &[DeviceFeedback]) -> String {
    let row = |device: &DeviceFeedback| {
        let results = FeedbackResult::ALL.map(|result| number(device.results.of(result).to_string()));
        let head = [cell(device.device.as_str()), number(device.waiting.to_string())];
        head.into_iter().chain(results).chain([number(device.expired.to_string())]).collect()
    };
    output::table(
        &["device", "waiting", "joined", "unknown", "late", "duplicate", "invalid", "expired"],
        standing.iter().map(row),
    )
}

fn outcome_text(outcome: &Outcome) -> String {
    let PushedFeedback { accepted, devices, refused } = &outcome.pushed;
    let mut text = format!("{accepted} labels are on their way to {devices} device(s)");
    for RefusedFeedback { device, labels, reason } in refused {
        text.push_str(&format!("\nrefused: {labels} labels of {device}: {reason}"));
    }
    if let Some(standing) = &outcome.standing {
        text.push_str("\n\n");
        text.push_str(&standing_text(standing));
    }
    output::clean(&text)
}

/// Reads every label of the file.
fn read(args: &PushArgs) -> Result<Vec<FeedbackLine>, Failure> {
    let path = args.file.display();
    let name = args.file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let format = FeedbackFormat::of(name)
        .ok_or_else(|| Failure::input(format!("{path}: labels are in a .csv or a .jsonl file")))?;
    let file = File::open(&args.file).map_err(|error| Failure::input(format!("cannot open {path}")).because(error))?;
    let (mut lines, mut bad) = (Vec::new(), Vec::new());
    for line in format.read(file) {
        match line {
            Ok((number, mut line)) => match (&args.device, &line.device) {
                (Some(wanted), Some(named)) if wanted != named => {
                    bad.push(format!("line {number}: it is about device {named}, and --device says {wanted}"));
                }
                (None, None) => bad.push(format!(
                    "line {number}: it names no device. An inference's id is known to the device that made it: add a \
                         column device, or say with --device that all are of one"
                )),
                (Some(wanted), _) => {
                    line.device = Some(wanted.clone());
                    lines.push(line);
                }
                (None, Some(_)) => lines.push(line),
            },
            Err(error) => {
                bad.push(error.to_string());
                if error.is_fatal {
                    break;
                }
            }
        }
    }
    if bad.is_empty() {
        return Ok(lines);
    }
    let count = bad.len();
    bad.truncate(NAMED_LINES);
    Err(Failure::input(format!("{path}: {count} line(s) cannot be used, nothing was pushed: {}", bad.join("; "))))
}

async fn push(client: &ApiClient, args: &PushArgs, lines: Vec<FeedbackLine>) -> Result<PushedFeedback, Failure> {
    let progress = ProgressBar::new(lines.len() as u64);
    let mut refused: BTreeMap<DeviceId, RefusedFeedback> = BTreeMap::new();
    let mut devices: BTreeMap<DeviceId, ()> =
        lines.iter().filter_map(|line| Some((line.device.clone()?, ()))).collect();
    let mut accepted = 0;
    for part in lines.chunks(PUSHED_AT_ONCE) {
        let wish = PushFeedback { selector: args.selector.clone(), feedback: part.to_vec() };
        let pushed: PushedFeedback = client.post(&["feedback"], &wish).await.inspect_err(|_| {
            if accepted > 0 {
                output::warn(&format!("the first {accepted} labels were taken; what follows was not"));
            }
        })?;
        accepted += pushed.accepted;
        for more in pushed.refused {
            devices.remove(&more.device);
            match refused.get_mut(&more.device) {
                Some(known) => known.labels += more.labels,
                None => drop(refused.insert(more.device.clone(), more)),
            }
        }
        progress.inc(part.len() as u64);
    }
    progress.finish_and_clear();
    Ok(PushedFeedback { accepted, devices: devices.len() as u64, refused: refused.into_values().collect() })
}

async fn wait(client: &ApiClient, devices: &[DeviceId], limit: Duration) -> Result<Vec<DeviceFeedback>, Failure> {
    let deadline = Instant::now() + limit;
    loop {
        let mut standing: Vec<DeviceFeedback> = client.list(&["feedback"], &[]).await?;
        standing.retain(|device| devices.contains(&device.device));
        if standing.iter().all(|device| device.waiting == 0) {
            return Ok(standing);
        }
        if Instant::now() >= deadline {
            output::warn("some devices have not taken their labels yet; they get them when they connect");
            return Ok(standing);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn run_push(context: &Context, args: &PushArgs) -> Result<(), Failure> {
    let lines = read(args)?;
    let mut devices: Vec<DeviceId> = lines.iter().filter_map(|line| line.device.clone()).collect();
    devices.sort();
    devices.dedup();
    let client = context.client()?;
    let outcome = block_on(async {
        let pushed = push(&client, args, lines).await?;
        let standing = match &args.wait {
            Some(limit) => Some(wait(&client, &devices, Duration::from_millis(limit.0)).await?),
            None => None,
        };
        Ok(Outcome { pushed, standing })
    })?;
    context.output.show(&outcome, outcome_text)?;
    if outcome.pushed.refused.is_empty() { Ok(()) } else { Err(Failure::refused("not all labels were taken")) }
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the file cannot be used or the controller refuses.
pub(crate) fn run(context: &Context, command: FeedbackCommand) -> Result<(), Failure> {
    match command {
        FeedbackCommand::Push(args) => run_push(context, &args),
        FeedbackCommand::Status => {
            let client = context.client()?;
            let standing: Vec<DeviceFeedback> = block_on(client.list(&["feedback"], &[]))?;
            if standing.is_empty() {
                output::note("no labels were pushed yet");
            }
            context.output.show(&standing, |standing| standing_text(standing))
        }
        FeedbackCommand::Show(args) => quality::show(context, args),
    }
}
