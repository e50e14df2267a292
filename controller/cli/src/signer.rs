//! What signs in the name of a key: the key itself, or a command for one that is kept elsewhere.

mod command;

use muster_shared::trust::{Envelope, PublicKey, SigningKey};

pub(crate) use self::command::CommandSigner;
use crate::failure::Failure;

/// Signs documents in the name of one key.
#[derive(Debug)]
pub(crate) enum Signer {
    /// With the key, which is in memory.
    Key(SigningKey),
    /// By a command.
    Command(CommandSigner),
}

impl Signer {
    /// Whose signatures these are.
    pub(crate) fn public(&self) -> PublicKey {
        match self {
            Self::Key(key) => key.public(),
            Self::Command(signer) => signer.public().clone(),
        }
    }

    /// Adds a signature to `envelope`, which is as before when that fails.
    ///
    /// # Errors
    /// [`Failure`] when the document cannot be signed, or the command gives no signature of its key.
    pub(crate) fn sign(&self, envelope: &mut Envelope) -> Result<(), Failure> {
        match self {
            Self::Key(key) => envelope.add_signature(key),
            Self::Command(signer) => {
                let message = envelope.signing_input().map_err(cannot_sign)?;
                let signature = signer.sign(&message)?;
                // Checked in there: a signature of something else must reach no document.
                return envelope
                    .insert_signature(signer.public(), &signature)
                    .map_err(|error| signer.wrong_signature().because(error));
            }
        }
        .map_err(cannot_sign)
    }
}

fn cannot_sign(error: muster_shared::trust::TrustError) -> Failure {
    Failure::unmet("the document cannot be signed").because(error)
}
