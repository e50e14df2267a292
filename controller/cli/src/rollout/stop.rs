//! `muster rollout stop-all` and `lift-stop`.

use clap::Args;
use muster_shared::api::ActionReason;
use muster_shared::rollout::{FleetStop, FleetStopView};

use super::words;
use crate::api_client::ApiClient;
use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::output::{self, cell, number, toned};

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Why, for the records.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

fn words_of(stop: &FleetStop) -> String {
    let reason = stop.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    format!("the fleet is stopped since {} by {}{reason}", output::time(stop.since_ms), stop.by)
}

fn text(view: &FleetStopView) -> String {
    let Some(stop) = &view.stop else { return "the fleet is not stopped: rollouts may begin".to_owned() };
    let mut parts = vec![output::clean(&words_of(stop))];
    if view.rollouts.is_empty() {
        parts.push("no rollout was under way".to_owned());
    } else {
        let rows = view.rollouts.iter().map(|rollout| {
            vec![
                cell(rollout.id.as_str()),
                toned(rollout.status.as_str(), words::status_tone(rollout.status)),
                number(rollout.devices.to_string()),
                cell(&rollout.status_reason),
            ]
        });
        parts.push(output::table(&["ended", "status", "devices", "reason"], rows));
    }
    parts.push("no rollout begins until: muster rollout lift-stop".to_owned());
    parts.join("\n")
}

/// Does what `stop-all` asks.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(super) fn stop_all(context: &Context, args: StopArgs) -> Result<(), Failure> {
    post(context, "stop-all", args)
}

/// Does what `lift-stop` asks.
///
/// # Errors
/// [`Failure`] when the controller refuses, as where no stop stands.
pub(super) fn lift(context: &Context, args: StopArgs) -> Result<(), Failure> {
    post(context, "lift-stop", args)
}

fn post(context: &Context, what: &str, args: StopArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let body = ActionReason { reason: args.reason };
    let view: FleetStopView = block_on(client.post(&["rollouts", what], &body))?;
    context.output.show(&view, text)
}

/// Says beside other answers that the fleet is stopped, where it is.
pub(super) fn note(client: &ApiClient) {
    match block_on(client.get::<FleetStopView>(&["rollouts", "stop"], &[])) {
        Ok(FleetStopView { stop: Some(stop), .. }) => {
            output::note(&format!("{}; lift it with: muster rollout lift-stop", words_of(&stop)));
        }
        Ok(_) => {}
        Err(failure) => output::warn(&format!("whether the fleet is stopped is not known: {}", failure.chain())),
    }
}
