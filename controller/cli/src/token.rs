//! `muster token`: the strings that let devices join.

use std::num::NonZeroU32;

use clap::Subcommand;
use muster_shared::api::{CreateToken, CreatedToken};

use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::output;
use crate::pairs::Label;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make an enrolment token. It is printed this once; give it to the agent as `enrolment-token`.
    Create {
        /// How many devices may use it.
        #[arg(long, default_value = "1", value_name = "N")]
        uses: NonZeroU32,
        /// How long it is good for.
        #[arg(long, default_value = "24h", value_name = "DURATION")]
        valid_for: Millis,
        /// Label that every device enrolled with it gets; may be given more than once.
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<Label>,
    },
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(crate) fn run(context: &Context, command: TokenCommand) -> Result<(), Failure> {
    let TokenCommand::Create { uses, valid_for, label } = command;
    let wish = CreateToken {
        valid_for_ms: valid_for.0,
        uses: uses.get(),
        labels: label.into_iter().map(|Label { key, value }| (key, value)).collect(),
    };
    let client = context.client()?;
    let created: CreatedToken = block_on(client.post(&["tokens"], &wish))?;
    output::note(&format!("for {uses} device(s), until {}", output::time(created.expires_ms)));
    context.output.show(&created, |created| created.token.clone())
}
