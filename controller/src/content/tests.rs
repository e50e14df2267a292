//! What devices get, and what they do not.

use muster_shared::chunk::ChunkSet;
use muster_shared::limits::CHUNK_BYTES;

use super::*;
use crate::testing::{TestApp, app, digest_of};

fn request(manifest: Digest, first: u32, wanted: impl IntoIterator<Item = u32>) -> ChunkRequest {
    let mut set = ChunkSet::empty(u32::from(u16::MAX));
    for index in wanted {
        set.insert(index);
    }
    ChunkRequest { manifest, first, wanted: set }
}

/// Chunks published, in order, after a look at their frames.
fn sent(test: &TestApp, device: &DeviceId, manifest: Digest) -> Vec<(u32, Vec<u8>)> {
    let frames = test.broker.take();
    frames
        .iter()
        .map(|(topic, payload)| {
            assert_eq!(*topic, Topic::down(device, Down::Chunk));
            let frame = ChunkFrame::decode(payload).unwrap();
            assert_eq!(frame.manifest, manifest);
            (frame.index, frame.bytes.to_vec())
        })
        .collect()
}

#[tokio::test]
async fn the_chunks_asked_for_are_the_ones_of_the_manifest() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let manifest = test.bundle("digits", "1.0.0", 3 * CHUNK_BYTES + 10).await;
    let digest = digest_of(&manifest);
    test.desire(&device, Some(digest), 1).await;
    let content = Content::new(&test.app);
    let expected: Vec<Digest> = manifest.chunks().map(|(_, _, chunk)| chunk.sha256).collect();
    assert_eq!(expected.len(), 5);
    for _ in 0..2 {
        // The second time from memory.
        assert_eq!(content.serve(&test.app, &device, &request(digest, 1, [0, 2, 3])).await.unwrap(), 3);
        let chunks = sent(&test, &device, digest);
        assert_eq!(chunks.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 3, 4]);
        for (index, bytes) in chunks {
            assert_eq!(Digest::of(&bytes), expected[index as usize]);
        }
    }
    // Past the end there is nothing, and numbers that overflow are past the end.
    assert_eq!(content.serve(&test.app, &device, &request(digest, 4, [0, 1, 2])).await.unwrap(), 1);
    assert_eq!(content.serve(&test.app, &device, &request(digest, u32::MAX, [0, 1, 2])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_device_gets_a_window_of_its_own_bundle_only() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let own = digest_of(&test.bundle("digits", "1.0.0", 20 * CHUNK_BYTES).await);
    let foreign = digest_of(&test.bundle("secret", "1.0.0", 10).await);
    let content = Content::new(&test.app);
    let refused = content.serve(&test.app, &device, &request(own, 0, [0])).await;
    assert!(matches!(refused, Err(ContentError::NotAssigned { asked }) if asked == own), "{refused:?}");
    test.desire(&device, Some(own), 1).await;
    let refused = content.serve(&test.app, &device, &request(foreign, 0, [0])).await;
    assert!(matches!(refused, Err(ContentError::NotAssigned { asked }) if asked == foreign), "{refused:?}");
    assert!(test.broker.take().is_empty());
    assert_eq!(content.serve(&test.app, &device, &request(own, 0, 0..20)).await.unwrap(), CHUNK_WINDOW);
    assert_eq!(sent(&test, &device, own).len(), CHUNK_WINDOW);
    let gone = Digest::of(b"gone");
    test.desire(&device, Some(gone), 2).await;
    let refused = content.serve(&test.app, &device, &request(gone, 0, [0])).await;
    assert!(matches!(refused, Err(ContentError::UnknownManifest(_))), "{refused:?}");
}

#[tokio::test]
async fn a_damaged_file_is_noticed_and_not_sent() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let manifest = test.bundle("digits", "1.0.0", 100).await;
    let digest = digest_of(&manifest);
    test.desire(&device, Some(digest), 1).await;
    let file = manifest.files[0].sha256.to_string();
    let path = test.folder.path().join("blobs").join(&file[..2]).join(&file);
    std::fs::write(&path, vec![0; 100]).unwrap();
    let content = Content::new(&test.app);
    let damaged = content.serve(&test.app, &device, &request(digest, 0, [0])).await;
    assert!(matches!(damaged, Err(ContentError::Damaged { index: 0, .. })), "{damaged:?}");
    std::fs::remove_file(&path).unwrap();
    let missing = content.serve(&test.app, &device, &request(digest, 0, [0])).await;
    assert!(matches!(missing, Err(ContentError::File { index: 0, .. })), "{missing:?}");
    assert!(test.broker.take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn more_than_the_budget_waits() {
    let budget = Budget::new(1_000, 1_000, clock::now_ms());
    let content = Content { cache: Mutex::new(ChunkCache::new(0)), budget: tokio::sync::Mutex::new(budget) };
    content.pay(1_000).await;
    assert!(content.budget.lock().await.take(1_000, clock::now_ms()).is_err());
}
