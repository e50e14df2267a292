//! How often the agent has started, and whether it ended in order the last time.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::causes::with_source;
use crate::files::{self, FileError};

const MAX_FILE_BYTES: u64 = 1_024;

/// This start.
#[derive(Debug)]
pub(crate) struct Boot {
    /// Starts so far, this one included.
    pub(crate) starts: u64,
    /// The start before did not end in order.
    pub(crate) crashed: bool,
    marker: PathBuf,
}

/// What the folder `dir` says of earlier starts while none runs: how many there were, and whether the last one did not end in order.
pub(crate) fn earlier(dir: &Path) -> (u64, bool) {
    let count = files::read_start(&dir.join("starts.json"), MAX_FILE_BYTES).ok().flatten();
    let starts = count.and_then(|bytes| serde_json::from_slice::<Count>(&bytes).ok()).unwrap_or_default().starts;
    (starts, starts > 0 && !dir.join("clean-stop").exists())
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Count {
    starts: u64,
}

impl Boot {
    /// Counts this start, in the folder `dir`, and says what could not be read or written. None of it decides anything but
    /// what people are told, so none of it may keep the agent from serving.
    pub(crate) fn begin(dir: &Path) -> (Self, Vec<String>) {
        let mut alarms = Vec::new();
        let mut note =
            |error: FileError| alarms.push(format!("starts are not counted rightly: {}", with_source(&error)));
        files::make_folder(dir).unwrap_or_else(&mut note);
        let (count, marker) = (dir.join("starts.json"), dir.join("clean-stop"));
        let (before, is_first) = match files::read_start(&count, MAX_FILE_BYTES) {
            Ok(Some(bytes)) => (serde_json::from_slice::<Count>(&bytes).unwrap_or_default().starts, false),
            Ok(None) => (0, true),
            Err(error) => {
                note(error);
                (0, false)
            }
        };
        let starts = before.saturating_add(1);
        if is_first {
            // Nothing ran before the first start.
            files::write_durably(&marker, b"").unwrap_or_else(&mut note);
        }
        files::write_durably(&count, format!("{{\"starts\":{starts}}}").as_bytes()).unwrap_or_else(&mut note);
        passing!(StartCounted);
        let crashed = match files::read_start(&marker, MAX_FILE_BYTES) {
            // Where not even the marker of a first start could be written, there was still nothing before it.
            Ok(found) => found.is_none() && !is_first,
            Err(error) => {
                note(error);
                false
            }
        };
        (Self { starts, crashed, marker }, alarms)
    }

    /// Notes that the agent runs: from here on, an end that is not in order is a crash. An earlier one must have been told by
    /// now.
    pub(crate) fn runs(&self) -> Result<(), FileError> {
        files::remove_written(&self.marker)
    }

    /// Notes that this start ended in order.
    pub(crate) fn ended_in_order(&self) -> Result<(), FileError> {
        files::write_durably(&self.marker, b"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny_disk::TinyDisk;

    #[test]
    fn earlier_starts_are_told_without_counting_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(earlier(folder.path()), (0, false));
        let boot = begin(folder.path());
        boot.runs().unwrap();
        assert_eq!((earlier(folder.path()), earlier(folder.path())), ((1, true), (1, true)));
        boot.ended_in_order().unwrap();
        assert_eq!(earlier(folder.path()), (1, false));
    }

    fn begin(run: &Path) -> Boot {
        let (boot, alarms) = Boot::begin(run);
        assert_eq!(alarms, Vec::<String>::new());
        boot
    }

    #[test]
    fn only_an_end_in_order_is_no_crash() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        assert!(!begin(&run).crashed);
        // The first never came to run: that is no crash.
        let second = begin(&run);
        assert_eq!((second.starts, second.crashed), (2, false));
        second.runs().unwrap();
        assert!(begin(&run).crashed);
        // It is told until a start gets as far as running.
        let fourth = begin(&run);
        assert_eq!((fourth.starts, fourth.crashed), (4, true));
        fourth.runs().unwrap();
        fourth.ended_in_order().unwrap();
        assert!(!begin(&run).crashed);
        // A stop that was cut short leaves nothing for good.
        std::fs::write(run.join("clean-stop.new"), b"").unwrap();
        begin(&run).runs().unwrap();
        let left: Vec<_> = std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["starts.json"]);
    }

    #[test]
    fn a_count_that_is_damaged_starts_anew_and_hides_no_crash() {
        let folder = tempfile::tempdir().unwrap();
        for rubbish in [&b"rubbish"[..], b"", b"{\"starts\":-1}", &[b'1'; 5_000]] {
            begin(folder.path()).runs().unwrap();
            std::fs::write(folder.path().join("starts.json"), rubbish).unwrap();
            let boot = begin(folder.path());
            assert_eq!((boot.starts, boot.crashed), (1, true));
        }
    }

    #[test]
    fn a_full_disk_keeps_nothing_from_starting() {
        TinyDisk::run("boot::tests::a_full_disk_keeps_nothing_from_starting", 1, |disk| {
            begin(disk.dir()).runs().unwrap();
            disk.fill();
            let (boot, alarms) = Boot::begin(disk.dir());
            assert_eq!((boot.starts, boot.crashed), (2, true));
            assert!(alarms[0].contains("starts.json") && alarms[0].contains("No space left"), "{alarms:?}");
            boot.runs().unwrap();
        });
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_count_or_the_start_of_one(count: Vec<u8>, marker: Option<Vec<u8>>) {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("starts.json"), count).unwrap();
            if let Some(marker) = &marker {
                std::fs::write(folder.path().join("clean-stop"), marker).unwrap();
            }
            let boot = begin(folder.path());
            proptest::prop_assert!(boot.starts >= 1);
            proptest::prop_assert_eq!(boot.crashed, marker.is_none());
        }
    }
}
