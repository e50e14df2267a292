//! `muster rollout create`.

use std::path::PathBuf;

use clap::Args;
use muster_shared::ids::BundleRef;
use muster_shared::rollout::{RolloutSpec, RolloutStatus, RolloutView};
use muster_shared::selector::Selector;

use super::abort::AbortOptions;
use super::analysis::AnalysisOptions;
use super::approval::ApprovalOptions;
use super::blue_green::BlueGreenOptions;
use super::deadline::DeadlineOptions;
use super::gate::GateOptions;
use super::rate::RateOptions;
use super::reach::ReachOptions;
use super::shadow_first::ShadowFirstOptions;
use super::spec::{self, DeliveryOptions, LimitOptions, Pace, ProbationOptions, WaveFlag};
use super::stage::StageOptions;
use super::turn::TurnOptions;
use super::watch::{self, WatchOptions};
use super::words;
use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    wish: Wish,
    /// Follow it, as `muster rollout watch` does.
    #[arg(long)]
    watch: bool,
}

/// What a rollout is to be.
#[derive(Debug, Args)]
pub(crate) struct Wish {
    /// The bundle to bring out, as digits@1.1.0.
    #[arg(long, value_name = "NAME@VERSION", required_unless_present = "file")]
    bundle: Option<BundleRef>,
    /// The devices meant, as site=lyon; '*' for all.
    #[arg(long, short = 'l', value_name = "SELECTOR", required_unless_present = "file")]
    selector: Option<Selector>,
    /// A wave, as 1, 25% or 2:site=lyon: how many devices, those of earlier waves included, and of which. Once for each
    /// wave, in order; the last must be 100% [default: one wave, 100%].
    #[arg(long, value_name = "SIZE[:SELECTOR]")]
    wave: Vec<WaveFlag>,
    #[command(flatten)]
    pace: Pace,
    /// Go to every device at once, held against nothing, in quiet hours and on any link, too. It ends the rollouts that have devices it
    /// wants; devices that are away get it on return.
    #[arg(long, conflicts_with_all = ["wave", "soak"])]
    emergency: bool,
    /// Take all of it from a file, YAML or TOML in the words of these flags or JSON as the API has it.
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with_all = [
        "bundle", "selector", "wave", "soak", "max_duration", "max_error_rate", "max_latency_p99_ratio", "max_failures",
        "max_prediction_psi", "max_disagreement", "min_reports", "min_requests", "probation", "probation_max_error_rate",
        "probation_min_requests", "max_download_bytes_per_s", "metered", "ignore_quiet_hours",
        "emergency", "holdback", "joining", "stage", "share", "experiment", "guardrails", "controls", "match_on", "alpha", "group_by", "lead",
        "approvals", "approvers", "approve_within", "start_at", "conflict", "priority", "windows", "timezone",
        "analyses", "analysis_arg", "maximum_per_minute", "base_rate_per_minute", "increment_factor", "increase_after_succeeded",
        "increase_after_notified", "in_progress", "offline", "abort_criteria", "shadow_first", "shadow_share", "shadow_soak",
    ])]
    file: Option<PathBuf>,
    #[command(flatten, next_help_heading = "How fast devices come in")]
    rate: RateOptions,
    #[command(flatten, next_help_heading = "Beside the bundle in service")]
    stage: StageOptions,
    #[command(flatten, next_help_heading = "Beside the bundle in service")]
    shadow_first: ShadowFirstOptions,
    #[command(flatten, next_help_heading = "Devices that switch together")]
    blue_green: BlueGreenOptions,
    #[command(flatten, next_help_heading = "Limits that stop a wave at once")]
    limits: LimitOptions,
    #[command(flatten, next_help_heading = "Devices that do not answer")]
    deadlines: DeadlineOptions,
    #[command(flatten, next_help_heading = "Failures that end it")]
    abort: AbortOptions,
    #[command(flatten, next_help_heading = "Comparison with devices like them")]
    gate: GateOptions,
    #[command(flatten, next_help_heading = "Analyses")]
    analysis: AnalysisOptions,
    #[command(flatten, next_help_heading = "When, and beside which others")]
    turn: TurnOptions,
    #[command(flatten, next_help_heading = "People")]
    approval: ApprovalOptions,
    #[command(flatten, next_help_heading = "Who is left out")]
    reach: ReachOptions,
    #[command(flatten, next_help_heading = "On each device")]
    probation: ProbationOptions,
    #[command(flatten, next_help_heading = "Delivery")]
    delivery: DeliveryOptions,
}

/// The rollout that is wished for.
///
/// # Errors
/// [`Failure`] when it is none.
pub(super) fn spec(args: &Wish) -> Result<RolloutSpec, Failure> {
    let spec = match (&args.file, &args.bundle, &args.selector) {
        (Some(path), _, _) => spec::from_file(path)?,
        (None, Some(bundle), Some(selector)) => {
            let (bundle, selector) = (bundle.clone(), selector.clone());
            let pace = args.pace.or_at_once(args.emergency);
            let spec = spec::from_flags(bundle, selector, &args.wave, pace, args.limits, args.probation, args.delivery);
            let spec = args.shadow_first.of(spec, pace);
            let spec = args.reach.of(spec);
            let spec = args.turn.clone().apply(spec);
            RolloutSpec {
                stage: args.stage.stage()?,
                gate: args.gate.gate(),
                analyses: args.analysis.uses()?,
                approval: args.approval.approval(),
                emergency: args.emergency,
                blue_green: args.blue_green.asked(),
                rate: args.rate.asked(),
                deadlines: args.deadlines.asked(),
                abort_criteria: args.abort.criteria(),
                ..spec
            }
        }
        (None, _, _) => return Err(Failure::input("give --bundle and --selector, or --file")),
    };
    spec.validate().map_err(|error| Failure::input("this is no rollout").because(error))?;
    Ok(spec)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses or, watching, the rollout does not complete.
pub(super) fn run(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    let spec = spec(&args.wish)?;
    let client = context.client()?;
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|error| Failure::unmet("the system gives no random numbers").because(error))?;
    let view: RolloutView = block_on(client.post_once(&["rollouts"], &spec, &hex::encode(key)))?;
    if args.watch {
        output::note(&format!("rollout {} of {} to {}", view.id, view.spec.bundle, view.spec.selector));
        return watch::follow(context, &client, &view.id, &WatchOptions::default());
    }
    if view.status == RolloutStatus::WaitingForApproval {
        output::note(&words::all_waiting(&view, output::now_ms()));
        output::note(&format!("approve it with: muster rollout approve {}", view.id));
    }
    output::note(&format!("follow it with: muster rollout watch {}", view.id));
    context.output.show(&view, |view| view.id.to_string())
}
