//! `muster rollout explain`: what a rollout does, why it is not further, who decides next, and on which numbers.

use clap::Args;
use muster_shared::api::RolloutExplanation;
use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::rollout::{Decider, DeviceExplanation, Explanation, RolloutStatus, Told};

use super::{show, words};
use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::events::event_text;
use crate::failure::Failure;
use crate::output::{self, cell};

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The rollout's id.
    id: RolloutId,
    /// Explain this device in it, whether it takes part or not.
    #[arg(long, value_name = "ID")]
    device: Option<DeviceId>,
}

/// Who decides, with the time and the commands that people have.
fn decider_text(decider: Decider, explanation: &Explanation, now_ms: u64) -> String {
    match decider {
        Decider::Clock { at_ms } => {
            format!("the clock, at {} (in {})", output::time(at_ms), Millis(at_ms.saturating_sub(now_ms)).rough())
        }
        Decider::People => {
            let commands = match explanation.status {
                RolloutStatus::Paused => "resume, rollback or abort",
                RolloutStatus::WaitingForApproval => "approve or abort",
                RolloutStatus::Draft
                | RolloutStatus::Ready
                | RolloutStatus::Running
                | RolloutStatus::RollingBack
                | RolloutStatus::Completed
                | RolloutStatus::RolledBack
                | RolloutStatus::Stopped => return "people".to_owned(),
            };
            format!("people, with `muster rollout {commands} {}`", explanation.rollout)
        }
        Decider::Controller | Decider::Devices | Decider::Applications | Decider::OtherRollouts | Decider::Nobody => {
            decider.to_string()
        }
    }
}

fn obstacles_table(explanation: &Explanation, now_ms: u64) -> String {
    output::table(
        &["waits for", "ended by"],
        explanation.obstacles.iter().map(|obstacle| {
            vec![
                cell(words::waiting(&obstacle.what, now_ms)),
                cell(decider_text(obstacle.decider, explanation, now_ms)),
            ]
        }),
    )
}

fn told_text(told: &Told) -> String {
    let what = told.manifest.map_or_else(|| "to run nothing".to_owned(), |manifest| manifest.short());
    let done = told.done_at_ms.map_or_else(String::new, |at_ms| format!(", done at {}", output::time(at_ms)));
    let again = if told.attempts > 1 { format!(", attempt {}", told.attempts) } else { String::new() };
    format!("{what} under generation {} at {}{again}{done}", told.generation, output::time(told.at_ms))
}

fn device_text(device: &DeviceExplanation, explanation: &Explanation, now_ms: u64) -> String {
    let mut pairs = vec![
        ("device", format!("{}: {}", device.device, device.doing)),
        ("decides next", decider_text(device.decider, explanation, now_ms)),
    ];
    pairs.extend(device.wave.map(|wave| ("wave", (u64::from(wave) + 1).to_string())));
    pairs.extend(device.told.as_ref().map(|told| ("told", told_text(told))));
    pairs.extend(device.measured.as_ref().map(|measured| ("measured", words::arm(measured))));
    output::properties(&pairs)
}

