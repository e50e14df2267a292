//! The last warnings and errors of the log, for who asks how the agent does. In memory, and bounded.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use muster_shared::limits::bounded_text;
use serde::Serialize;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::Line;
use crate::time::wall_ms;

/// How many are kept; each has at most [`muster_shared::limits::MAX_TEXT_BYTES`].
const KEPT: usize = 16;

static TROUBLES: Mutex<VecDeque<Trouble>> = Mutex::new(VecDeque::new());

/// A warning or an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Trouble {
    /// When it was last said, in milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    /// `error` or `warning`.
    pub(crate) level: &'static str,
    /// What was said.
    pub(crate) text: String,
    /// How often, without anything else in between.
    pub(crate) times: u64,
}

/// The last warnings and errors since the start, the oldest first.
pub(crate) fn troubles() -> Vec<Trouble> {
    TROUBLES.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Keeps them.
pub(super) struct Recent;

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO | Level::DEBUG | Level::TRACE => return,
        };
        let trouble = Trouble { at_ms: wall_ms(), level, text: bounded_text(&Line::of(event).text), times: 1 };
        keep(&mut TROUBLES.lock().unwrap_or_else(PoisonError::into_inner), trouble);
    }
}

fn keep(troubles: &mut VecDeque<Trouble>, trouble: Trouble) {
    match troubles.back_mut() {
        Some(last) if (last.level, &last.text) == (trouble.level, &trouble.text) => {
            last.at_ms = trouble.at_ms;
            last.times = last.times.saturating_add(1);
        }
        Some(_) | None => {
            if troubles.len() == KEPT {
                troubles.pop_front();
            }
            troubles.push_back(trouble);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_repeats_counted() {
        let mut troubles = VecDeque::new();
        let trouble = |at_ms, text: &str| Trouble { at_ms, level: "error", text: text.to_owned(), times: 1 };
        for at_ms in 0..100 {
            keep(&mut troubles, trouble(at_ms, &format!("trouble {at_ms}")));
        }
        assert_eq!((troubles.len(), troubles[0].text.as_str()), (16, "trouble 84"));
        keep(&mut troubles, trouble(500, "again"));
        keep(&mut troubles, trouble(600, "again"));
        assert_eq!((troubles[15].at_ms, troubles[15].times), (600, 2));
        keep(&mut troubles, Trouble { level: "warning", ..trouble(700, "again") });
        assert_eq!(troubles[15].times, 1);
    }
}
