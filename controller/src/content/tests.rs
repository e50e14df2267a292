//! What devices get, and what they do not.

use muster_delta::Decoder;
use muster_shared::bundle::Manifest;
use muster_shared::chunk::{ChunkEncoding, ChunkFrame, ChunkSet};
use muster_shared::limits::{CHUNK_BYTES, CHUNK_WINDOW};

use super::*;
use crate::testing::{TestApp, app, digest_of};

fn request(manifest: Digest, first: u32, wanted: impl IntoIterator<Item = u32>) -> ChunkRequest {
    request_as(Accepts::Plain, manifest, first, wanted)
}

fn request_as(accepts: Accepts, manifest: Digest, first: u32, wanted: impl IntoIterator<Item = u32>) -> ChunkRequest {
    let mut set = ChunkSet::empty(u32::from(u16::MAX));
    for index in wanted {
        set.insert(index);
    }
    ChunkRequest { manifest, first, wanted: set, accepts, number: 0 }
}

/// Serves a request to its end, as the workers do. Returns how many chunks were sent.
async fn serve_all(
    content: &Content,
    app: &App,
    device: &DeviceId,
    request: &ChunkRequest,
) -> Result<usize, ContentError> {
    let mut queue = Queue::default();
    queue.submit(device.clone(), request);
    let mut sent = 0;
    while let Some(turn) = queue.next() {
        let served = content.serve(app, &turn).await;
        queue.done(turn.clone(), outcome(&turn, &served));
        sent += usize::from(served? > 0);
    }
    Ok(sent)
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
        assert_eq!(serve_all(&content, &test.app, &device, &request(digest, 1, [0, 2, 3])).await.unwrap(), 3);
        let chunks = sent(&test, &device, digest);
        assert_eq!(chunks.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 3, 4]);
        for (index, bytes) in chunks {
            assert_eq!(Digest::of(&bytes), expected[index as usize]);
        }
    }
    // Past the end there is nothing, and numbers that overflow are past the end.
    assert_eq!(serve_all(&content, &test.app, &device, &request(digest, 4, [0, 1, 2])).await.unwrap(), 1);
    assert_eq!(serve_all(&content, &test.app, &device, &request(digest, u32::MAX, [0, 1, 2])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_device_gets_a_window_of_its_own_bundle_only() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let own = digest_of(&test.bundle("digits", "1.0.0", 20 * CHUNK_BYTES).await);
    let foreign = digest_of(&test.bundle("secret", "1.0.0", 10).await);
    let content = Content::new(&test.app);
    let refused = serve_all(&content, &test.app, &device, &request(own, 0, [0])).await;
    assert!(matches!(refused, Err(ContentError::NotAssigned { asked }) if asked == own), "{refused:?}");
    test.desire(&device, Some(own), 1).await;
    let refused = serve_all(&content, &test.app, &device, &request(foreign, 0, [0])).await;
    assert!(matches!(refused, Err(ContentError::NotAssigned { asked }) if asked == foreign), "{refused:?}");
    assert!(test.broker.take().is_empty());
    assert_eq!(serve_all(&content, &test.app, &device, &request(own, 0, 0..20)).await.unwrap(), CHUNK_WINDOW);
    assert_eq!(sent(&test, &device, own).len(), CHUNK_WINDOW);
    let gone = Digest::of(b"gone");
    test.desire(&device, Some(gone), 2).await;
    let refused = serve_all(&content, &test.app, &device, &request(gone, 0, [0])).await;
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
    let damaged = serve_all(&content, &test.app, &device, &request(digest, 0, [0])).await;
    assert!(matches!(damaged, Err(ContentError::Damaged { index: 0, .. })), "{damaged:?}");
    std::fs::remove_file(&path).unwrap();
    let missing = serve_all(&content, &test.app, &device, &request(digest, 0, [0])).await;
    assert!(matches!(missing, Err(ContentError::File { index: 0, .. })), "{missing:?}");
    assert!(test.broker.take().is_empty());
}

/// The chunks sent last, unpacked against `base`, and how many bytes they took.
fn unpacked(test: &TestApp, manifest: &Manifest, base: Option<&[u8]>) -> (Vec<Vec<u8>>, usize) {
    let places: Vec<(u64, u32)> = manifest.chunks().map(|(_, start, chunk)| (start, chunk.length)).collect();
    let mut decoder = Decoder::new().unwrap();
    let mut bytes = 0;
    let chunks = test.broker.take().into_iter().map(|(_, payload)| {
        let frame = ChunkFrame::decode(&payload).unwrap();
        bytes += frame.bytes.len();
        let (start, length) = places[frame.index as usize];
        match frame.encoding {
            ChunkEncoding::Plain => frame.bytes.to_vec(),
            ChunkEncoding::Packed => decoder.decode(frame.bytes, start, length as usize, base).unwrap(),
        }
    });
    (chunks.collect(), bytes)
}

/// Nothing in it is like anything else in it.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn a_device_that_holds_the_version_before_gets_what_differs() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let before = noise(3 * CHUNK_BYTES);
    let mut after = before.clone();
    after.iter_mut().step_by(999).for_each(|byte| *byte = byte.wrapping_add(1));
    let old = test.bundle_of("digits", "1.0.0", &before).await;
    let new = test.bundle_of("digits", "1.0.1", &after).await;
    let other = test.bundle_of("secret", "1.0.10", &before[1..]).await;
    let content = Content::new(&test.app);
    let digest = digest_of(&new);
    let model = |manifest: &Manifest| {
        let digest = manifest.files[0].sha256.to_string();
        std::fs::read(test.folder.path().join("blobs").join(&digest[..2]).join(&digest)).unwrap()
    };
    let expected: Vec<Vec<u8>> = model(&new).chunks(CHUNK_BYTES).map(<[u8]>::to_vec).collect();
    test.desire(&device, Some(digest_of(&old)), 1).await;
    test.desire(&device, Some(digest), 2).await;
    let mut sizes = Vec::new();
    for base in [Some(&old), None, Some(&other)] {
        let accepts = Accepts::Packed { base: base.map(digest_of) };
        let wanted = request_as(accepts, digest, 0, 0..3);
        assert_eq!(serve_all(&content, &test.app, &device, &wanted).await.unwrap(), 3);
        // What it was never told to run is no base, so that a difference tells it nothing.
        let base = base.filter(|base| base.name == old.name).map(model);
        let (chunks, bytes) = unpacked(&test, &new, base.as_deref());
        assert_eq!(chunks, expected);
        sizes.push(bytes);
    }
    // Noise is no shorter by itself.
    assert!(sizes[0] * 10 < sizes[1], "{sizes:?}");
    assert_eq!((sizes[1], sizes[2]), (3 * CHUNK_BYTES, 3 * CHUNK_BYTES));
    // A base that is gone from the disk costs the saving and nothing else.
    let gone = old.files[0].sha256.to_string();
    std::fs::remove_file(test.folder.path().join("blobs").join(&gone[..2]).join(&gone)).unwrap();
    let content = Content::new(&test.app);
    let wanted = request_as(Accepts::Packed { base: Some(digest_of(&old)) }, digest, 0, 0..3);
    assert_eq!(serve_all(&content, &test.app, &device, &wanted).await.unwrap(), 3);
    assert_eq!(unpacked(&test, &new, None).0, expected);
}

