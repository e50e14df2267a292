//! `muster rollout`: bringing bundles out, watching, stopping, going back.

mod abort;
mod analysis;
mod approval;
mod blue_green;
mod compare;
mod create;
mod deadline;
mod evidence;
mod explain;
mod gate;
mod labels;
mod plan;
mod rate;
mod reach;
mod schema;
mod shadow_first;
mod show;
mod spec;
mod stage;
mod stop;
mod turn;
mod watch;
mod words;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_shared::api::{ActionReason, RollbackOrder};
use muster_shared::ids::{BundleRef, RolloutId};
use muster_shared::rollout::RolloutView;

pub(crate) use evidence::{evidence, report_text};
pub(crate) use gate::GateOptions;
pub(crate) use words::outcome_tone;

use crate::command::{Context, block_on};
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Create a rollout; it starts at once, or as soon as enough people have approved it.
    Create(Box<create::CreateArgs>),
    /// Show what a rollout would do, and what its gate could tell; nothing is stored, and nobody told.
    Plan(Box<create::Wish>),
    /// List rollouts.
    List,
    /// Show a rollout: its waves, why it waits, its verdicts with their evidence.
    Show {
        /// Its id.
        id: RolloutId,
    },
    /// Say what a rollout does, why it is not further, who or what decides next, on which numbers, and what happened so far.
    Explain(explain::ExplainArgs),
    /// Follow a rollout to its end. Exits with 0 if it completed, 1 if it went back or was stopped.
    Watch(watch::WatchArgs),
    /// Show how a bundle answers beside the one in service: agreement, differences, times, errors.
    Compare(compare::CompareArgs),
    /// Write what the verdicts of a rollout rest on, as JSON: what limits, abort criteria, analyses and comparisons of devices were judged by.
    Evidence(evidence::EvidenceArgs),
    /// Reach the verdicts of such a file again, here. Exits with 1 if anything comes out otherwise than it is stored.
    Replay {
        /// What `muster rollout evidence` wrote.
        file: PathBuf,
    },
    /// Print the form of a rollout's file as a JSON schema, for editors.
    Schema,
    /// Approve a rollout that waits for approvals; with enough of them it begins.
    Approve(ActionArgs),
    /// Reject a rollout that waits for approvals: it has ended.
    Reject(ActionArgs),
    /// Bring the bundle to no further device; those that have it keep it.
    Pause(ActionArgs),
    /// Go on after a pause.
    Resume(ActionArgs),
    /// Stop for good; devices keep what they have.
    Abort(ActionArgs),
    /// Bring every device back to what it ran before, or to a bundle that is named.
    Rollback(RollbackArgs),
    /// Stop the whole fleet: every rollout ends at once, and none begins until the stop is lifted. Devices keep what they have.
    StopAll(stop::StopArgs),
    /// Lift the stop of the whole fleet. Rollouts that it ended stay so.
    LiftStop(stop::StopArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ActionArgs {
    /// The rollout's id.
    id: RolloutId,
    /// Why, for the records.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    action: ActionArgs,
    /// The bundle that all devices of the rollout go back to, as digits@1.0.0; those that cannot run it go back to what they ran before
    /// [default: what each device ran before].
    #[arg(long, value_name = "NAME@VERSION")]
    to: Option<BundleRef>,
}

fn roll_back(context: &Context, args: RollbackArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let RollbackArgs { action: ActionArgs { id, reason }, to } = args;
    let view: RolloutView =
        block_on(client.post(&["rollouts", id.as_str(), "rollback"], &RollbackOrder { reason, to }))?;
    context.output.show(&view, standing)
}

fn standing(view: &RolloutView) -> String {
    format!("{} is {}: {}", view.id, view.status, view.status_reason)
}

fn act(context: &Context, action: &str, args: ActionArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let body = ActionReason { reason: args.reason };
    let view: RolloutView = block_on(client.post(&["rollouts", args.id.as_str(), action], &body))?;
    context.output.show(&view, standing)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when that did not succeed.
pub(crate) fn run(context: &Context, command: RolloutCommand) -> Result<(), Failure> {
    match command {
        RolloutCommand::Create(args) => create::run(context, &args),
        RolloutCommand::Plan(wish) => plan::run(context, &wish),
        RolloutCommand::List => show::list(context),
        RolloutCommand::Show { id } => show::show(context, &id),
        RolloutCommand::Explain(args) => explain::run(context, &args),
        RolloutCommand::Watch(args) => watch::run(context, &args),
        RolloutCommand::Compare(args) => compare::run(context, args),
        RolloutCommand::Evidence(args) => evidence::write(context, &args),
        RolloutCommand::Replay { file } => evidence::replay(context, &file),
        RolloutCommand::Schema => schema::run(),
        RolloutCommand::Approve(args) => act(context, "approve", args),
        RolloutCommand::Reject(args) => act(context, "reject", args),
        RolloutCommand::Pause(args) => act(context, "pause", args),
        RolloutCommand::Resume(args) => act(context, "resume", args),
        RolloutCommand::Abort(args) => act(context, "abort", args),
        RolloutCommand::Rollback(args) => roll_back(context, args),
        RolloutCommand::StopAll(args) => stop::stop_all(context, args),
        RolloutCommand::LiftStop(args) => stop::lift(context, args),
    }
}
