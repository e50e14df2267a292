//! Who may do what on the broker: one pure function decides every publish, subscribe and will.
//!
//! Topic levels are compared, never string prefixes, so `dev1` is no neighbour of `dev10`. The embedded
//! broker calls [`authorize`]; rules for other brokers are printed from the same table.

use crate::ids::DeviceId;
use crate::topics::{Down, Kind, PREFIX, Topic, Up};

/// Who is connected, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A device, by the common name of its client certificate.
    Device(DeviceId),
    /// The controller itself.
    Controller,
}

/// What is asked for. A will counts as a publish, and is to be checked when the client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publish a message, or leave a will.
    Publish,
    /// Subscribe with a filter that may hold `+` and `#`.
    Subscribe,
}

/// Whether `identity` may perform `action` on `topic` (a topic name, or a filter when subscribing).
///
/// A device may publish on its own `up` topics and subscribe within its own `down` topics; it may use
/// neither `$share` nor any other topic that starts with `$`. The controller may subscribe to every `up` topic and
/// publish on every `down` topic. Everything else is denied.
#[must_use]
pub fn authorize(identity: &Identity, action: Action, topic: &str) -> bool {
    if topic.starts_with('$') {
        return false;
    }
    match (identity, action) {
        (Identity::Device(device), Action::Publish) => {
            topic.parse::<Topic>().is_ok_and(|t| t.device == *device && matches!(t.kind, Kind::Up(_)))
        }
        (Identity::Controller, Action::Publish) => {
            topic.parse::<Topic>().is_ok_and(|t| matches!(t.kind, Kind::Down(_)))
        }
        (Identity::Device(device), Action::Subscribe) => own_filter(
            topic,
            "down",
            |level| level == device.as_str(),
            |kind| Down::ALL.iter().any(|k| k.as_str() == kind),
        ),
        (Identity::Controller, Action::Subscribe) => own_filter(
            topic,
            "up",
            |level| level == "+" || DeviceId::new(level).is_ok(),
            |kind| Up::ALL.iter().any(|k| k.as_str() == kind),
        ),
    }
}

/// Whether `filter` is `muster/v1/d/<device>/<direction>/<kind | + | #>` with a device level that `device_ok` takes.
fn own_filter(filter: &str, direction: &str, device_ok: impl Fn(&str) -> bool, kind_ok: impl Fn(&str) -> bool) -> bool {
    let levels: Vec<&str> = filter.split('/').take(7).collect();
    let [p0, p1, p2, device, way, kind] = levels[..] else {
        return false;
    };
    [p0, p1, p2] == PREFIX && device_ok(device) && way == direction && (kind == "+" || kind == "#" || kind_ok(kind))
}

#[cfg(test)]
mod tests {
    use Action::{Publish, Subscribe};
    use proptest::prelude::*;

    use super::*;

    fn dev(id: &str) -> Identity {
        Identity::Device(DeviceId::new(id).unwrap())
    }

    #[test]
    fn the_table() {
        let rows: &[(&str, Action, &str, bool)] = &[
            ("dev1", Publish, "muster/v1/d/dev1/up/state", true),
            ("dev1", Publish, "muster/v1/d/dev10/up/state", false),
            ("dev10", Publish, "muster/v1/d/dev1/up/state", false),
            ("dev1", Publish, "muster/v1/d/dev1/down/assignment", false),
            ("dev1", Publish, "muster/v1/d/dev1/up/state/more", false),
            ("dev1", Publish, "muster/v1/d/dev1/up/unknown", false),
            ("dev1", Publish, "muster/v1/d/+/up/state", false),
            ("dev1", Publish, "$SYS/broker", false),
            ("dev1", Publish, "other", false),
            ("dev1", Subscribe, "muster/v1/d/dev1/down/+", true),
            ("dev1", Subscribe, "muster/v1/d/dev1/down/#", true),
            ("dev1", Subscribe, "muster/v1/d/dev1/down/chunk", true),
            ("dev1", Subscribe, "muster/v1/d/dev1/#", false),
            ("dev1", Subscribe, "muster/v1/d/dev1/+/state", false),
            ("dev1", Subscribe, "muster/v1/d/dev1/up/state", false),
            ("dev1", Subscribe, "muster/v1/d/+/down/chunk", false),
            ("dev1", Subscribe, "muster/v1/d/dev10/down/+", false),
            ("dev1", Subscribe, "#", false),
            ("dev1", Subscribe, "+/v1/d/dev1/down/+", false),
            ("dev1", Subscribe, "$share/g/muster/v1/d/dev1/down/+", false),
            ("dev1", Subscribe, "$SYS/#", false),
        ];
        for (who, action, topic, allowed) in rows {
            assert_eq!(authorize(&dev(who), *action, topic), *allowed, "{who} {action:?} {topic}");
        }
        assert!(authorize(&Identity::Controller, Subscribe, "muster/v1/d/+/up/#"));
        assert!(authorize(&Identity::Controller, Publish, "muster/v1/d/dev1/down/ack"));
        assert!(!authorize(&Identity::Controller, Subscribe, "#"));
        assert!(!authorize(&Identity::Controller, Publish, "muster/v1/d/dev1/up/state"));
    }

    proptest! {
        /// Whatever a device may publish or hear has its own id in the device level.
        #[test]
        fn a_device_never_reaches_past_its_own_level(
            topic in "(muster|\\+|\\$share)/(v1|\\+)/(d|#)/(dev1|dev10|\\+|#)/(up|down|\\+)/(state|chunk|\\+|#)"
        ) {
            for action in [Publish, Subscribe] {
                if authorize(&dev("dev1"), action, &topic) {
                    prop_assert_eq!(topic.split('/').nth(3), Some("dev1"));
                }
            }
        }
    }
}
