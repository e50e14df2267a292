//! `muster token`: the strings that let devices join.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use comfy_table::Cell;
use muster_shared::api::{ActionReason, CreateToken, CreatedToken, ProvisioningString, TokenView};
use muster_shared::ids::Digest;
use muster_shared::token::EnrolmentToken;

use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::output::{self, Tone, cell, number, toned};
use crate::pairs::Label;
use crate::root;

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
    /// Print what devices need that show a certificate of an outside authority: where the controller is and whom to trust. It is the same for
    /// all of them and no secret; give it to the agent as `enrolment-token`, beside its section `provisioned`.
    Provisioning {
        /// The first root document, as it was made offline: a string that would have devices start from another is not printed.
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
    /// List enrolment tokens. What was printed when they were made is not kept.
    List,
    /// Let no further device join with a token. Those that have stay.
    Revoke {
        /// Its id, as `muster token list` shows it.
        id: String,
        /// Why, for the records.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

fn state(token: &TokenView, now_ms: u64) -> Cell {
    if token.revoked.is_some() {
        toned("revoked", Tone::Bad)
    } else if token.expires_ms <= now_ms {
        toned("expired", Tone::Bad)
    } else if token.uses_left == 0 {
        toned("used up", Tone::Busy)
    } else {
        toned("good", Tone::Good)
    }
}

fn list_text(tokens: &[TokenView]) -> String {
    let now_ms = output::now_ms();
    let rows = tokens.iter().map(|token| {
        let labels: Vec<String> = token.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![
            cell(&token.id),
            state(token, now_ms),
            number(token.uses_left.to_string()),
            cell(output::time(token.expires_ms)),
            cell(output::time_or_dash(token.created_at_ms)),
            cell(token.created_by.as_deref().unwrap_or("-")),
            cell(if labels.is_empty() { "-".to_owned() } else { labels.join(",") }),
        ]
    });
    output::table(&["id", "state", "uses left", "expires", "created", "by", "labels"], rows)
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
    match command {
        TokenCommand::Create { uses, valid_for, label, root } => {
            let expected_root = root.as_deref().map(first_root).transpose()?;
            let wish = CreateToken {
                valid_for_ms: valid_for.0,
                uses: uses.get(),
                labels: label.into_iter().map(|Label { key, value }| (key, value)).collect(),
            };
            let created: CreatedToken = block_on(context.client()?.post(&["tokens"], &wish))?;
            if let Some(expected) = expected_root {
                check_root(&created.token, expected)?;
            }
            let until = output::time(created.expires_ms);
            output::note(&format!("token {} for {uses} device(s), until {until}", created.id));
            context.output.show(&created, |created| created.token.clone())
        }
        TokenCommand::Provisioning { root } => {
            let expected_root = root.as_deref().map(first_root).transpose()?;
            let given: ProvisioningString = block_on(context.client()?.get(&["tokens", "provisioning"], &[]))?;
            if let Some(expected) = expected_root {
                check_root(&given.token, expected)?;
            }
            context.output.show(&given, |given| given.token.clone())
        }
        TokenCommand::List => {
            let tokens: Vec<TokenView> = block_on(context.client()?.list(&["tokens"], &[]))?;
            if tokens.is_empty() {
                output::note("no token");
            }
            context.output.show(&tokens, |tokens| list_text(tokens))
        }
        TokenCommand::Revoke { id, reason } => {
            let token: TokenView =
                block_on(context.client()?.post(&["tokens", &id, "revoke"], &ActionReason { reason }))?;
            context.output.show(&token, |token| format!("token {} is revoked", token.id))
        }
    }
}
