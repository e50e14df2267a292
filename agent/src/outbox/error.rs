//! Why the outbox does not take a message, and when its store is to blame.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use muster_agent_core::outbox::TooLarge;

use crate::files::FileError;

/// Why a message could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboxError {
    /// Its folder cannot be used.
    #[error("the outbox cannot be used")]
    File(#[from] FileError),
    /// The store refuses.
    #[error("the outbox cannot store a message: {0}")]
    Store(#[from] sled::Error),
    /// The store met something it cannot live with.
    #[error("the outbox cannot be read: {0}")]
    Panicked(String),
    /// There is no room to write.
    #[error(
        "the disk of {path} is full: {free_bytes} bytes are free, the outbox writes from {need_bytes} on; free space there"
    )]
    Full {
        /// A folder on the disk.
        path: PathBuf,
        /// What there is, in bytes.
        free_bytes: u64,
        /// What there must be, in bytes.
        need_bytes: u64,
    },
    /// It could not be opened, and it is not yet time to try again.
    #[error("the outbox is closed: {0}")]
    Closed(String),
    /// The message is larger than anything that can be sent.
    #[error("a message of {bytes} bytes is larger than a packet may be")]
    Packet {
        /// Its size, in bytes.
        bytes: usize,
    },
    /// The message is larger than the whole outbox.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The store has forgotten what it held.
    #[error("it is empty and should not be")]
    Emptied,
    /// No random number for a new outbox.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

impl OutboxError {
    /// Whether what is stored is to blame, and a new store would do. A system that refuses is no damage: what is stored is
    /// needed once the system does not refuse any more.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Emptied | Self::Panicked(_) => true,
            Self::Store(sled::Error::Io(error)) => {
                let in_use = error.to_string().contains("could not acquire lock");
                !in_use && !is_refusal(error)
            }
            Self::Store(
                sled::Error::CollectionNotFound(_)
                | sled::Error::Unsupported(_)
                | sled::Error::ReportableBug(_)
                | sled::Error::Corruption { .. },
            ) => true,
            Self::File(_)
            | Self::Full { .. }
            | Self::Closed(_)
            | Self::Packet { .. }
            | Self::TooLarge(_)
            | Self::Random(_) => false,
        }
    }

    /// Whether another message would have been kept.
    pub(super) fn is_about_the_message(&self) -> bool {
        matches!(self, Self::Packet { .. } | Self::TooLarge(_))
    }
}

/// Whether the system says no for reasons that have nothing to do with what is in the file.
fn is_refusal(error: &std::io::Error) -> bool {
    let out_of_handles = matches!(
        error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
    );
    out_of_handles
        || matches!(
            error.kind(),
            ErrorKind::PermissionDenied
                | ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::FileTooLarge
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::OutOfMemory
                | ErrorKind::Interrupted
                | ErrorKind::WouldBlock
        )
}

/// Runs `work`; damage that makes sled panic becomes an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, OutboxError>) -> Result<T, OutboxError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("reading it ended with a panic");
        Err(OutboxError::Panicked(reason.chars().take(200).collect()))
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_system_that_refuses_is_no_damage() {
        let kinds = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
        let kinds = kinds.into_iter().chain([ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied]);
        for kind in kinds {
            let error = OutboxError::Store(sled::Error::Io(io::Error::new(kind, "no")));
            assert!(!error.is_damage(), "{error}");
        }
        for raw in [rustix::io::Errno::MFILE, rustix::io::Errno::DQUOT, rustix::io::Errno::FBIG] {
            let error = OutboxError::Store(sled::Error::Io(raw.into()));
            assert!(!error.is_damage(), "{error}");
        }
        for kind in [ErrorKind::UnexpectedEof, ErrorKind::InvalidData, ErrorKind::Other] {
            assert!(OutboxError::Store(sled::Error::Io(io::Error::new(kind, "no"))).is_damage());
        }
    }

    #[test]
    fn a_panic_becomes_an_error_that_says_what_it_said() {
        let error = guarded::<()>(|| panic!("segment {} is odd", 3)).unwrap_err();
        assert!(error.to_string().contains("segment 3 is odd") && error.is_damage(), "{error}");
    }
}
