//! `muster bundle sign`: a release key's word for a bundle.

use std::path::{Path, PathBuf};

use muster_shared::ids::{BundleRef, Digest};
use muster_shared::trust::KeyId;
use serde::Serialize;

use super::folder::Folder;
use crate::command::Context;
use crate::failure::Failure;
use crate::key_file;
use crate::passphrase::Unlock;
use crate::signer::Signer;

#[derive(Serialize)]
struct Signed {
    bundle: BundleRef,
    manifest_digest: Digest,
    signed_with: Vec<KeyId>,
    /// Signatures the envelope carries now.
    signatures: usize,
}

/// Does what was asked. A bundle whose files are not what its manifest says is not signed.
///
/// # Errors
/// [`Failure`] when a key or the bundle is wrong.
pub(super) fn run(context: &Context, dir: &Path, keys: &[PathBuf], unlock: &Unlock) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let mut local = folder.manifest()?;
    folder.check_files(&local.manifest)?;
    let keys: Vec<Signer> = keys.iter().map(|path| key_file::read_signer(path, unlock)).collect::<Result<_, _>>()?;
    for key in &keys {
        key.sign(&mut local.envelope)?;
    }
    folder.write_envelope(&local.envelope)?;
    let signed = Signed {
        bundle: local.manifest.bundle(),
        manifest_digest: local.digest,
        signed_with: keys.iter().map(|key| key.public().id()).collect(),
        signatures: local.envelope.signatures.len(),
    };
    context.output.show(&signed, |signed| {
        let keys: Vec<String> = signed.signed_with.iter().map(Digest::short).collect();
        format!(
            "{} ({}) is signed with {}; it carries {} signature(s)",
            signed.bundle,
            signed.manifest_digest.short(),
            keys.join(", "),
            signed.signatures
        )
    })
}
