//! What is done when sled does not come back.
//!
//! Where the disk is full, sled may wait for ever for a write that it has given up. Whoever waits for the store must hear of
//! it all the same, so a thread watches over the one that writes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often the disk is looked at while a write does not end. Much longer than a write takes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Nobody waits for a write longer than this, whatever the disk says.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(120);

/// Tells when a piece of work begins and ends.
pub(super) struct Work {
    steps: Sender<()>,
}

impl Work {
    pub(super) fn begins(&self) {
        // Whoever watches may have given up.
        let _ = self.steps.send(());
    }

    pub(super) fn is_done(&self) {
        let _ = self.steps.send(());
    }
}

/// A worker, and what watches over it.
pub(super) fn watched() -> (Work, Watch) {
    let (sender, steps) = channel();
    (Work { steps: sender }, Watch { steps })
}

/// See [`watched`].
pub(super) struct Watch {
    steps: Receiver<()>,
}

impl Watch {
    /// Returns when there is no more work, or with the time waited for a piece of work that does not end: when `is_full`
    /// explains it, or when it has taken too long.
    pub(super) fn run(&self, is_full: impl Fn() -> bool) -> Result<(), Duration> {
        while self.steps.recv().is_ok() {
            let mut waited = Duration::ZERO;
            loop {
                match self.steps.recv_timeout(LOOK_EVERY) {
                    Ok(()) => break,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    Err(RecvTimeoutError::Timeout) => {
                        waited += LOOK_EVERY;
                        if is_full() || waited >= GIVEN_UP_AFTER {
                            return Err(waited);
                        }
                        tracing::warn!(waited_s = waited.as_secs(), "the store has not written yet");
                    }
                }
            }
        }
        Ok(())
    }
}