fn text(explained: &RolloutExplanation, now_ms: u64) -> String {
    let RolloutExplanation { explanation, history, history_is_cut } = explained;
    let mut pairs = vec![
        ("rollout", format!("{}: {}", explanation.rollout, explanation.doing)),
        ("decides next", decider_text(explanation.decider, explanation, now_ms)),
    ];
    pairs.extend(explanation.pauses_at_ms.map(|at_ms| {
        let left = Millis(at_ms.saturating_sub(now_ms)).rough();
        ("pauses at", format!("{} without a verdict (in {left})", output::time(at_ms)))
    }));
    let mut parts = vec![output::properties(&pairs)];
    if !explanation.obstacles.is_empty() {
        parts.push(obstacles_table(explanation, now_ms));
    }
    parts.extend(explanation.device.as_ref().map(|device| device_text(device, explanation, now_ms)));
    if explanation.device.is_none() {
        parts.extend(explanation.numbers.as_ref().map(show::numbers_text));
    }
    let so_far: Vec<String> = history.iter().map(event_text).collect();
    if !so_far.is_empty() {
        let cut = if *history_is_cut { " (the last entries; `muster events` has all)" } else { "" };
        parts.push(format!("what happened so far{cut}\n{}", so_far.join("\n")));
    }
    parts.join("\n\n")
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when there is no such rollout or device.
pub(super) fn run(context: &Context, args: &ExplainArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let query: Vec<_> = args.device.iter().map(|device| ("device", device.to_string())).collect();
    let explained: RolloutExplanation = block_on(client.get(&["rollouts", args.id.as_str(), "explain"], &query))?;
    context.output.show(&explained, |explained| text(explained, output::now_ms()))
}

#[cfg(test)]
mod tests {
    use muster_shared::api::EventView;
    use muster_shared::rollout::{Obstacle, Waiting};

    use super::super::words::tests::failed;
    use super::*;

    fn explained(status: RolloutStatus) -> RolloutExplanation {
        let soaking = Waiting::Soaking { until_ms: 90_000 };
        RolloutExplanation {
            explanation: Explanation {
                rollout: "r1".parse().unwrap(),
                bundle: "digits@1.1.0".parse().unwrap(),
                status,
                doing: "it brings digits@1.1.0 to wave 1 of 2: 1 device committed".into(),
                obstacles: vec![Obstacle { decider: soaking.decider(), what: soaking.clone() }],
                decider: soaking.decider(),
                pauses_at_ms: Some(3_600_000),
                numbers: Some(failed()),
                device: None,
            },
            history: vec![EventView {
                sequence: 7,
                at_ms: 0,
                kind: "rollout.running".into(),
                actor: "controller".into(),
                device: None,
                rollout: Some("r1".parse().unwrap()),
                bundle: None,
                detail: "started".into(),
            }],
            history_is_cut: true,
        }
    }

    #[test]
    fn a_rollout_is_explained_with_times_commands_and_numbers() {
        let shown = text(&explained(RolloutStatus::Running), 0);
        for part in [
            "rollout       r1: it brings digits@1.1.0 to wave 1 of 2: 1 device committed",
            "decides next  the clock, at 1970-01-01T00:01:30Z (in 1m 30s)",
            "pauses at     1970-01-01T01:00:00Z without a verdict (in 1h)",
            "soaking until 1970-01-01T00:01:30Z (1m 30s left)",
            "3.41",
            "what happened so far (the last entries; `muster events` has all)",
            "#7  rollout.running  by controller  rollout r1  started",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
        let mut paused = explained(RolloutStatus::Paused);
        paused.explanation.decider = Decider::People;
        let shown = text(&paused, 0);
        assert!(shown.contains("people, with `muster rollout resume, rollback or abort r1`"), "{shown}");
    }

    #[test]
    fn a_device_is_explained_with_what_it_was_told() {
        let mut of_device = explained(RolloutStatus::Running);
        of_device.explanation.device = Some(DeviceExplanation {
            device: "press-7".parse().unwrap(),
            doing: "it serves digits@1.1.0 under watch, before it commits".into(),
            decider: Decider::Devices,
            wave: Some(0),
            progress: None,
            failure: None,
            told: Some(Told { manifest: None, generation: 4, at_ms: 0, done_at_ms: Some(1_000), attempts: 2 }),
            measured: Some(failed().canary),
        });
        let shown = text(&of_device, 0);
        for part in [
            "device        press-7: it serves digits@1.1.0 under watch, before it commits",
            "wave          1",
            "told          to run nothing under generation 4 at 1970-01-01T00:00:00Z, attempt 2, done at 1970-01-01T00:00:01Z",
            "measured      success on 0 of 2 devices targeted",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
        assert!(!shown.contains("3.41"), "the numbers of all are not the device's:\n{shown}");
    }
}
