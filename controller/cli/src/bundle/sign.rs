//! `muster bundle sign`: a release key's word for a bundle.

use std::path::{Path, PathBuf};

use muster_shared::ids::{BundleRef, Digest};
use muster_shared::trust::{KeyId, SigningKey};
use serde::Serialize;

use super::folder::Folder;
use crate::command::Context;
use crate::failure::Failure;
use crate::key_file;

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
pub(super) fn run(context: &Context, dir: &Path, keys: &[PathBuf]) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let mut local = folder.manifest()?;
    folder.check_files(&local.manifest)?;
    let keys: Vec<SigningKey> = keys.iter().map(|path| key_file::read_private(path)).collect::<Result<_, _>>()?;
    for key in &keys {
        local
            .envelope
            .add_signature(key)
            .map_err(|error| Failure::unmet("the manifest cannot be signed").because(error))?;
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
