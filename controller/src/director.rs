//! The director's keys: with them the controller signs which device shall run what, and nothing else.
//!
//! There is one, and while it is being replaced a next one beside it. Which of them signs is the root document's to say
//! ([`Director::follow`]); the controller cannot give itself another.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use muster_shared::collection::Collections;
use muster_shared::trust::{
    Assignment, Authorities, DocumentKind, Envelope, PublicKey, SigningKey, TrustError, TrustedRoot, sign_document,
};
use zeroize::Zeroizing;

use crate::durable::{self, Access, FileError};
use crate::trust::lets_sign;

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
    /// The next key is in use.
    #[error("the root document names the next director key already: replace it with another root document first")]
    InUse,
}

/// The keys. See the module.
#[derive(Debug)]
pub(crate) struct Director {
    file: PathBuf,
    next_file: PathBuf,
    keys: RwLock<Keys>,
}

#[derive(Debug)]
struct Keys {
    current: SigningKey,
    next: Option<SigningKey>,
    /// The root document names the next one beside the current one.
    next_signs: bool,
    /// The version of the root document followed.
    root_version: u64,
}

impl Keys {
    fn signing(&self) -> &SigningKey {
        self.next.as_ref().filter(|_| self.next_signs).unwrap_or(&self.current)
    }
}

fn read(path: &Path) -> Result<Option<SigningKey>, DirectorError> {
    durable::read(path)?.map(Zeroizing::new).map(|text| parse(&text, path)).transpose()
}

/// The key that the file at `path` holds as `text`.
fn parse(text: &[u8], path: &Path) -> Result<SigningKey, DirectorError> {
    let mut seed = Zeroizing::new([0_u8; 32]);
    hex::decode_to_slice(text.trim_ascii(), seed.as_mut_slice())
        .map_err(|_| DirectorError::Damaged(path.display().to_string()))?;
    Ok(SigningKey::from_seed(&seed))
}

fn make(path: &Path) -> Result<SigningKey, DirectorError> {
    let mut seed = Zeroizing::new([0_u8; 32]);
    getrandom::fill(seed.as_mut_slice()).map_err(DirectorError::Random)?;
    let text = Zeroizing::new(hex::encode(seed.as_slice()));
    durable::write(path, text.as_bytes(), Access::Secret)?;
    Ok(SigningKey::from_seed(&seed))
}

impl Director {
    /// Reads the key `director.key` in `folder`, or makes it at the first start, and the next one where there is one.
    ///
    /// # Errors
    /// [`DirectorError`]; a file that is there is never replaced.
    pub(crate) fn open(folder: &Path) -> Result<Self, DirectorError> {
        let (file, next_file) = (folder.join("director.key"), folder.join("director-next.key"));
        let current = match read(&file)? {
            Some(key) => key,
            None => make(&file)?,
        };
        let mut next = read(&next_file)?;
        if next.as_ref().is_some_and(|next| next.public() == current.public()) {
            // It took the other's place, and the crash came before its own was cleared.
            durable::remove(&next_file)?;
            next = None;
        }
        Ok(Self { file, next_file, keys: RwLock::new(Keys { current, next, next_signs: false, root_version: 0 }) })
    }

    fn keys(&self) -> RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys_to_change(&self) -> RwLockWriteGuard<'_, Keys> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The public half of the key that signs, to be named in the root document.
    pub(crate) fn public(&self) -> PublicKey {
        self.keys().signing().public()
    }

    /// The public half of the next key, while it does not sign.
    pub(crate) fn next_public(&self) -> Option<PublicKey> {
        let keys = self.keys();
        keys.next.as_ref().filter(|_| !keys.next_signs).map(SigningKey::public)
    }

    /// Makes the next key, unless there is one.
    ///
    /// # Errors
    /// [`DirectorError`].
    pub(crate) fn prepare(&self) -> Result<PublicKey, DirectorError> {
        let mut keys = self.keys_to_change();
        if keys.next_signs {
            return Err(DirectorError::InUse);
        }
        if let Some(next) = &keys.next {
            return Ok(next.public());
        }
        let next = make(&self.next_file)?;
        let public = next.public();
        keys.next = Some(next);
        Ok(public)
    }

    /// Gives the next key up. Says whether there was one.
    ///
    /// # Errors
    /// [`DirectorError::InUse`] when it signs already.
    pub(crate) fn discard(&self) -> Result<bool, DirectorError> {
        let mut keys = self.keys_to_change();
        if keys.next_signs {
            return Err(DirectorError::InUse);
        }
        // Whatever comes of the file: a key that may be gone must not come to sign.
        let any = keys.next.take().is_some();
        durable::remove(&self.next_file)?;
        Ok(any)
    }

    /// The version of the root document followed; 0 before the first.
    pub(crate) fn root_version(&self) -> u64 {
        self.keys().root_version
    }

