//! `muster token`: the strings that let devices join.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use muster_shared::api::{CreateToken, CreatedToken};
use muster_shared::ids::Digest;
use muster_shared::token::EnrolmentToken;

use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::pairs::Label;
use crate::{output, root};

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
        /// The first root document, as it was made offline: a token that would have devices start from another is not printed.
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
}

/// The digest of the first root document, which is in `path`.
fn first_root(path: &Path) -> Result<Digest, Failure> {
    let trusted = root::read_trusted_root(path)?;
    let version = trusted.root().version;
    if version != 1 {
        let hint = "devices start from version 1 and walk to the newest";
        return Err(Failure::input(format!("{} is root document {version}; {hint}", path.display())));
    }
    let payload = trusted.envelope().payload_bytes();
    payload.map(|payload| Digest::of(&payload)).map_err(|error| Failure::input("no root document").because(error))
}

/// Refuses a token of a controller that has another root document than the one made offline.
fn check_root(token: &str, expected: Digest) -> Result<(), Failure> {
    let token: EnrolmentToken =
        token.parse().map_err(|error| Failure::unavailable("the controller gave no enrolment token").because(error))?;
    if token.root_sha256 == expected {
        return Ok(());
    }
    Err(Failure::unmet(format!(
        "the controller's token names the root document {}, not {}: it would have devices trust other keys, so it is not printed",
        token.root_sha256.short(),
        expected.short()
    )))
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(crate) fn run(context: &Context, command: TokenCommand) -> Result<(), Failure> {
    let TokenCommand::Create { uses, valid_for, label, root } = command;
    let expected_root = root.as_deref().map(first_root).transpose()?;
    let wish = CreateToken {
        valid_for_ms: valid_for.0,
        uses: uses.get(),
        labels: label.into_iter().map(|Label { key, value }| (key, value)).collect(),
    };
    let client = context.client()?;
    let created: CreatedToken = block_on(client.post(&["tokens"], &wish))?;
    if let Some(expected) = expected_root {
        check_root(&created.token, expected)?;
    }
    output::note(&format!("for {uses} device(s), until {}", output::time(created.expires_ms)));
    context.output.show(&created, |created| created.token.clone())
}
