//! How often the agent has started, and whether it ended in order the last time.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Count {
    starts: u64,
}

impl Boot {
    /// Counts this start, in the folder `dir`.
    pub(crate) fn begin(dir: &Path) -> Result<Self, FileError> {
        files::make_folder(dir)?;
        let (count, marker) = (dir.join("starts.json"), dir.join("clean-stop"));
        // A count that cannot be read starts anew: it informs people and decides nothing.
        let before: Count = files::read_bounded(&count, MAX_FILE_BYTES)?
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let starts = before.starts.saturating_add(1);
        if before.starts == 0 {
            // Nothing ran before the first start.
            files::write_durably(&marker, b"")?;
        }
        files::write_durably(&count, format!("{{\"starts\":{starts}}}").as_bytes())?;
        let crashed = files::read_bounded(&marker, MAX_FILE_BYTES)?.is_none();
        Ok(Self { starts, crashed, marker })
    }

    /// Notes that the agent runs: from here on, an end that is not in order is a crash. An earlier one must have been told by
    /// now.
    pub(crate) fn runs(&self) -> Result<(), FileError> {
        files::remove(&self.marker)
    }

    /// Notes that this start ended in order.
    pub(crate) fn ended_in_order(&self) -> Result<(), FileError> {
        files::write_durably(&self.marker, b"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_in_order_is_no_crash() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let begin = || Boot::begin(&run).unwrap();
        assert!(!begin().crashed);
        // The first never came to run: that is no crash.
        let second = begin();
        assert_eq!((second.starts, second.crashed), (2, false));
        second.runs().unwrap();
        assert!(begin().crashed);
        // It is told until a start gets as far as running.
        let fourth = begin();
        assert_eq!((fourth.starts, fourth.crashed), (4, true));
        fourth.runs().unwrap();
        fourth.ended_in_order().unwrap();
        assert!(!begin().crashed);
        std::fs::write(run.join("starts.json"), "rubbish").unwrap();
        assert_eq!(Boot::begin(&run).unwrap().starts, 1);
    }
}
