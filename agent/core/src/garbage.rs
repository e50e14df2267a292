//! What on the device's disk belongs to nothing any more.
//!
//! A bundle is kept for as long as the record names it: the one that runs, the one before, the one on its way. Whatever else lies
//! in the folder of the slots goes. Elsewhere only what the agent itself leaves behind is looked at: files whose writing was cut
//! short, and damaged ones that were set aside for people. How files are listed and removed is the caller's matter.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use muster_shared::ids::Digest;

use crate::record::Record;
use crate::slots::Slot;

/// Damaged files that stay set aside.
pub const MAX_SET_ASIDE: usize = 4;
/// What a file's name ends in while it is written.
const BEING_WRITTEN: &str = "new";
/// What the name of a file ends in that was set aside.
const SET_ASIDE: &str = "damaged";
/// Folders that hold files of the agent and nothing else.
const FOLDERS: [&str; 3] = ["identity", "run", "trust"];
/// Files of the agent in a folder where others may put files, too.
const FILES: [&str; 3] = ["endpoints.json", "outbox.epoch", "outbox.opening"];

/// Something on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where, seen from the folder that was listed.
    pub path: PathBuf,
    /// What it takes, in bytes; nothing for a folder.
    pub bytes: u64,
    /// When it was last changed, in milliseconds since the Unix epoch.
    pub modified_ms: u64,
}

/// What in the folder of the slots is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    files: BTreeSet<PathBuf>,
    /// Slots of which nothing goes: their manifest is not there to say what belongs to them.
    whole: Vec<PathBuf>,
}

impl Kept {
    /// What `record` names; `files_of` tells the paths a manifest lists, where that manifest is there.
    #[must_use]
    pub fn by(record: &Record, files_of: impl Fn(&Digest) -> Option<Vec<String>>) -> Self {
        let records = ["record.json", "record.json.before", "record.json.damaged"];
        let mut files: BTreeSet<PathBuf> = records.iter().map(PathBuf::from).collect();
        files.insert(PathBuf::from("manifests"));
        let mut whole = Vec::new();
        for (slot, content) in Slot::ALL.into_iter().filter_map(|slot| Some((slot, record.slots.get(slot)?))) {
            files.insert(Path::new("manifests").join(format!("{}.json", content.manifest)));
            let folder = PathBuf::from(slot.as_str());
            match files_of(&content.manifest) {
                None => whole.push(folder),
                Some(paths) => files.extend(paths.iter().map(|path| folder.join("files").join(path))),
            }
        }
        Self { files, whole }
    }

    fn keeps(&self, path: &Path) -> bool {
        // Folders on the way to what is kept stay with it.
        let leads_to_kept =
            self.files.range(path.to_path_buf()..).next().is_some_and(|file| file == path || file.starts_with(path));
        leads_to_kept || self.whole.iter().any(|slot| path.starts_with(slot))
    }
}

/// What of `entries`, all there is in the folder of the slots, is to be removed, with everything in it.
#[must_use]
pub fn in_slots(entries: &[Entry], kept: &Kept) -> Vec<PathBuf> {
    let all: BTreeSet<&Path> = entries.iter().map(|entry| entry.path.as_path()).filter(|p| !kept.keeps(p)).collect();
    let mut garbage: Vec<PathBuf> = Vec::new();
    // A folder comes before what is in it.
    for path in all {
        if !garbage.last().is_some_and(|last| path.starts_with(last)) {
            garbage.push(path.to_path_buf());
        }
    }
    garbage
}

/// What of `entries`, all there is in the data folder, is left over and to be removed, with everything in it: files whose writing
/// was cut short, and what was set aside, but for the newest [`MAX_SET_ASIDE`] as long as they take no more than
/// `max_set_aside_bytes` together. Only to be asked while nothing is being written.
#[must_use]
pub fn left_over(entries: &[Entry], max_set_aside_bytes: u64) -> Vec<PathBuf> {
    let mut garbage: Vec<PathBuf> =
        entries.iter().map(|entry| &entry.path).filter(|path| was_cut_short(path)).cloned().collect();
    let mut set_aside: BTreeMap<PathBuf, (u64, u64)> = BTreeMap::new();
    for entry in entries {
        if let Some(top) = entry.path.ancestors().find(|path| is_set_aside(path)) {
            let (modified_ms, bytes) = set_aside.entry(top.to_path_buf()).or_default();
            *modified_ms = entry.modified_ms.max(*modified_ms);
            *bytes = bytes.saturating_add(entry.bytes);
        }
    }
    let mut newest_first: Vec<(PathBuf, (u64, u64))> = set_aside.into_iter().collect();
    newest_first.sort_by_key(|(_, (modified_ms, _))| Reverse(*modified_ms));
    let mut total_bytes = 0_u64;
    for (number, (path, (_, bytes))) in newest_first.into_iter().enumerate() {
        total_bytes = total_bytes.saturating_add(bytes);
        if number >= MAX_SET_ASIDE || total_bytes > max_set_aside_bytes {
            garbage.push(path);
        }
    }
    garbage
}

