//! The files in which the kernel, the firmware and the distribution describe a device.
//!
//! Everything is read below a root, which tests replace by a tree of their own. Reads are bounded and never wait, since a file can be
//! another kind of thing than its name says; what is not there, or cannot be read, is nothing.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Bytes of a file that are looked at: the first processors of `/proc/cpuinfo`, and all of everything else.
const MAX_BYTES: u64 = 16 * 1024;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 256;

/// Where a device describes itself.
#[derive(Debug, Clone)]
pub(crate) struct System {
    root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self { root: PathBuf::from("/") }
    }
}

impl System {
    /// A device whose files lie below `root`.
    #[cfg(test)]
    pub(crate) fn below(root: &std::path::Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The beginning of the file at `path`, as text.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).ok()?;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.place(path)).ok()?;
        let mut bytes = Vec::new();
        // What was read before an error is as good as what is cut off.
        let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The first line of the file at `path`, without space around it; none where that is empty.
    pub(crate) fn line(&self, path: &str) -> Option<String> {
        // Firmware ends its texts with a zero byte.
        let text = self.text(path)?;
        let line = text.lines().next()?.trim_matches(|c: char| c == '\0' || c.is_whitespace());
        (!line.is_empty()).then(|| line.to_owned())
    }

    /// The number that the file at `path` holds.
    pub(crate) fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.line(path)?.parse().ok()
    }

    /// The entries of the folder `path` whose names begin with `prefix`, as paths.
    pub(crate) fn entries(&self, path: &str, prefix: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.place(path)) else { return Vec::new() };
        let names = entries.take(MAX_ENTRIES).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with(prefix)).map(|name| format!("{path}/{name}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_files_are_nothing_and_endless_ones_are_cut_off() {
        let root = tempfile::tempdir().unwrap();
        let system = System::below(root.path());
        let write = |name: &str, bytes: &[u8]| fs::write(root.path().join(name), bytes).unwrap();
        write("model", b"Raspberry Pi 4 Model B Rev 1.4\0");
        write("empty", b"");
        write("blank", b"\0\n");
        write("binary", &[0xff, 0xfe, b'\n', 7]);
        write("endless", &vec![b'9'; 1 << 20]);
        std::os::unix::fs::symlink("/dev/zero", root.path().join("zeros")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.path().join("pipe"), rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(system.line("/model").unwrap(), "Raspberry Pi 4 Model B Rev 1.4");
        for nothing in ["/none", "/empty", "/blank", "/pipe", "/zeros", "/"] {
            assert_eq!(system.line(nothing), None, "{nothing}");
        }
        assert_eq!(system.line("/binary").unwrap().chars().count(), 2);
        assert_eq!(system.text("/endless").unwrap().len() as u64, MAX_BYTES);
        assert_eq!(system.number::<u64>("/endless"), None);
        assert_eq!(system.entries("", "b").len(), 2);
        assert!(system.entries("/none", "").is_empty() && system.entries("/model", "").is_empty());
    }
}
