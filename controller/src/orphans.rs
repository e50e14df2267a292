//! Removes files that no bundle needs: uploads whose manifest never came.
//!
//! A file may lie there for [`GRACE_MS`] before its manifest does; being asked for by a push starts that time anew. Bundles themselves
//! stay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use muster_shared::ids::Digest;
use tokio::sync::watch;

use crate::blobs::{BlobError, Blobs};
use crate::clock;
use crate::state::App;
use crate::store::records::BundleRecord;
use crate::store::{Records, StoreError, Table};

/// How often it is looked for such files.
const EVERY: Duration = Duration::from_secs(6 * 3_600);
/// How long a file may wait for its manifest, in milliseconds.
const GRACE_MS: u64 = 24 * 3_600_000;
/// Manifests read at once: each may have half a megabyte.
const PAGE: usize = 16;

/// Why it is not known which files are needed, or they cannot be removed.
#[derive(Debug, thiserror::Error)]
enum OrphanError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// Removes such files now and then, until the controller stops.
pub(crate) async fn keep_house(app: Arc<App>, mut shutdown: watch::Receiver<bool>) {
    loop {
        match remove_before(&app.blobs, &app.records, clock::now_ms().saturating_sub(GRACE_MS)).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "files that no bundle needs removed"),
            Err(error) => tracing::warn!(%error, "files that no bundle needs stay"),
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}

/// Removes every file that has been there since before `before_ms` without a bundle that needs it, and says how many.
async fn remove_before(blobs: &Blobs, records: &Records, before_ms: u64) -> Result<usize, OrphanError> {
    let mut orphans: BTreeSet<Digest> = blobs.untouched_since(before_ms).await?;
    let mut after: Option<String> = None;
    while !orphans.is_empty() {
        let page = records.scan::<BundleRecord>(Table::Bundles, after.as_deref(), "", PAGE).await?;
        for file in page.iter().flat_map(|(_, bundle)| &bundle.value.manifest.files) {
            orphans.remove(&file.sha256);
        }
        match page.into_iter().last() {
            Some((key, _)) => after = Some(key),
            None => break,
        }
    }
    let mut removed = 0;
    for orphan in orphans {
        removed += usize::from(blobs.remove_untouched(&orphan, before_ms).await?);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::stream;

    use super::*;
    use crate::testing::app;

    async fn upload(blobs: &Blobs, content: &'static [u8]) -> Digest {
        let digest = Digest::of(content);
        blobs.receive(&digest, stream::iter([Ok::<_, Infallible>(Bytes::from_static(content))])).await.unwrap();
        digest
    }

    #[tokio::test]
    async fn only_files_that_waited_for_their_manifest_in_vain_go() {
        let test = app().await;
        let (blobs, records) = (&test.app.blobs, &test.app.records);
        let needed: Vec<_> = {
            let mut files = Vec::new();
            for number in 0..2 * PAGE {
                files.extend(test.bundle("digits", &format!("1.0.{number}"), 10 + number).await.files);
            }
            files.into_iter().map(|file| file.sha256).collect()
        };
        let orphan = upload(blobs, b"nobody's").await;
        assert_eq!(
            remove_before(blobs, records, clock::now_ms() - GRACE_MS).await.unwrap(),
            0,
            "it may still be wanted"
        );
        let later_ms = clock::now_ms() + 10_000;
        assert_eq!(remove_before(blobs, records, later_ms).await.unwrap(), 1);
        assert_eq!(remove_before(blobs, records, later_ms).await.unwrap(), 0);
        assert_eq!(blobs.touch(&orphan).await.unwrap(), None);
        for digest in needed {
            assert!(blobs.touch(&digest).await.unwrap().is_some(), "{digest}");
        }
        // It can come again.
        assert_eq!(upload(blobs, b"nobody's").await, orphan);
        assert!(blobs.touch(&orphan).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_file_that_a_push_has_asked_for_waits_anew() {
        let test = app().await;
        let blobs = &test.app.blobs;
        let orphan = upload(blobs, b"nobody's").await;
        let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000);
        blobs.open_blocking(&orphan).unwrap().set_modified(old).unwrap();
        assert_eq!(blobs.untouched_since(clock::now_ms() - GRACE_MS).await.unwrap(), BTreeSet::from([orphan]));
        assert_eq!(blobs.touch(&orphan).await.unwrap(), Some(8));
        // It had been found before, and is not removed any more.
        assert!(!blobs.remove_untouched(&orphan, clock::now_ms() - GRACE_MS).await.unwrap());
        blobs.open_blocking(&orphan).unwrap().set_modified(old).unwrap();
        upload(blobs, b"nobody's").await;
        assert!(blobs.untouched_since(clock::now_ms() - GRACE_MS).await.unwrap().is_empty());
        assert_eq!(blobs.touch(&Digest::of(b"other")).await.unwrap(), None);
    }
}
