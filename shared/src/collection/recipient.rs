//! The keys that samples are sealed to: X25519 (RFC 7748), the private half with whoever exports.

use std::fmt;
use std::str::FromStr;

use curve25519_dalek::montgomery::MontgomeryPoint;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::ids::Digest;

/// Why a text is no key of a recipient.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipientError {
    /// Other digits, or another number of them.
    #[error(
        "this is no key of a recipient: 64 hexadecimal digits are expected, as `muster samples key create` writes them"
    )]
    Digits,
    /// A point whose agreement is the same with every key, and so no secret.
    #[error("this key of a recipient keeps nothing secret: make one with `muster samples key create`")]
    LowOrder,
}

/// The public half, written as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RecipientKey([u8; 32]);

impl RecipientKey {
    /// Checks and wraps 32 bytes.
    ///
    /// # Errors
    /// [`RecipientError::LowOrder`].
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, RecipientError> {
        // A point of low order gives the neutral element with every clamped scalar.
        if MontgomeryPoint(bytes).mul_clamped([7; 32]).0 == [0; 32] {
            return Err(RecipientError::LowOrder);
        }
        Ok(Self(bytes))
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 16 digits of its digest, for people.
    #[must_use]
    pub fn id(&self) -> String {
        hex::encode(&Digest::of(&self.0).as_bytes()[..8])
    }
}

impl FromStr for RecipientKey {
    type Err = RecipientError;
    fn from_str(text: &str) -> Result<Self, RecipientError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| RecipientError::Digits)?;
        Self::from_bytes(bytes)
    }
}

impl TryFrom<String> for RecipientKey {
    type Error = RecipientError;
    fn try_from(text: String) -> Result<Self, RecipientError> {
        text.parse()
    }
}

impl From<RecipientKey> for String {
    fn from(key: RecipientKey) -> String {
        key.to_string()
    }
}

impl fmt::Display for RecipientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The private half. Shown nowhere, and wiped when it is dropped.
pub struct RecipientSecret(Zeroizing<[u8; 32]>);

impl fmt::Debug for RecipientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecipientSecret(..)")
    }
}

impl RecipientSecret {
    /// The key whose 32 bytes these are, which must be random.
    #[must_use]
    pub fn from_seed(seed: &Zeroizing<[u8; 32]>) -> Self {
        Self(seed.clone())
    }

    /// The key that `text` says in 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`RecipientError::Digits`].
    pub fn parse(text: &str) -> Result<Self, RecipientError> {
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text, bytes.as_mut_slice()).map_err(|_| RecipientError::Digits)?;
        Ok(Self(bytes))
    }

    /// The 64 hexadecimal digits.
    #[must_use]
    pub fn digits(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0.as_slice()))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> RecipientKey {
        RecipientKey(MontgomeryPoint::mul_base_clamped(*self.0).0)
    }

    pub(super) fn agree(&self, with: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(MontgomeryPoint(*with).mul_clamped(*self.0).0)
    }
}