fn is_in(path: &Path, folders: &[&str]) -> bool {
    path.parent().is_some_and(|parent| folders.iter().any(|folder| parent == Path::new(folder)))
}

fn was_cut_short(path: &Path) -> bool {
    path.extension() == Some(OsStr::new(BEING_WRITTEN))
        && (is_in(path, &FOLDERS)
            || is_in(path, &[""]) && path.file_stem().is_some_and(|stem| FILES.iter().any(|file| stem == *file)))
}

fn is_set_aside(path: &Path) -> bool {
    path.extension() == Some(OsStr::new(SET_ASIDE)) && (is_in(path, &FOLDERS) || is_in(path, &["", "slots"]))
}

#[cfg(test)]
mod tests {
    use muster_shared::chunk::ChunkSet;
    use proptest::prelude::*;

    use super::*;
    use crate::slots::SlotContent;

    const BUNDLES: u8 = 4;

    fn manifest(bundle: u8) -> Digest {
        Digest::of(&[bundle])
    }

    fn files_of(bundle: u8) -> Vec<String> {
        vec!["model.onnx".into(), format!("weights/part-{bundle}"), "weights/shared".into()]
    }

    fn record(a: Option<u8>, b: Option<u8>) -> Record {
        let mut record = Record::default();
        for (slot, bundle) in [(Slot::A, a), (Slot::B, b)] {
            let content = bundle.map(|bundle| SlotContent {
                manifest: manifest(bundle),
                bundle: "digits@1.0.0".parse().unwrap(),
                release_counter: 1,
                security_floor: 0,
                total_bytes: 3,
                have: ChunkSet::empty(1),
                never_served: false,
            });
            record.slots.set(slot, content);
        }
        record
    }

    /// What the record of both slots keeps, and the files that must stay for it.
    fn kept(a: Option<u8>, b: Option<u8>, lost: Option<u8>) -> (Kept, BTreeSet<PathBuf>) {
        let kept = Kept::by(&record(a, b), |digest| {
            (0..BUNDLES).find(|bundle| manifest(*bundle) == *digest && lost != Some(*bundle)).map(files_of)
        });
        let mut needed = BTreeSet::from([PathBuf::from("record.json")]);
        for (slot, bundle) in [("a", a), ("b", b)] {
            if let Some(bundle) = bundle {
                needed.insert(format!("manifests/{}.json", manifest(bundle)).into());
                needed.extend(files_of(bundle).iter().map(|file| Path::new(slot).join("files").join(file)));
            }
        }
        (kept, needed)
    }

    fn entry(path: impl Into<PathBuf>, modified_ms: u64) -> Entry {
        Entry { path: path.into(), bytes: 10, modified_ms }
    }

    fn without(entries: Vec<Entry>, garbage: &[PathBuf]) -> Vec<Entry> {
        entries.into_iter().filter(|entry| !garbage.iter().any(|path| entry.path.starts_with(path))).collect()
    }

    #[test]
    fn what_no_bundle_lists_goes_and_nothing_else() {
        let (kept, needed) = kept(Some(0), None, None);
        let mut entries: Vec<Entry> = needed.iter().map(|path| entry(path, 0)).collect();
        let folders = ["a", "a/files", "a/files/weights", "b", "b/files", "manifests", "record.json.damaged"];
        let rest = [
            "a/files/model.onnx.new",
            "a/files/weights/part-1",
            "b/files/model.onnx",
            "manifests/other.json",
            "record.json.new",
            "c",
        ];
        entries.extend(folders.iter().chain(&rest).map(|path| entry(*path, 0)));
        let garbage = in_slots(&entries, &kept);
        let expected =
            ["a/files/model.onnx.new", "a/files/weights/part-1", "b", "c", "manifests/other.json", "record.json.new"];
        assert_eq!(garbage, expected.map(PathBuf::from));
    }

