//! The director's key: with it the controller signs which device shall run what, and nothing else.

use std::path::Path;

use muster_shared::trust::{Assignment, DocumentKind, Envelope, PublicKey, SigningKey, TrustError, sign_document};
use zeroize::Zeroizing;

use crate::durable::{self, Access, FileError};

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectorError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not a key.
    #[error("{0} is not a director key: 64 hexadecimal digits are expected; restore it from a backup")]
    Damaged(String),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers for the director key: {0}")]
    Random(getrandom::Error),
}

/// The key.
#[derive(Debug)]
pub(crate) struct Director {
    key: SigningKey,
}

impl Director {
    /// Reads the key, or makes it at the first start.
    ///
    /// # Errors
    /// [`DirectorError`]; a file that is there is never replaced.
    pub(crate) fn open(path: &Path) -> Result<Self, DirectorError> {
        let mut seed = Zeroizing::new([0_u8; 32]);
        match durable::read(path)?.map(Zeroizing::new) {
            Some(text) => {
                hex::decode_to_slice(text.trim_ascii(), seed.as_mut_slice())
                    .map_err(|_| DirectorError::Damaged(path.display().to_string()))?;
            }
            None => {
                getrandom::fill(seed.as_mut_slice()).map_err(DirectorError::Random)?;
                let text = Zeroizing::new(hex::encode(seed.as_slice()));
                durable::write(path, text.as_bytes(), Access::Secret)?;
            }
        }
        Ok(Self { key: SigningKey::from_seed(&seed) })
    }

    /// The public half, to be named in the root document.
    pub(crate) fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Signs an assignment.
    ///
    /// # Errors
    /// [`TrustError`] when it cannot be written as JSON.
    pub(crate) fn sign(&self, assignment: &Assignment) -> Result<Envelope, TrustError> {
        sign_document(DocumentKind::Assignment, assignment, [&self.key])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_file_is_a_key_or_named_and_stays_as_it_is(
            bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), "[0-9a-fA-F]{60,68}[ \n]{0,2}".prop_map(String::into_bytes)]
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("director.key");
            std::fs::write(&path, &bytes).unwrap();
            let is_key = bytes.trim_ascii().len() == 64 && bytes.trim_ascii().iter().all(u8::is_ascii_hexdigit);
            match Director::open(&path) {
                Ok(_) => prop_assert!(is_key),
                Err(error) => prop_assert!(!is_key && error.to_string().contains("director.key"), "{}", error),
            }
            prop_assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn the_key_stays_and_a_damaged_one_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("director.key");
        let public = Director::open(&path).unwrap().public();
        assert_eq!(Director::open(&path).unwrap().public(), public);
        for bad in ["", "zz", &"a".repeat(63), &"a".repeat(66)] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(Director::open(&path), Err(DirectorError::Damaged(_))), "{bad}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
        }
    }
}
