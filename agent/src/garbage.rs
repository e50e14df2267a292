//! Lists what is on the disk and removes what [`muster_agent_core::garbage`] says belongs to nothing any more.
//!
//! Nothing here stops anything: what cannot be listed or removed stays, and is tried again after the next update and at the next
//! start. No link is followed below the folder that is looked through.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use muster_agent_core::garbage::{self, Entry, Kept};

use crate::causes::with_source;
use crate::files;

/// More than a healthy folder ever has; what lies beyond is found the next time.
const MAX_ENTRIES: usize = 65_536;
/// Room for what is set aside beside a damaged outbox.
const SET_ASIDE_BYTES: u64 = 16 * 1024 * 1024;

/// Removes what no bundle in `kept` needs from the folder of the slots.
pub(crate) fn clear_slots(data_dir: &Path, kept: &Kept) {
    let folder = data_dir.join("slots");
    remove(&folder, &garbage::in_slots(&list(&folder), kept), "belongs to no bundle");
}

/// Removes what earlier starts left in the data folder. To be called before anything else writes there.
pub(crate) fn clear_left_over(data_dir: &Path, outbox_bytes: u64) {
    // On disk, an outbox takes more than what is in it.
    let bound = outbox_bytes.saturating_mul(2).saturating_add(SET_ASIDE_BYTES);
    remove(data_dir, &garbage::left_over(&list(data_dir), bound), "is left over");
}

fn remove(folder: &Path, paths: &[PathBuf], why: &str) {
    for path in paths.iter().map(|path| folder.join(path)) {
        match files::remove(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed: it {why}"),
            Err(error) => tracing::warn!(error = %with_source(&error), "what {why} stays"),
        }
    }
}

/// Everything below `folder`, folders included.
fn list(folder: &Path) -> Vec<Entry> {
    let (mut entries, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(inside) = folders.pop() {
        let Ok(found) = std::fs::read_dir(folder.join(&inside)) else { continue };
        for found in found.flatten() {
            if entries.len() >= MAX_ENTRIES {
                return entries;
            }
            let Ok(metadata) = found.metadata() else { continue };
            let path = inside.join(found.file_name());
            let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let modified_ms = modified.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
            let bytes = if metadata.is_dir() { 0 } else { metadata.len() };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            entries.push(Entry { path, bytes, modified_ms });
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::fs;

    use muster_agent_core::record::Record;

    use super::*;

    fn paths(folder: &Path) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = list(folder).into_iter().map(|entry| entry.path).collect();
        paths.sort();
        paths
    }

    #[test]
    fn garbage_goes_without_anything_that_links_point_to() {
        let folder = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (folder.path().join("data"), folder.path().join("elsewhere"));
        fs::create_dir_all(data.join("slots/a/files/deep")).unwrap();
        fs::create_dir_all(data.join("trust")).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join("precious"), "x").unwrap();
        std::os::unix::fs::symlink(&elsewhere, data.join("slots/b")).unwrap();
        for file in ["slots/record.json", "slots/a/files/deep/half", "trust/floor.json.new", "token.new"] {
            fs::write(data.join(file), "x").unwrap();
        }
        for number in 0..6 {
            fs::write(data.join(format!("trust/{number}.damaged")), "x").unwrap();
        }
        clear_slots(&data, &Kept::by(&Record::default(), |_| None));
        clear_left_over(&data, 0);
        assert_eq!(paths(&data.join("slots")), [PathBuf::from("record.json")]);
        assert_eq!(paths(&data.join("trust")).len(), garbage::MAX_SET_ASIDE);
        assert!(data.join("token.new").exists() && elsewhere.join("precious").exists());
    }
}
