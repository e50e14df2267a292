//! How long each device may take, from flags or from a file in the same words.

use clap::Args;
use muster_shared::rollout::Deadlines;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::duration::Millis;

/// Deadlines of each device by itself.
#[derive(Debug, Clone, Copy, Default, Args, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DeadlineOptions {
    /// A device that was reached and has not committed after this is timed_out: the wave waits for it no more, and it has not succeeded
    /// [default: none, it is waited for as long as the wave may last].
    #[arg(long = "in-progress-timeout", value_name = "DURATION")]
    in_progress: Option<Millis>,
    /// The same for a device that was told and not reached so far [default: none, it may be away as long as it likes].
    #[arg(long = "offline-timeout", value_name = "DURATION")]
    offline: Option<Millis>,
}

impl DeadlineOptions {
    /// What a section of a file asks for.
    pub(super) fn deadlines(self) -> Deadlines {
        let ms = |duration: Option<Millis>| duration.map(|duration| duration.0);
        Deadlines { in_progress_ms: ms(self.in_progress), offline_ms: ms(self.offline) }
    }

    /// What flags ask for; none where none was given.
    pub(super) fn asked(self) -> Option<Deadlines> {
        (self.in_progress.is_some() || self.offline.is_some()).then(|| self.deadlines())
    }
}

/// Deadlines in a line.
pub(super) fn text(deadlines: &Deadlines) -> String {
    let reached = deadlines.in_progress_ms.map(|ms| format!("{} once reached", Millis(ms).rough()));
    let away = deadlines.offline_ms.map(|ms| format!("{} while not reached", Millis(ms).rough()));
    reached.into_iter().chain(away).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_without_a_deadline() {
        assert_eq!(DeadlineOptions::default().asked(), None);
        let half_an_hour = DeadlineOptions { in_progress: Some(Millis(1_800_000)), offline: None };
        let asked = half_an_hour.asked().unwrap();
        assert_eq!(asked, Deadlines { in_progress_ms: Some(1_800_000), offline_ms: None });
        assert_eq!(text(&asked), "30m once reached");
    }
}
