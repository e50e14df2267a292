//! Ed25519 keys as the documents carry them.

use std::fmt;

use ed25519_dalek::Signer as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::TrustError;
use crate::ids::Digest;

/// Names a public key: SHA-256 of its 32 bytes, so that one key cannot be listed under two names.
pub type KeyId = Digest;

/// An ed25519 public key, written as 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// The key's name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        Digest::of(self.0.as_bytes())
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Whether `signature` over `message` is this key's. Weak keys and malleable signatures are refused.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", String::from(self.clone()))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = TrustError;
    fn try_from(text: String) -> Result<Self, TrustError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes)
            .map_err(|_| TrustError::Key("a public key is 64 hexadecimal digits".into()))?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes)
            .map_err(|_| TrustError::Key("the digits are not a point on the curve".into()))?;
        // Zeros, which stand for "to be filled in", are one of these. No signature of such a key would ever be accepted.
        if key.is_weak() {
            return Err(TrustError::Key("the digits are a weak key, whose signatures anybody can make".into()));
        }
        Ok(Self(key))
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        hex::encode(key.0.as_bytes())
    }
}

/// An ed25519 signing key. Its memory is wiped when it is dropped.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public().id().short())
    }
}

impl SigningKey {
    /// The key with this seed, which must come from a cryptographic random source.
    #[must_use]
    pub fn from_seed(seed: &Zeroizing<[u8; 32]>) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The seed, to store where nobody else can read.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Signs `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_a_key_or_refused(text in prop_oneof![".{0,70}", "[0-9a-fA-F]{64}", " ?[0-9a-f]{62,66}\n?"]) {
            match PublicKey::try_from(text.clone()) {
                Ok(key) => {
                    prop_assert_eq!(String::from(key.clone()), text.trim().to_ascii_lowercase());
                    prop_assert_eq!(PublicKey::try_from(String::from(key.clone())).unwrap(), key);
                }
                Err(error) => prop_assert!(matches!(error, TrustError::Key(_)), "{}", error),
            }
        }

        #[test]
        fn any_bytes_are_a_key_with_a_name_of_its_own(bytes: [u8; 32], other: [u8; 32], signature: [u8; 32]) {
            let key = |bytes: [u8; 32]| PublicKey::try_from(hex::encode(bytes));
            if let (Ok(one), Ok(two)) = (key(bytes), key(other)) {
                prop_assert_eq!(one.as_bytes(), &bytes);
                prop_assert_eq!(one.id() == two.id(), bytes == other);
                let mut forged = [0; 64];
                forged[..32].copy_from_slice(&signature);
                prop_assert!(!one.verifies(b"x", &forged));
            }
        }
    }

    /// Under a key of small order one signature fits many messages, whoever made it.
    #[test]
    fn weak_keys_are_refused() {
        // The identity, written as RFC 8032 does and with its y-coordinate above the modulus.
        let identity = [&[1][..], &[0; 31]].concat();
        let above = [&[0xee][..], &[0xff; 30], &[0x7f]].concat();
        for bytes in [identity, above, vec![0; 32]] {
            let error = PublicKey::try_from(hex::encode(&bytes)).unwrap_err();
            assert!(error.to_string().contains("weak"), "{error}: {bytes:?}");
        }
    }
}
