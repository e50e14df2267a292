//! Keeping a runtime's panics, deep recursion and endless work away from the caller.
//!
//! tract panics on some models that it merely cannot run, so everything that reads or prepares one goes through here. A thread
//! that overruns its time cannot be ended: the caller gets an error, the thread is left to finish by itself.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use muster_shared::limits::bounded_text;

/// Optimising a graph recurses; the default of a thread (2 MiB) is not always enough. Only touched pages cost memory.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// Why guarded work gave no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// It panicked, with this message.
    Panicked(String),
    /// It was not done in time.
    TooSlow,
    /// The system gave no thread for it.
    NoThread(String),
}

/// Runs `work` on a thread of its own, for at most `limit`.
pub(crate) fn on_thread<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stopped> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new()
        .name("muster-prepare".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // The caller may have given up waiting; then nobody wants the result.
            let _ = sender.send(here(work));
        })
        .map_err(|error| Stopped::NoThread(error.to_string()))?;
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(Stopped::TooSlow),
        Err(RecvTimeoutError::Disconnected) => Err(Stopped::Panicked("the thread ended without a result".into())),
    }
}

/// Runs `work` on this thread. What it had borrowed mutably must not be used again after a panic.
pub(crate) fn here<T>(work: impl FnOnce() -> T) -> Result<T, Stopped> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Stopped::Panicked(message(panic.as_ref())))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    bounded_text(text.unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(here(|| panic!("broken {}", 1)), Err::<(), _>(Stopped::Panicked("broken 1".into())));
        let on_thread: Result<(), _> = on_thread(Duration::from_secs(60), || panic!("there"));
        assert_eq!(on_thread, Err(Stopped::Panicked("there".into())));
    }

    #[test]
    fn endless_work_is_given_up() {
        let (stop, stopped) = sync_channel::<()>(0);
        let result = on_thread(Duration::from_millis(1), move || stopped.recv().is_ok());
        assert_eq!(result, Err(Stopped::TooSlow));
        drop(stop);
    }
}
