//! What of a configuration can be changed while the agent runs, and what has to wait for its next start.

use super::{Config, LogConfig};

/// What differs between two configurations, by the names of their sections or settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// What takes effect at once.
    pub(crate) at_once: Vec<&'static str>,
    /// What takes effect when the agent is started again.
    pub(crate) at_restart: Vec<&'static str>,
}

impl Config {
    /// What differs in `next`. The enrolment token is left out: it is only looked at where there is something to enrol.
    pub(crate) fn changes(&self, next: &Self) -> Changes {
        let named = |parts: &[(&'static str, bool)]| {
            parts.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect()
        };
        Changes {
            at_once: named(&[
                ("broker", self.broker != next.broker),
                ("delivery", self.delivery != next.delivery),
                ("storage", self.storage != next.storage),
                ("log.filter", self.log.filter != next.log.filter),
                ("attributes", self.attributes != next.attributes),
            ]),
            at_restart: named(&[
                ("data-dir", self.data_dir != next.data_dir),
                ("device-id", self.device_id != next.device_id),
                ("provisioned", self.provisioned != next.provisioned),
                ("serve", self.serve != next.serve),
                ("monitor", self.monitor != next.monitor),
                ("feedback", self.feedback != next.feedback),
                ("beside", self.beside != next.beside),
                ("outbox", self.outbox != next.outbox),
                ("samples", self.samples != next.samples),
                ("log.format", self.log.format != next.log.format),
            ]),
        }
    }

    /// This configuration with what of `next` takes effect at once.
    pub(crate) fn with_changes_at_once(&self, next: &Self) -> Self {
        Self {
            broker: next.broker.clone(),
            delivery: next.delivery.clone(),
            storage: next.storage.clone(),
            log: LogConfig { filter: next.log.filter.clone(), format: self.log.format },
            attributes: next.attributes.clone(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("agent.toml")).unwrap()
    }

    #[test]
    fn every_section_is_changed_at_once_or_at_the_next_start() {
        let before = Config::default();
        for (text, name, at_once) in [
            ("data-dir = \"/x\"", "data-dir", false),
            ("device-id = \"press-7\"", "device-id", false),
            ("provisioned = { certificate = \"/c\", key = \"/k\" }", "provisioned", false),
            ("[serve]\nmax-queue = 3", "serve", false),
            ("[monitor]\nwindow-ms = 500", "monitor", false),
            ("[feedback]\nmax-predictions = 3", "feedback", false),
            ("[beside]\nmax-queue = 3", "beside", false),
            ("[storage]\nmax-bytes = 2000000", "storage", true),
            ("[outbox]\nmax-events = 20", "outbox", false),
            ("[broker]\nport = 3", "broker", true),
            ("[delivery]\nmetered = \"yes\"", "delivery", true),
            ("[samples]\nallow = true", "samples", false),
            ("[log]\nfilter = \"debug\"", "log.filter", true),
            ("[log]\nformat = \"json\"", "log.format", false),
            ("[attributes]\nline = \"3\"", "attributes", true),
        ] {
            let next = parse(text);
            let changes = before.changes(&next);
            let (found, other) =
                if at_once { (changes.at_once, changes.at_restart) } else { (changes.at_restart, changes.at_once) };
            assert_eq!((found, other), (vec![name], vec![]), "{text}");
            let running = before.with_changes_at_once(&next);
            assert_eq!(running == next, at_once, "{text}");
            // Until the next start it is said again and again, and what has taken effect is not.
            assert_eq!(running.changes(&next).at_once, Vec::<&str>::new());
            assert_eq!(running.changes(&next).at_restart.is_empty(), at_once);
        }
        assert_eq!(before.changes(&parse("enrolment-token = \"x\"")), Changes::default());
    }
}
