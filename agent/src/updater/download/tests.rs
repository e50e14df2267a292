//! What is written, from where, and what is asked for instead.

use muster_delta::{Alignment, Encoder};
use muster_shared::bundle::{GOLDEN_PATH, MODEL_PATH};
use muster_shared::chunk::Accepts;
use muster_shared::messages::HeldBack;
use muster_shared::trust::DeliveryPolicy;

use super::super::slot_files::tests::manifest;
use super::*;
use crate::config::{DeliveryConfig, MeteredSetting};
use crate::tiny_disk::TinyDisk;

/// A gate through which everything passes.
fn free() -> Gate {
    Gate::new(&DeliveryConfig { metered: MeteredSetting::No, ..DeliveryConfig::default() }).0
}

fn at(now_ms: u64) -> Asking {
    Asking { rollout: DeliveryPolicy::default(), now_ms, is_clock_believed: false, is_serving: true }
}

const WRONG: &str = "chunk 0 is not what the manifest describes";

#[test]
fn only_what_the_manifest_describes_is_written_and_only_where_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let slots = SlotFiles::new(folder.path());
    let model = vec![7; CHUNK_BYTES + 9];
    let manifest = manifest(&[(GOLDEN_PATH, b"{}"), (MODEL_PATH, &model)]);
    slots.prepare(Slot::A, &manifest).unwrap();
    let digest = Digest::of(b"m");
    let plan = FetchPlan::new(ChunkSet::empty(3), Accepts::Plain, 1_000, true);
    let mut download = Download::new(&slots, Slot::A, 1, digest, &manifest, plan, None);
    assert!(matches!(download.next(&mut free(), &at(0)).unwrap(), (Step::Request { first: 0, .. }, 0)));
    let mut take = |manifest: Digest, index: u32, bytes: &[u8]| {
        let frame = ChunkFrame { manifest, index, encoding: ChunkEncoding::Plain, bytes };
        download.take(&frame, 1).unwrap()
    };
    assert_eq!(take(digest, 0, b"{!"), Taken::Wrong(WRONG.into()));
    assert_eq!(take(digest, 0, b"{}longer than signed"), Taken::Wrong(WRONG.into()));
    assert_eq!(take(Digest::of(b"other"), 0, b"{}"), Taken::Unwanted);
    assert_eq!(take(digest, 3, b"{}"), Taken::Unwanted);
    assert_eq!(take(digest, 0, b"{}"), Taken::Written);
    assert_eq!(take(digest, 0, b"{}"), Taken::Unwanted);
    assert_eq!(take(digest, 2, &model[CHUNK_BYTES..]), Taken::Written);
    assert_eq!(take(digest, 1, &model[..CHUNK_BYTES]), Taken::Written);
    assert_eq!(download.next(&mut free(), &at(2)).unwrap(), (Step::Flush, 0));
    assert_eq!(download.flush().unwrap(), [0, 1, 2]);
    assert_eq!(download.next(&mut free(), &at(3)).unwrap(), (Step::Done, 0));
    slots.check(Slot::A, &manifest).unwrap();
}

#[test]
fn a_disk_that_is_full_after_all_is_named_and_the_chunk_is_wanted_again() {
    let name = "updater::download::tests::a_disk_that_is_full_after_all_is_named_and_the_chunk_is_wanted_again";
    TinyDisk::run(name, 16, |disk| {
        let slots = SlotFiles::new(disk.dir());
        let model = vec![7; CHUNK_BYTES];
        let manifest = manifest(&[(GOLDEN_PATH, b"{}"), (MODEL_PATH, &model)]);
        slots.prepare(Slot::A, &manifest).unwrap();
        // Not every file system can reserve room.
        let path = disk.dir().join("slots/a/files").join(MODEL_PATH);
        File::create(&path).unwrap().set_len(model.len() as u64).unwrap();
        disk.fill();
        let digest = Digest::of(b"m");
        let plan = FetchPlan::new(ChunkSet::empty(2), Accepts::Plain, 1_000, true);
        let mut download = Download::new(&slots, Slot::A, 1, digest, &manifest, plan, None);
        let frame = ChunkFrame { manifest: digest, index: 1, encoding: ChunkEncoding::Plain, bytes: &model };
        let text = with_source(&download.take(&frame, 1).unwrap_err());
        assert!(text.contains(MODEL_PATH) && text.contains("No space left"), "{text}");
        assert_eq!(download.flush().unwrap(), Vec::<u32>::new());
        disk.empty();
        assert_eq!(download.take(&frame, 2).unwrap(), Taken::Written);
        assert_eq!(download.flush().unwrap(), [1]);
    });
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

/// Two slots, the first with a whole bundle of `model`, and a download into the second.
struct Bench {
    folder: tempfile::TempDir,
    old: Vec<u8>,
    new: Vec<u8>,
    manifest: Manifest,
    download: Download,
}

/// Chunks 0 to 2 of the model are the same before and after; the rest differs a little.
fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let slots = SlotFiles::new(folder.path());
    let old = noise(6 * CHUNK_BYTES);
    let mut new = old.clone();
    new[3 * CHUNK_BYTES..].iter_mut().step_by(500).for_each(|byte| *byte = byte.wrapping_add(1));
    let before = manifest(&[(MODEL_PATH, &old)]);
    slots.prepare(Slot::A, &before).unwrap();
    std::fs::write(slots.path(Slot::A, &before.files[0]), &old).unwrap();
    let manifest = manifest(&[(MODEL_PATH, &new)]);
    slots.prepare(Slot::B, &manifest).unwrap();
    let base = Base::open(&slots, Slot::A, Digest::of(b"before"), &before);
    let accepts = Accepts::Packed { base: Some(base.manifest()) };
    let plan = FetchPlan::new(ChunkSet::empty(6), accepts, 1_000, true);
    let download = Download::new(&slots, Slot::B, 1, Digest::of(b"m"), &manifest, plan, Some(base));
    Bench { folder, old, new, manifest, download }
}

