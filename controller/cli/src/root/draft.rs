//! A root document on its way round its signers: who has signed it, and who must still.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use muster_shared::trust::{DocumentKind, Envelope, KeyId, Role, Root, TrustedRoot};
use serde::Serialize;

use super::{read_envelope, read_trusted_root, root_text, trust_words, view};
use crate::command::Context;
use crate::failure::Failure;
use crate::key_file;
use crate::passphrase::Unlock;

/// A root document, signed or not, and the one before it where that was given.
pub(super) struct Draft {
    path: PathBuf,
    envelope: Envelope,
    root: Root,
    previous: Option<TrustedRoot>,
}

/// Signatures that the root keys of one version owe.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Owed {
    /// The version whose keys these are.
    version: u64,
    threshold: u32,
    /// Of them, those that have signed.
    signed: usize,
    /// Any of these may still sign; none when enough have.
    missing: Vec<KeyId>,
}

#[derive(Serialize)]
struct DraftView<'a> {
    #[serde(flatten)]
    document: super::RootView<'a>,
    signatures: Vec<Owed>,
    /// Whether devices that trust the document before would take it; without that document, whether its own keys have signed.
    complete: bool,
}

impl Draft {
    /// The document in `envelope`, which came from `path`. Only its form is checked.
    ///
    /// # Errors
    /// [`Failure`] when it is no root document, or does not follow `previous`.
    pub(super) fn new(path: &Path, envelope: Envelope, previous: Option<TrustedRoot>) -> Result<Self, Failure> {
        let fault = |reason: String| Failure::input(format!("{}: {reason}", path.display()));
        let payload = envelope.payload_bytes().map_err(|error| fault(trust_words(&error)))?;
        if let Err(error) = envelope.signers(DocumentKind::Root, []) {
            return Err(Failure::unmet(format!("{}: {}", path.display(), trust_words(&error))));
        }
        let root: Root =
            serde_json::from_slice(&payload).map_err(|error| fault("it is no root document".into()).because(error))?;
        root.validate().map_err(|error| fault(trust_words(&error)))?;
        if let Some(before) = previous.as_ref().map(|previous| previous.root().version)
            && before.checked_add(1) != Some(root.version)
        {
            return Err(fault(format!("it has version {}, and the one after {before} is expected", root.version)));
        }
        Ok(Self { path: path.to_owned(), envelope, root, previous })
    }

    /// Reads the document, and the one before it, which must be complete.
    ///
    /// # Errors
    /// [`Failure`] when either is no root document.
    pub(super) fn read(path: &Path, previous: Option<&Path>) -> Result<Self, Failure> {
        let previous = previous.map(read_trusted_root).transpose()?;
        Self::new(path, read_envelope(path)?, previous)
    }

    pub(super) fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// Signs with the private key in the file `key`.
    ///
    /// # Errors
    /// [`Failure`] when it is no key, cannot be used, or is one whose signature would count for nothing.
    pub(super) fn sign(&mut self, key: &Path, unlock: &Unlock) -> Result<(), Failure> {
        let signing = key_file::read_signer(key, unlock)?;
        let id = signing.public().id();
        let names = |root: &Root| root.roles.get(&Role::Root).is_some_and(|keys| keys.key_ids.contains(&id));
        if !names(&self.root) && !self.previous.as_ref().is_some_and(|previous| names(previous.root())) {
            let hint = match &self.previous {
                Some(_) => "nor of the one before",
                None => "; if it is one of the document before, name that with --previous",
            };
            return Err(Failure::input(format!(
                "{}: the key {} is no root key of {} {hint}",
                key.display(),
                id.short(),
                self.path.display()
            )));
        }
        signing.sign(&mut self.envelope)
    }

    fn owed(&self) -> Result<Vec<Owed>, Failure> {
        let of = |root: &Root| -> Result<Owed, Failure> {
            let signed = root
                .root_signers(&self.envelope)
                .map_err(|error| Failure::input(format!("{}: {}", self.path.display(), trust_words(&error))))?;
            let (keys, threshold) = root
                .roles
                .get(&Role::Root)
                .map_or((BTreeSet::new(), u32::MAX), |role| (role.key_ids.clone(), role.threshold));
            let enough = signed.len() as u64 >= u64::from(threshold);
            let missing = if enough { Vec::new() } else { keys.difference(&signed).copied().collect() };
            Ok(Owed { version: root.version, threshold, signed: signed.len(), missing })
        };
        self.previous.as_ref().map(TrustedRoot::root).into_iter().chain([&self.root]).map(of).collect()
    }

    /// Shows the document, and what it lacks. Says whether that is nothing.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be shown.
    pub(super) fn show(&self, context: &Context) -> Result<bool, Failure> {
        let signatures = self.owed()?;
        let complete = signatures.iter().all(|owed| owed.missing.is_empty());
        let shown = DraftView { document: view(&self.root, &self.envelope), signatures, complete };
        context.output.show(&shown, |shown| {
            let mut lines = vec![root_text(&shown.document), String::new()];
            for Owed { version, threshold, signed, missing } in &shown.signatures {
                let mut line = format!("root keys of version {version}: {signed} of {threshold} required signatures");
                if !missing.is_empty() {
                    let ids: Vec<String> = missing.iter().map(ToString::to_string).collect();
                    line.push_str(&format!(
                        "; {} more of\n  {}",
                        u64::from(*threshold).saturating_sub(*signed as u64),
                        ids.join("\n  ")
                    ));
                }
                lines.push(line);
            }
            if shown.signatures.len() == 1 && shown.document.root.version > 1 {
                lines.push("whether the keys of the version before have signed is shown with --previous".into());
            }
            lines.join("\n")
        })?;
        Ok(complete)
    }
}