    /// Signs with the key that `root` names, unless a later one was followed already: with the next one as soon as it is named, and once the current one is not
    /// named any more, the next one takes its place for good. Says whether another key signs now.
    ///
    /// # Errors
    /// [`DirectorError::File`] when that cannot be stored; the right key signs all the same.
    pub(crate) fn follow(&self, root: &TrustedRoot) -> Result<bool, DirectorError> {
        let mut keys = self.keys_to_change();
        if root.root().version < keys.root_version {
            return Ok(false);
        }
        keys.root_version = root.root().version;
        let before = keys.signing().public();
        keys.next_signs = keys.next.as_ref().is_some_and(|next| lets_sign(root, &next.public()));
        let changed = keys.signing().public() != before;
        if keys.next_signs && !lets_sign(root, &keys.current.public()) {
            // A crash in between leaves two files with the same key, which the next start tidies up.
            let text = Zeroizing::new(durable::read(&self.next_file)?.unwrap_or_default());
            let stored = parse(&text, &self.next_file)?.public();
            if keys.next.as_ref().is_none_or(|next| next.public() != stored) {
                // The key in use would be lost with this process, and the one before it with the file.
                return Err(DirectorError::Damaged(self.next_file.display().to_string()));
            }
            durable::write(&self.file, &text, Access::Secret)?;
            durable::remove(&self.next_file)?;
            if let Some(next) = keys.next.take() {
                keys.current = next;
            }
            keys.next_signs = false;
        }
        Ok(changed)
    }

    /// Signs a list of authorities.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub(crate) fn sign_authorities(&self, authorities: &Authorities) -> Result<Envelope, TrustError> {
        sign_document(DocumentKind::Authorities, authorities, [self.keys().signing()])
    }

    /// Signs which samples a device may collect.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub(crate) fn sign_collections(&self, collections: &Collections) -> Result<Envelope, TrustError> {
        sign_document(DocumentKind::Collections, collections, [self.keys().signing()])
    }

    /// Signs an assignment.
    ///
    /// # Errors
    /// [`TrustError`] when it cannot be written as JSON.
    pub(crate) fn sign(&self, assignment: &Assignment) -> Result<Envelope, TrustError> {
        sign_document(DocumentKind::Assignment, assignment, [self.keys().signing()])
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::trust::Role;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{ROOT_SEED, key, root_document};

    proptest! {
        #[test]
        fn any_file_is_a_key_or_named_and_stays_as_it_is(
            bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), "[0-9a-fA-F]{60,68}[ \n]{0,2}".prop_map(String::into_bytes)]
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("director.key");
            std::fs::write(&path, &bytes).unwrap();
            let is_key = bytes.trim_ascii().len() == 64 && bytes.trim_ascii().iter().all(u8::is_ascii_hexdigit);
            match Director::open(folder.path()) {
                Ok(_) => prop_assert!(is_key),
                Err(error) => prop_assert!(!is_key && error.to_string().contains("director.key"), "{}", error),
            }
            prop_assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn the_root_document_says_which_key_signs() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Director::open(folder.path()).unwrap();
        let director = open();
        let first = director.public();
        let named = |version, keys: &[&PublicKey]| {
            let mut root = root_document(version, first.clone());
            root.keys.extend(keys.iter().map(|key| (key.id(), (*key).clone())));
            let role = root.roles.get_mut(&Role::Director).unwrap();
            role.key_ids = keys.iter().map(|key| key.id()).collect();
            TrustedRoot::first(sign_document(DocumentKind::Root, &root, [&key(ROOT_SEED)]).unwrap(), None).unwrap()
        };
        assert!(!director.discard().unwrap());
        let next = director.prepare().unwrap();
        assert_eq!((director.prepare().unwrap(), open().next_public()), (next.clone(), Some(next.clone())));
        assert!(!director.follow(&named(1, &[&first])).unwrap());
        assert_eq!((director.public(), director.next_public()), (first.clone(), Some(next.clone())));
        // One that names neither leaves everything as it is.
        assert!(!director.follow(&named(1, &[&key(9).public()])).unwrap());
        assert_eq!(director.public(), first);
        // Both: the next one signs, and can still be taken back.
        assert!(director.follow(&named(1, &[&first, &next])).unwrap());
        assert_eq!((director.public(), director.next_public()), (next.clone(), None));
        assert!(matches!(director.discard(), Err(DirectorError::InUse)));
        assert!(director.follow(&named(1, &[&first])).unwrap());
        assert_eq!(director.public(), first);
        // One that was overtaken counts no more.
        assert!(
            !director.follow(&named(3, &[&first])).unwrap() && !director.follow(&named(2, &[&first, &next])).unwrap()
        );
        assert_eq!((director.public(), director.root_version()), (first.clone(), 3));
        // A next key whose file is another's must not take the place of the one there is.
        let stored = std::fs::read(folder.path().join("director-next.key")).unwrap();
        std::fs::remove_file(folder.path().join("director-next.key")).unwrap();
        assert!(matches!(director.follow(&named(4, &[&next])), Err(DirectorError::Damaged(_))));
        assert_eq!(open().public(), first);
        std::fs::write(folder.path().join("director-next.key"), stored).unwrap();
        // The next one alone: also when the files say so only in part.
        director.follow(&named(4, &[&next])).unwrap();
        assert_eq!((director.public(), director.next_public()), (next.clone(), None));
        std::fs::copy(folder.path().join("director.key"), folder.path().join("director-next.key")).unwrap();
        let again = open();
        again.follow(&named(1, &[&next])).unwrap();
        assert_eq!((again.public(), again.next_public()), (next.clone(), None));
        again.prepare().unwrap();
        assert!(again.discard().unwrap());
        assert_eq!((open().public(), open().next_public()), (next, None));
    }

    #[test]
    fn the_key_stays_and_a_damaged_one_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("director.key");
        let public = Director::open(folder.path()).unwrap().public();
        assert_eq!(Director::open(folder.path()).unwrap().public(), public);
        for bad in ["", "zz", &"a".repeat(63), &"a".repeat(66)] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(Director::open(folder.path()), Err(DirectorError::Damaged(_))), "{bad}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
        }
    }
}
