//! The authorities in force: one, or while it is being replaced the old and the new one.
//!
//! From the moment the new one is there it signs everything: devices' certificates and the server's. The server shows the new one also as the
//! old one signed it, so devices that know only the old one find their way; and certificates of the old one are accepted until it is
//! retired. Which are in force is a matter of which files are there, so that a crash at any moment leaves one state or the next.

use std::fmt;
use std::path::{Path, PathBuf};

use muster_shared::ids::Digest;
use serde::{Deserialize, Serialize};

use super::PkiError;
use super::ca::{Authority, Files};
use crate::durable::{self, FileError};

/// Which authorities there were when a device was given its certificate: grows with every change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct AuthoritiesVersion(u64);

impl AuthoritiesVersion {
    /// The first authority alone.
    pub(crate) const FIRST: Self = Self::of(1, true);

    /// The authority `generation` signs, `alone` or beside the one before it.
    const fn of(generation: u64, alone: bool) -> Self {
        Self(generation.saturating_mul(2).saturating_add(alone as u64))
    }

    /// Which authority signed.
    pub(crate) fn generation(self) -> u64 {
        self.0 / 2
    }

    /// As the signed list has it.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

impl Default for AuthoritiesVersion {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for AuthoritiesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The authorities in force, oldest first; never empty.
pub(super) struct Authorities {
    folder: PathBuf,
    before: Vec<Authority>,
    current: Authority,
}

/// The generations whose certificates lie in `folder`, lowest first.
fn generations(folder: &Path) -> Result<Vec<u64>, FileError> {
    let mut found = Vec::new();
    let unreadable = FileError::at("read the folder", folder);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return Err(unreadable(error)),
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let generation = match name.to_str() {
            Some("ca.pem") => Some(1),
            Some(name) => name.strip_prefix("ca-").and_then(|n| n.strip_suffix(".pem")).and_then(|n| n.parse().ok()),
            None => None,
        };
        found.extend(generation.filter(|n| Files::of(folder, *n).certificate == entry.path()));
    }
    found.sort_unstable();
    Ok(found)
}

impl Authorities {
    /// Opens those in `folder`; the first is made where there is none.
    ///
    /// # Errors
    /// [`PkiError`]; one that is there is never replaced.
    pub(super) fn open(folder: &Path, now_ms: u64) -> Result<Self, PkiError> {
        let mut before = generations(folder)?
            .into_iter()
            .map(|generation| Authority::open(folder, generation, now_ms))
            .collect::<Result<Vec<_>, _>>()?;
        let current = match before.pop() {
            Some(current) => current,
            None => Authority::open(folder, 1, now_ms)?,
        };
        Ok(Self { folder: folder.to_owned(), before, current })
    }

    /// The one that signs.
    pub(super) fn current(&self) -> &Authority {
        &self.current
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Authority> {
        self.before.iter().chain([&self.current])
    }

    /// The one with this fingerprint.
    pub(super) fn with_sha256(&self, sha256: &Digest) -> Option<&Authority> {
        self.all().find(|authority| authority.sha256() == *sha256)
    }

    pub(super) fn version(&self) -> AuthoritiesVersion {
        AuthoritiesVersion::of(self.current.generation(), self.before.is_empty())
    }

    /// Every certificate that may sign a device's, in PEM.
    pub(super) fn pem(&self) -> String {
        self.all().map(Authority::pem).collect()
    }

    /// What the server shows after its own certificate: the current one, for those who know it or its fingerprint; and as long as the one
    /// before it is accepted, the way from that one to it.
    pub(super) fn chain_pem(&self) -> String {
        let cross = self.current.cross_pem().filter(|_| !self.before.is_empty()).unwrap_or_default();
        [self.current.pem(), cross].into_iter().chain(self.before.iter().map(Authority::pem)).collect()
    }

    /// Puts a new one into force. The one before stays accepted.
    ///
    /// # Errors
    /// [`PkiError::Overlap`] while there are two.
    pub(super) fn rotate(&mut self, now_ms: u64) -> Result<(), PkiError> {
        if !self.before.is_empty() {
            return Err(PkiError::Overlap);
        }
        let next = self.current.successor(&self.folder, now_ms)?;
        self.before.push(std::mem::replace(&mut self.current, next));
        Ok(())
    }

    /// Takes those before the current one out of force, for good. Says whether there was one.
    ///
    /// # Errors
    /// [`PkiError::File`]; it is to be tried again then.
    pub(super) fn retire(&mut self) -> Result<bool, PkiError> {
        let any = !self.before.is_empty();
        for authority in &self.before {
            let Files { certificate, key, cross } = Files::of(&self.folder, authority.generation());
            for file in [&certificate, &key, &cross] {
                durable::remove(file)?;
            }
        }
        self.before.clear();
        Ok(any)
    }
}

#[cfg(test)]
mod tests {
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;
    use crate::config::Config;
    use crate::pki::DAY_MS;
    use crate::pki::server::{ServerFiles, ServerNames};

