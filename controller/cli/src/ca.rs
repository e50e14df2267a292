//! `muster ca`: the controller's certificate authorities.

use std::path::PathBuf;

use clap::Subcommand;
use muster_shared::api::{AuthoritiesView, RetireAuthority};

use crate::command::{Context, block_on};
use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Show the authorities in force, and how many devices use certificates of each.
    Show,
    /// Write the certificates of the authorities in force to a file, for --ca-file.
    Export {
        /// Where to write them, in PEM.
        #[arg(long, value_name = "FILE.pem")]
        out: PathBuf,
        /// Replace a file that is there already.
        #[arg(long)]
        force: bool,
    },
    /// Put a new authority into force. The one before stays accepted until it is retired, and devices renew their certificates meanwhile.
    Rotate,
    /// Accept the authority before the current one no more.
    Retire {
        /// Also when devices still use a certificate of it: they have to enrol again.
        #[arg(long)]
        force: bool,
    },
}

fn text(view: &AuthoritiesView) -> String {
    let last = view.authorities.len().saturating_sub(1);
    let rows = view.authorities.iter().enumerate().map(|(at, authority)| {
        vec![
            output::cell(authority.sha256.to_string()),
            output::cell(if at == last { "signs" } else { "still accepted" }),
            output::cell(output::time(authority.expires_ms)),
            output::number(authority.devices.to_string()),
        ]
    });
    output::table(&["sha-256", "state", "expires", "devices"], rows)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when that did not succeed.
pub(crate) fn run(context: &Context, command: CaCommand) -> Result<(), Failure> {
    let client = context.client()?;
    let view: AuthoritiesView = match command {
        CaCommand::Show | CaCommand::Export { .. } => block_on(client.get(&["ca"], &[]))?,
        CaCommand::Rotate => block_on(client.post(&["ca", "rotate"], &()))?,
        CaCommand::Retire { force } => block_on(client.post(&["ca", "retire"], &RetireAuthority { force }))?,
    };
    if let CaCommand::Export { out, force } = &command {
        let pem: String = view.authorities.iter().map(|authority| authority.certificate_pem.as_str()).collect();
        disk::write(out, pem.as_bytes(), Privacy::Public, Existing::from_force(*force))?;
        output::note(&format!("wrote {}", out.display()));
        return Ok(());
    }
    context.output.show(&view, text)
}
