//! Identifiers: strings and digests that are valid by construction.
//!
//! A value of these types is safe to use as an MQTT topic level, a path component and a certificate's
//! common name; that is what their grammar is chosen for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use smol_str::SmolStr;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Wrong characters or length.
    #[error(
        "{what} {text:?} is not valid: use 1 to 64 of a-z, 0-9, '-', '_' and '.', starting with a letter or a digit"
    )]
    Name {
        /// The kind of identifier.
        what: &'static str,
        /// What was given, shortened.
        text: String,
    },
    /// Not a SHA-256 digest in lower-case hexadecimal.
    #[error("{text:?} is not a SHA-256 digest: 64 lower-case hexadecimal digits are expected")]
    Digest {
        /// What was given, shortened.
        text: String,
    },
    /// Not `name@version`.
    #[error("{text:?} is not a bundle reference: write name@version, for example digits@1.2.0")]
    BundleRef {
        /// What was given, shortened.
        text: String,
    },
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

// Fleets are walked by the names of their devices: short ones lie where their owners are, and need not be waited for in memory.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(SmolStr);

        impl $name {
            /// Checks and wraps `text`.
            ///
            /// # Errors
            /// [`IdError::Name`] when a character or the length is not allowed.
            pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
                let text = text.as_ref();
                if is_name(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(IdError::Name { what: $what, text: shortened(text) })
                }
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

name_type!(
    /// A device's name in the fleet: the common name of its certificate and a level of its topics.
    DeviceId,
    "device id"
);
name_type!(
    /// A rollout's name, given by the controller.
    RolloutId,
    "rollout id"
);
name_type!(
    /// The name of a collection of samples, given by the controller.
    CollectionId,
    "collection id"
);
name_type!(
    /// The name of a model, shared by all its versions.
    BundleName,
    "bundle name"
);
name_type!(
    /// The name of an alert rule.
    RuleName,
    "rule name"
);
name_type!(
    /// The name of a number that an application sends through its device's agent.
    MetricName,
    "metric name"
);
name_type!(
    /// The name of an analysis template, shared by all its versions.
    TemplateName,
    "analysis template name"
);

/// A digest in the making, of bytes that come piece by piece.
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Wraps the 32 bytes of a digest computed elsewhere.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refuse = || IdError::Digest { text: shortened(text) };
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| refuse())?;
        Ok(Self(bytes))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A bundle by name and semantic version, written `name@version`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BundleRef {
    /// The model's name.
    pub name: BundleName,
    /// The version, by the rules of semver.org.
    pub version: semver::Version,
}

impl TryFrom<String> for BundleRef {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl FromStr for BundleRef {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let refuse = || IdError::BundleRef { text: shortened(text) };
        let (name, version) = text.split_once('@').ok_or_else(refuse)?;
        Ok(Self {
            name: BundleName::new(name).map_err(|_| refuse())?,
            version: semver::Version::parse(version).map_err(|_| refuse())?,
        })
    }
}

impl From<BundleRef> for String {
    fn from(bundle: BundleRef) -> String {
        bundle.to_string()
    }
}

impl fmt::Display for BundleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_exclude_what_topics_and_paths_reserve() {
        for bad in ["", "Dev", "a/b", "a+", "#", "$x", "-a", ".hidden", "..", "a b", "é", &"x".repeat(65)] {
            assert!(DeviceId::new(bad).is_err(), "{bad:?} must be refused");
        }
        for good in ["a", "dev-1", "0f", "lyon.press_7", &"x".repeat(64)] {
            assert_eq!(DeviceId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn digest_of_the_empty_string_is_the_published_one() {
        // FIPS 180-4 test vector.
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), Digest::of(b""));
        assert!(text.to_uppercase().parse::<Digest>().is_err());
        assert!(text[1..].parse::<Digest>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_round_trips(text in ".*") {
            if let Ok(id) = DeviceId::new(text.clone()) {
                prop_assert_eq!(id.to_string(), text.clone());
            }
            if let Ok(bundle) = text.parse::<BundleRef>() {
                prop_assert_eq!(bundle.to_string().parse::<BundleRef>().unwrap(), bundle);
            }
            let _ = text.parse::<Digest>();
        }
    }
}