    #[test]
    fn a_slot_whose_manifest_is_lost_is_left_alone() {
        let (kept, _) = kept(Some(0), Some(1), Some(1));
        let entries = [entry("b/files/anything", 0), entry("a/files/anything", 0)];
        assert_eq!(in_slots(&entries, &kept), [PathBuf::from("a/files/anything")]);
    }

    #[test]
    fn only_the_newest_damaged_files_stay_and_only_our_own_half_written_ones_go() {
        let mut entries: Vec<Entry> =
            (0..6).map(|number| entry(format!("trust/{number}.json.damaged"), number)).collect();
        entries.push(entry("outbox.damaged", 0));
        entries.push(entry("outbox.damaged/db", 9));
        let ours = ["run/starts.json.new", "identity/renewed.pem.new", "outbox.epoch.new"];
        let others = [
            "token.new",
            "models/x.damaged",
            "outbox/db",
            "trust/new",
            "slots/a/files/m.damaged",
            "identity/authorities.copy.json",
        ];
        entries.extend(ours.iter().chain(&others).map(|path| entry(*path, 0)));
        let garbage = left_over(&entries, 1_000);
        let gone = ["trust/2.json.damaged", "trust/1.json.damaged", "trust/0.json.damaged"];
        assert_eq!(garbage, ours.into_iter().chain(gone).map(PathBuf::from).collect::<Vec<_>>());
        // The outbox that was set aside takes 20 bytes of the 25.
        assert_eq!(left_over(&entries[..8], 25).len(), 6);
    }

    fn component() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "a",
            "b",
            "c",
            "files",
            "model.onnx",
            "weights",
            "shared",
            "part-0",
            "part-1",
            "manifests",
            "record.json",
            "x.new",
            "x.damaged",
            "trust",
            "",
        ])
    }

    fn listing() -> impl Strategy<Value = Vec<Entry>> {
        let path = prop::collection::vec(component(), 1..5)
            .prop_map(|parts| parts.into_iter().filter(|part| !part.is_empty()).collect::<PathBuf>());
        let entry = (path, 0u64..1_000, 0u64..10)
            .prop_map(|(path, bytes, modified_ms)| Entry { path, bytes, modified_ms })
            .prop_filter("the folder itself is no entry", |entry| !entry.path.as_os_str().is_empty());
        prop::collection::vec(entry, 0..60)
    }

    proptest! {
        #[test]
        fn no_kept_file_is_named_and_only_kept_files_stay(
            mut entries in listing(),
            a in prop::option::of(0..BUNDLES),
            b in prop::option::of(0..BUNDLES),
        ) {
            let (kept, needed) = kept(a, b, None);
            entries.extend(needed.iter().map(|path| entry(path, 0)));
            let garbage = in_slots(&entries, &kept);
            for path in &garbage {
                prop_assert!(!needed.iter().any(|file| file.starts_with(path)), "{path:?} is needed");
            }
            let left = without(entries, &garbage);
            prop_assert_eq!(in_slots(&left, &kept), Vec::<PathBuf>::new(), "the second time there is nothing left to do");
            for entry in &left {
                let leads_to = needed.iter().any(|file| file.starts_with(&entry.path));
                prop_assert!(leads_to || ["record.json.damaged", "manifests"].contains(&entry.path.to_str().unwrap()), "{entry:?} stays");
            }
        }

        #[test]
        fn what_is_set_aside_is_bounded(entries in listing(), max_bytes in 0u64..3_000) {
            let garbage = left_over(&entries, max_bytes);
            let left = without(entries, &garbage);
            prop_assert_eq!(left_over(&left, max_bytes), Vec::<PathBuf>::new());
            let aside: Vec<&Entry> = left.iter().filter(|e| e.path.ancestors().any(is_set_aside)).collect();
            prop_assert!(aside.iter().map(|entry| entry.bytes).sum::<u64>() <= max_bytes);
            let tops: BTreeSet<_> = aside.iter().filter_map(|e| e.path.ancestors().find(|p| is_set_aside(p))).collect();
            prop_assert!(tops.len() <= MAX_SET_ASIDE);
        }
    }
}
