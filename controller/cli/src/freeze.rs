//! `muster freeze`: times in which no further device is told to go forward.

use clap::Subcommand;
use muster_shared::api::ActionReason;
use muster_shared::rollout::{CreateFreeze, Freeze};
use muster_shared::selector::Selector;

use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::moment::Moment;
use crate::output::{self, cell};

#[derive(Debug, Subcommand)]
pub(crate) enum FreezeCommand {
    /// Let no rollout tell a further device to go forward for a time. Devices told before go on, and ways back always do.
    Add {
        /// When it begins, as 2026-12-20T00:00:00Z [default: at once].
        #[arg(long, value_name = "TIME")]
        from: Option<Moment>,
        /// When it ends.
        #[arg(long, value_name = "TIME")]
        to: Moment,
        /// Why.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// The devices it covers [default: all].
        #[arg(long, short = 'l', value_name = "SELECTOR")]
        selector: Option<Selector>,
    },
    /// List freezes that are in force or to come.
    List,
    /// End a freeze before its time.
    Lift {
        /// What it is called, as `muster freeze list` shows it.
        id: String,
        /// Why, for the records.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

fn table(freezes: &[Freeze]) -> String {
    let rows = freezes.iter().map(|freeze| {
        vec![
            cell(&freeze.id),
            cell(output::time(freeze.from_ms)),
            cell(output::time(freeze.to_ms)),
            cell(freeze.selector.to_string()),
            cell(&freeze.by),
            cell(&freeze.reason),
        ]
    });
    output::table(&["id", "from", "to", "selector", "by", "reason"], rows)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(crate) fn run(context: &Context, command: FreezeCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        FreezeCommand::Add { from, to, reason, selector } => {
            let wish = CreateFreeze { from_ms: from.map(|from| from.0), to_ms: to.0, reason, selector };
            let freeze: Freeze = block_on(client.post(&["freezes"], &wish))?;
            output::note(&format!("end it before its time with: muster freeze lift {}", freeze.id));
            context.output.show(&freeze, |freeze| freeze.id.clone())
        }
        FreezeCommand::List => {
            let freezes: Vec<Freeze> = block_on(client.list(&["freezes"], &[]))?;
            if freezes.is_empty() {
                output::note("no freeze");
            }
            context.output.show(&freezes, |freezes| table(freezes))
        }
        FreezeCommand::Lift { id, reason } => {
            let freeze: Freeze = block_on(client.post(&["freezes", &id, "lift"], &ActionReason { reason }))?;
            context.output.show(&freeze, |freeze| format!("freeze {} is lifted", freeze.id))
        }
    }
}