impl Bench {
    fn chunk(&self, index: usize) -> &[u8] {
        &self.new[index * CHUNK_BYTES..][..CHUNK_BYTES]
    }

    /// Chunk `index` as a controller writes it for who holds the bundle before.
    fn packed(&self, index: usize) -> Vec<u8> {
        let alignment = Alignment::of(&self.old, &self.new).unwrap();
        let start = (index * CHUNK_BYTES) as u64;
        let encoded = Encoder::new().unwrap().encode(self.chunk(index), start, &alignment, Some(&self.old));
        let encoded = encoded.unwrap().unwrap();
        assert!(encoded.needs_base);
        encoded.bytes
    }

    fn take(&mut self, index: u32, encoding: ChunkEncoding, bytes: &[u8]) -> Taken {
        self.download.take(&ChunkFrame { manifest: Digest::of(b"m"), index, encoding, bytes }, 1).unwrap()
    }

    fn next(&mut self) -> (Vec<u32>, Accepts, u64) {
        let (step, copied) = self.download.next(&mut free(), &at(0)).unwrap();
        let Step::Request { first, wanted, accepts } = step else { panic!("{step:?}") };
        (wanted.iter().map(|offset| first + offset).collect(), accepts, copied)
    }
}

#[test]
fn what_the_bundle_before_has_is_not_asked_for_and_the_rest_comes_as_differences() {
    let mut bench = bench();
    let base = Some(Digest::of(b"before"));
    // Nothing is known of the line, so one chunk is asked for; others are taken all the same.
    assert_eq!(bench.next(), (vec![3], Accepts::Packed { base }, 3));
    for index in 3..6 {
        let packed = bench.packed(index as usize);
        assert!(packed.len() < CHUNK_BYTES / 4, "{}", packed.len());
        assert_eq!(bench.take(index, ChunkEncoding::Packed, &packed), Taken::Written);
    }
    assert_eq!(bench.download.next(&mut free(), &at(2)).unwrap().0, Step::Flush);
    assert_eq!(bench.download.flush().unwrap(), [0, 1, 2, 3, 4, 5]);
    SlotFiles::new(bench.folder.path()).check(Slot::B, &bench.manifest).unwrap();
}

#[test]
fn a_bundle_before_that_has_rotted_costs_what_it_would_have_saved_and_no_more() {
    let mut bench = bench();
    let path = bench.folder.path().join("slots/a/files").join(MODEL_PATH);
    let mut rotten = bench.old.clone();
    for chunk in [1, 4] {
        rotten[chunk * CHUNK_BYTES + 7] ^= 1;
    }
    std::fs::write(path, &rotten).unwrap();
    assert_eq!(bench.next(), (vec![1], Accepts::Packed { base: Some(Digest::of(b"before")) }, 2));
    let taken = bench.take(4, ChunkEncoding::Packed, &bench.packed(4));
    let Taken::Wrong(reason) = taken else { panic!("{taken:?}") };
    assert!(reason.contains("chunk 4 is not what"), "{reason}");
    let Taken::Wrong(reason) = bench.take(5, ChunkEncoding::Packed, b"no such form") else { panic!() };
    assert!(reason.contains("chunk 5 cannot be unpacked"), "{reason}");
    for index in [1, 3] {
        let plain = bench.chunk(index).to_vec();
        assert_eq!(bench.take(u32::try_from(index).unwrap(), ChunkEncoding::Plain, &plain), Taken::Written);
    }
    bench.download.flush().unwrap();
    bench.download.connection(true);
    assert_eq!(bench.next(), (vec![4], Accepts::Plain, 0));
    for index in [4, 5] {
        let plain = bench.chunk(index).to_vec();
        assert_eq!(bench.take(u32::try_from(index).unwrap(), ChunkEncoding::Plain, &plain), Taken::Written);
    }
    bench.download.flush().unwrap();
    assert_eq!(bench.download.next(&mut free(), &at(9)).unwrap().0, Step::Done);
    SlotFiles::new(bench.folder.path()).check(Slot::B, &bench.manifest).unwrap();
}

#[test]
fn what_may_not_be_fetched_is_copied_all_the_same_where_it_is_there() {
    let mut bench = bench();
    let mut metered = Gate::new(&DeliveryConfig { metered: MeteredSetting::Yes, ..DeliveryConfig::default() }).0;
    assert_eq!(bench.download.next(&mut metered, &at(0)).unwrap(), (Step::Flush, 3));
    assert_eq!(bench.download.flush().unwrap(), [0, 1, 2]);
    let (step, copied) = bench.download.next(&mut metered, &at(0)).unwrap();
    assert!(matches!(step, Step::WaitUntil(at_ms) if at_ms > 0), "{step:?}");
    assert_eq!((copied, metered.held_back()), (0, Some(HeldBack::MeteredLink)));
    assert_eq!(bench.next().0, [3], "a rollout that may, or another link");
}
