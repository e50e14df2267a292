//! The log as the journal takes it: each field is one of the journal's, so that `journalctl BUNDLE=digits@1.1.0` finds what it says.
//!
//! Written here and not by `tracing-journald`, which leaves fields out of the text: `journalctl` would show "no connection to the
//! broker" and not why.

use std::os::unix::net::UnixDatagram;

use rustix::fs::fstat;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::Line;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Longest value of a field, in bytes. All of a line fits into a datagram then.
const MAX_VALUE_BYTES: usize = 8 * 1024;
/// Fields of a line beyond this are left out; their values are in its text all the same.
const MAX_FIELDS: usize = 16;

/// Sends the log to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// The journal, where it is what standard error leads to.
    pub(super) fn of_standard_error() -> Option<Self> {
        let told = std::env::var("JOURNAL_STREAM").ok()?;
        let stderr = fstat(std::io::stderr()).ok()?;
        is_stream(&told, stderr.st_dev, stderr.st_ino).then_some(())?;
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(SOCKET).ok()?;
        Some(Self { socket })
    }
}

/// Whether `told`, as `device:inode`, means the file with these numbers.
fn is_stream(told: &str, device: u64, inode: u64) -> bool {
    told.split_once(':').is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        if let Err(error) = self.socket.send(&datagram(event.metadata(), &line)) {
            // What leads to the journal by another way than its socket takes the text at least.
            eprint_line(&format!("{} (the journal's socket: {error})", line.text));
        }
    }
}

#[expect(clippy::print_stderr, reason = "the log itself cannot be written")]
fn eprint_line(text: &str) {
    eprintln!("{text}");
}

/// A line in the journal's native form.
fn datagram(metadata: &Metadata<'_>, line: &Line) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    // As syslog counts them.
    let priority = match *metadata.level() {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    };
    put(&mut bytes, "MESSAGE", &line.text);
    put(&mut bytes, "PRIORITY", priority);
    put(&mut bytes, "SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
    put(&mut bytes, "TARGET", metadata.target());
    for (name, value) in line.fields.iter().take(MAX_FIELDS) {
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
        // The journal keeps names that begin so for itself, and drops longer ones.
        if name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_uppercase()) {
            put(&mut bytes, &name, value);
        }
    }
    bytes
}

fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    let mut end = value.len().min(MAX_VALUE_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let value = &value.as_bytes()[..end];
    bytes.extend(name.as_bytes());
    if value.contains(&b'\n') {
        bytes.push(b'\n');
        bytes.extend((value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend(value);
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<Vec<u8>>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(datagram(event.metadata(), &Line::of(event)));
        }
    }

    fn logged(log: impl FnOnce()) -> Vec<u8> {
        let kept = Kept::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(kept.clone()), log);
        let lines = kept.0.lock().unwrap();
        assert_eq!(lines.len(), 1);
        lines[0].clone()
    }

    #[test]
    fn fields_are_the_journals_and_in_the_text_too() {
        let bytes = logged(|| {
            tracing::warn!(device = %"press-7", generation = 4u64, bundle = "digits@1.1.0", _own = 1, "no connection");
        });
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines.contains(&"MESSAGE=no connection device=press-7 generation=4 bundle=digits@1.1.0 _own=1"),
            "{text}"
        );
        for line in
            ["PRIORITY=4", "SYSLOG_IDENTIFIER=muster-agent", "DEVICE=press-7", "GENERATION=4", "BUNDLE=digits@1.1.0"]
        {
            assert!(lines.contains(&line), "{line} is not in {text}");
        }
        assert!(!text.contains("\n_OWN"), "the journal's own names: {text}");
    }

    #[test]
    fn a_value_of_several_lines_forges_no_field() {
        let bytes = logged(|| tracing::error!(detail = "a\nPRIORITY=0", "x"));
        let at = bytes.windows(7).position(|part| part == b"DETAIL\n").unwrap() + 7;
        assert_eq!(bytes[at..at + 8], 12u64.to_le_bytes());
        assert_eq!(&bytes[at + 8..at + 20], b"a\nPRIORITY=0");
        let long = logged(|| tracing::info!(detail = %"é".repeat(1_000_000), "x"));
        assert!(long.len() < 32 * 1024, "{}", long.len());
    }

    #[test]
    fn only_the_stream_that_was_named_is_the_journal() {
        assert!(is_stream("8:22", 8, 22));
        for other in ["8:23", "9:22", "", ":", "8", "8:22:1", "-8:22"] {
            assert!(!is_stream(other, 8, 22), "{other}");
        }
    }
}
