//! `muster bundle push`: files first, as far as the controller lacks them, then the manifest.

use std::collections::BTreeMap;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use muster_shared::api::{BundleView, PushBundle};
use muster_shared::bundle::BundleFile;
use muster_shared::ids::Digest;

use super::folder::Folder;
use crate::api_client::ApiClient;
use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::output;

async fn upload(client: &ApiClient, folder: &Folder, files: &[BundleFile]) -> Result<(), Failure> {
    let by_digest: BTreeMap<Digest, &BundleFile> = files.iter().map(|file| (file.sha256, file)).collect();
    let mut missing = Vec::new();
    for (digest, file) in &by_digest {
        if !client.has_file(digest).await? {
            missing.push(*file);
        }
    }
    let progress = ProgressBar::new(missing.iter().map(|file| file.length).sum());
    if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:40} {binary_bytes}/{binary_total_bytes}, {eta} left")
    {
        progress.set_style(style);
    }
    for file in &missing {
        progress.set_prefix(file.path.clone());
        let content = folder
            .open_file(file)
            .map_err(|reason| Failure::unmet(format!("{}: {reason}", folder.file_path(&file.path).display())))?;
        client.put_file(&file.sha256, content, file.length, &progress).await?;
    }
    progress.finish_and_clear();
    let sent: u64 = missing.iter().map(|file| file.length).sum();
    output::note(&format!(
        "sent {} of {} files ({}); the controller had the others",
        missing.len(),
        by_digest.len(),
        output::bytes(sent)
    ));
    Ok(())
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the bundle is not signed or damaged, or the controller refuses it.
pub(super) fn run(context: &Context, dir: &Path) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let local = folder.manifest()?;
    if local.envelope.signatures.is_empty() {
        return Err(Failure::unmet(format!(
            "the bundle in {} is not signed; `muster bundle sign` does that",
            folder.path().display()
        )));
    }
    folder.check_files(&local.manifest)?;
    let client = context.client()?;
    let view: BundleView = block_on(async {
        upload(&client, &folder, &local.manifest.files).await?;
        client.post(&["bundles"], &PushBundle { manifest: local.envelope }).await
    })?;
    context
        .output
        .show(&view, |view| format!("{} ({}) is on the controller", view.bundle, view.manifest_digest.short()))
}
