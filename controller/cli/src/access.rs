//! `muster access`: tokens with which people and programs use the API.

use clap::{Subcommand, ValueEnum};
use muster_shared::access::{AccessView, CreateAccess, CreatedAccess};
use muster_shared::api::AccessRole;

use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::output::{self, cell};

/// What a token's bearer may do. There is one administrator, whose token the controller keeps.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    /// Read.
    Viewer,
    /// Read, and drive rollouts, labels and bundles.
    Operator,
    /// What an operator may, and approve.
    Approver,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AccessCommand {
    /// Make an access token for a person or a program. It is printed this once; its bearer gives it to muster as MUSTER_TOKEN.
    Create {
        /// Whose it is, as ann or ci-plant-7: the name under which the records show what is done with it.
        name: String,
        /// What its bearer may do.
        #[arg(long, value_enum)]
        role: Role,
    },
    /// List access tokens. What was printed when they were made is not kept.
    List,
    /// Let nobody use a token any more. Its name is given to nobody else.
    Revoke {
        /// Whose it is.
        name: String,
    },
}

fn list_text(tokens: &[AccessView]) -> String {
    let rows = tokens
        .iter()
        .map(|token| vec![cell(&token.name), cell(output::word(&token.role)), cell(output::time(token.created_at_ms))]);
    output::table(&["name", "role", "created"], rows)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(crate) fn run(context: &Context, command: AccessCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        AccessCommand::Create { name, role } => {
            let role = match role {
                Role::Viewer => AccessRole::Viewer,
                Role::Operator => AccessRole::Operator,
                Role::Approver => AccessRole::Approver,
            };
            let created: CreatedAccess = block_on(client.post(&["access"], &CreateAccess { name, role }))?;
            output::note(&format!("access token of {}, {}", created.name, output::word(&created.role)));
            context.output.show(&created, |created| created.token.clone())
        }
        AccessCommand::List => {
            let tokens: Vec<AccessView> = block_on(client.list(&["access"], &[]))?;
            context.output.show(&tokens, |tokens| list_text(tokens))
        }
        AccessCommand::Revoke { name } => {
            let token: AccessView = block_on(client.delete(&["access", &name]))?;
            context.output.show(&token, |token| format!("the access token of {} is revoked", token.name))
        }
    }
}
