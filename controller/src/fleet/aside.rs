//! Why rollouts leave a device aside, in words.

use muster_shared::rollout::{Pin, Quarantine};

use crate::clock;

/// Why nobody takes a pinned device in.
pub(super) fn pinned(pin: &Pin) -> String {
    let reason = pin.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    format!("pinned by {} since {}{reason}", pin.by, clock::text(pin.since_ms))
}

/// Why nobody takes a quarantined device in.
pub(super) fn quarantined(quarantine: &Quarantine) -> String {
    format!("quarantined since {} {}", clock::text(quarantine.since_ms), quarantine.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_left_aside_says_since_when_and_why() {
        let pin = Pin { since_ms: 0, by: "alice".into(), reason: Some("demo".into()) };
        assert_eq!(pinned(&pin), "pinned by alice since 1970-01-01T00:00:00Z: demo");
        assert_eq!(pinned(&Pin { reason: None, ..pin }), "pinned by alice since 1970-01-01T00:00:00Z");
        let why = "after 3 failed updates, the last: a@1.0.0 failed".into();
        assert_eq!(
            quarantined(&Quarantine { since_ms: 0, why }),
            "quarantined since 1970-01-01T00:00:00Z after 3 failed updates, the last: a@1.0.0 failed"
        );
    }
}