    const NOW_MS: u64 = 1_790_000_000_000;

    /// Whether a client that knows `known` believes the server in `folder`.
    fn believed(folder: &Path, known: &str) -> bool {
        let pem = std::fs::read_to_string(folder.join("server.pem")).unwrap();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(known.as_bytes()).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(NOW_MS + DAY_MS));
        let name = ServerName::try_from("127.0.0.1").unwrap();
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).is_ok()
    }

    #[test]
    fn old_and_new_are_both_believed_until_the_old_one_is_retired() {
        let folder = tempfile::tempdir().unwrap();
        let names = ServerNames::of(&Config::default());
        let serve = |authorities: &Authorities| ServerFiles::open(folder.path(), authorities, &names, NOW_MS).unwrap();
        let open = || Authorities::open(folder.path(), NOW_MS).unwrap();
        let mut authorities = open();
        serve(&authorities);
        let mut known = vec![authorities.pem()];
        let mut versions = vec![authorities.version()];
        assert!(!authorities.retire().unwrap());
        for _ in 0..2 {
            authorities.rotate(NOW_MS).unwrap();
            assert!(matches!(authorities.rotate(NOW_MS), Err(PkiError::Overlap)));
            assert_eq!(open().pem(), authorities.pem());
            versions.push(authorities.version());
            known.push(authorities.current().pem().to_owned());
            serve(&authorities);
            let last_two = known.len() - 2;
            for (at, pem) in known.iter().enumerate() {
                assert_eq!(believed(folder.path(), pem), at >= last_two, "{at}");
            }
            assert!(authorities.retire().unwrap());
            assert_eq!(open().pem(), authorities.current().pem());
            versions.push(authorities.version());
            serve(&authorities);
            for (at, pem) in known.iter().enumerate() {
                assert_eq!(believed(folder.path(), pem), at == known.len() - 1, "{at}");
            }
        }
        assert!(versions.is_sorted() && versions.windows(2).all(|two| two[0] != two[1]), "{versions:?}");
        assert_eq!(versions.iter().map(|v| v.generation()).collect::<Vec<_>>(), [1, 2, 2, 3, 3]);
        assert_eq!(versions[0], AuthoritiesVersion::FIRST);
    }

    #[test]
    fn a_rotation_cut_short_has_not_happened_and_a_retirement_cut_short_has() {
        let folder = tempfile::tempdir().unwrap();
        let mut authorities = Authorities::open(folder.path(), NOW_MS).unwrap();
        let first = authorities.pem();
        authorities.rotate(NOW_MS).unwrap();
        let whole = authorities.pem();
        let second = std::fs::read(folder.path().join("ca-2.pem")).unwrap();
        std::fs::remove_file(folder.path().join("ca-2.pem")).unwrap();
        let mut cut_short = Authorities::open(folder.path(), NOW_MS).unwrap();
        assert_eq!(cut_short.pem(), first);
        cut_short.rotate(NOW_MS).unwrap();
        assert_ne!(std::fs::read(folder.path().join("ca-2.pem")).unwrap(), second);
        assert_ne!(cut_short.pem(), whole);
        std::fs::remove_file(folder.path().join("ca.pem")).unwrap();
        let retired = Authorities::open(folder.path(), NOW_MS).unwrap();
        assert_eq!(
            (retired.pem(), retired.version()),
            (cut_short.current().pem().to_owned(), AuthoritiesVersion::of(2, true))
        );
        for stray in ["ca-x.pem", "ca-02.pem", "ca-.pem", "ca-2-cross.pem.new"] {
            std::fs::write(folder.path().join(stray), "noise").unwrap();
        }
        assert_eq!(Authorities::open(folder.path(), NOW_MS).unwrap().pem(), retired.pem());
    }
}