#[tokio::test]
async fn however_many_ask_at_once_a_chunk_is_read_and_packed_once() {
    let test = app().await;
    let manifest = test.bundle("digits", "1.0.0", CHUNK_BYTES).await;
    let listed = test.app.catalogue.get(&digest_of(&manifest)).await.unwrap().unwrap();
    let forms = Forms::new(test.app.blobs.clone(), CACHE_BYTES);
    let piece = listed.piece(0).unwrap();
    let reader = For::Unpacking(None);
    let all = futures_util::future::join_all((0..50).map(|_| forms.frame(&listed, 0, piece, reader))).await;
    let first = all[0].as_ref().unwrap();
    assert_eq!(ChunkFrame::decode(first).unwrap().encoding, ChunkEncoding::Packed);
    // The same bytes in memory: nobody made them again.
    assert!(all.iter().all(|frame| frame.as_ref().unwrap().as_ptr() == first.as_ptr()));
}

#[tokio::test(start_paused = true)]
async fn more_than_the_budget_waits() {
    let test = app().await;
    let device = test.enrol("dev-1", &[]).await;
    let digest = digest_of(&test.bundle_of("digits", "1.0.0", &noise(2 * CHUNK_BYTES)).await);
    test.desire(&device, Some(digest), 1).await;
    // A second for each byte.
    let budget = Budget::new(1, 1_000, clock::now_ms());
    let content = Content { budget: tokio::sync::Mutex::new(budget), ..Content::new(&test.app) };
    assert_eq!(serve_all(&content, &test.app, &device, &request(digest, 0, [0])).await.unwrap(), 1);
    let second = request(digest, 0, [1]);
    let served = serve_all(&content, &test.app, &device, &second);
    assert!(tokio::time::timeout(Duration::from_millis(900), served).await.is_err(), "the budget is spent");
}
