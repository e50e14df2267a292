//! `muster broker`: what a broker other than the controller's own must be told.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use muster_shared::acl::outside;

use crate::command::{Context, block_on};
use crate::disk::{self, Existing, Privacy};
use crate::failure::Failure;
use crate::output;

/// How the list in PEM begins.
const CRL_BEGINS: &str = "-----BEGIN X509 CRL-----";

#[derive(Debug, Subcommand)]
pub(crate) enum BrokerCommand {
    /// Print who may publish and subscribe where. Asks no controller.
    Acl {
        /// For which broker, and which of its files.
        #[arg(long, value_enum)]
        format: AclFormat,
    },
    /// Print the list of revoked certificates, or write it to a file that the broker reads.
    Crl {
        /// Where to write it.
        #[arg(long, value_name = "FILE.pem")]
        out: Option<PathBuf>,
        /// Replace a file that is there already.
        #[arg(long)]
        force: bool,
    },
}

/// The files that can be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AclFormat {
    /// What mosquitto's `acl_file` names.
    Mosquitto,
    /// The listener and limits in mosquitto.conf without which those rules protect nothing.
    MosquittoConf,
    /// EMQX's acl.conf.
    Emqx,
}

fn rules(format: AclFormat) -> String {
    match format {
        AclFormat::Mosquitto => outside::mosquitto_acl(),
        AclFormat::MosquittoConf => outside::mosquitto_conf(),
        AclFormat::Emqx => outside::emqx_acl(),
    }
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller cannot be asked, or the file not written.
pub(crate) fn run(context: &Context, command: BrokerCommand) -> Result<(), Failure> {
    match command {
        BrokerCommand::Acl { format } => context.output.show(&rules(format), |text| text.trim_end().to_owned()),
        BrokerCommand::Crl { out, force } => {
            let list = block_on(context.client()?.get_text(&["crl.pem"]))?;
            // A broker refuses to start on anything else.
            if !list.starts_with(CRL_BEGINS) {
                return Err(Failure::unavailable("the controller's answer is no list of revoked certificates in PEM"));
            }
            let Some(path) = out else { return context.output.show(&list, |text| text.trim_end().to_owned()) };
            disk::write(&path, list.as_bytes(), Privacy::Public, Existing::from_force(force))?;
            output::note(&format!("wrote {}", path.display()));
            Ok(())
        }
    }
}
