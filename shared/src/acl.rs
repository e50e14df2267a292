//! Who may do what on the broker: one pure function decides every connection, publish, subscription and will.
//!
//! Topic levels are compared, never string prefixes, so `dev1` is no neighbour of `dev10`. The embedded
//! broker calls [`authorize`]; [`outside`] prints rules for other brokers from the same table of grants.

pub mod outside;

#[cfg(test)]
mod cases;

use crate::ids::DeviceId;
use crate::topics::{Down, Kind, PREFIX, Topic, Up};

/// The common name of the controller's certificate for an outside broker. No device can have it: a device id has no capital
/// letters.
pub const CONTROLLER_NAME: &str = "Muster-Controller";

/// Who is connected, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A device, by the common name of its client certificate.
    Device(DeviceId),
    /// The controller itself.
    Controller,
}

impl Identity {
    /// Whose certificate bears this common name; nobody's if it is neither the controller's nor a device id.
    #[must_use]
    pub fn named(common_name: &str) -> Option<Self> {
        if common_name == CONTROLLER_NAME {
            return Some(Self::Controller);
        }
        DeviceId::new(common_name).ok().map(Self::Device)
    }

    fn name(&self) -> &str {
        match self {
            Self::Device(device) => device.as_str(),
            Self::Controller => CONTROLLER_NAME,
        }
    }
}

/// What is asked for. A will counts as a publish, and is to be checked when the client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Connect under an MQTT client id.
    Connect,
    /// Publish a message, or leave a will.
    Publish,
    /// The same for a message that the broker is to keep for those who subscribe later.
    PublishRetained,
    /// Subscribe with a filter that may hold `+` and `#`.
    Subscribe,
}

/// Which way a topic goes: what a device says, or what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Way {
    fn of(topic: &Topic) -> Self {
        match topic.kind {
            Kind::Up(_) => Self::Up,
            Kind::Down(_) => Self::Down,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }

    /// The last levels that topics of this way have.
    fn kinds(self) -> Vec<&'static str> {
        match self {
            Self::Up => Up::ALL.map(Up::as_str).to_vec(),
            Self::Down => Down::ALL.map(Down::as_str).to_vec(),
        }
    }
}

/// Whom a grant is for, and with that whose topics it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// Every device, on its own topics.
    EachDevice,
    /// The controller, on those of all devices.
    Controller,
}

/// Whether a message may be sent or heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Publish,
    Subscribe,
}

/// One thing that somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grant {
    holder: Holder,
    allows: Use,
    way: Way,
}

/// Everything that anybody may do with messages. Whatever is not here is denied.
const GRANTS: [Grant; 4] = [
    Grant { holder: Holder::Controller, allows: Use::Publish, way: Way::Down },
    Grant { holder: Holder::Controller, allows: Use::Subscribe, way: Way::Up },
    Grant { holder: Holder::EachDevice, allows: Use::Publish, way: Way::Up },
    Grant { holder: Holder::EachDevice, allows: Use::Subscribe, way: Way::Down },
];

/// Whether `identity` may perform `action` on `subject`: a topic name, a filter when subscribing, the client id when
/// connecting.
///
/// Everybody connects under the own name. A device may publish on its own `up` topics and subscribe within its own `down`
/// topics; the controller may subscribe to every `up` topic and publish on every `down` topic. Nobody may have messages retained: what
/// a device should have is issued again whenever it subscribes. Everything else is denied, `$share` and other topics that start
/// with `$` among it.
#[must_use]
pub fn authorize(identity: &Identity, action: Action, subject: &str) -> bool {
    let allows = match action {
        Action::Connect => return subject == identity.name(),
        Action::PublishRetained => return false,
        Action::Publish => Use::Publish,
        Action::Subscribe => Use::Subscribe,
    };
    GRANTS.iter().any(|grant| grant.allows == allows && grant.covers(identity, subject))
}

impl Grant {
    fn covers(self, identity: &Identity, subject: &str) -> bool {
        let own = match (self.holder, identity) {
            (Holder::EachDevice, Identity::Device(device)) => Some(device),
            (Holder::Controller, Identity::Controller) => None,
            (Holder::EachDevice, Identity::Controller) | (Holder::Controller, Identity::Device(_)) => return false,
        };
        match self.allows {
            Use::Publish => subject
                .parse::<Topic>()
                .is_ok_and(|topic| Way::of(&topic) == self.way && own.is_none_or(|own| topic.device == *own)),
            Use::Subscribe => self.covers_filter(own, subject),
        }
    }

    /// Whether `filter` is `muster/v1/d/<device>/<way>/<kind | + | #>` for the device `own`, or for any, or for all with `+`.
    fn covers_filter(self, own: Option<&DeviceId>, filter: &str) -> bool {
        let levels: Vec<&str> = filter.split('/').take(7).collect();
        let [p0, p1, p2, device, way, kind] = levels[..] else {
            return false;
        };
        let device_fits = match own {
            Some(own) => device == own.as_str(),
            None => device == "+" || DeviceId::new(device).is_ok(),
        };
        let kind_fits = kind == "+" || kind == "#" || self.way.kinds().contains(&kind);
        [p0, p1, p2] == PREFIX && device_fits && way == self.way.as_str() && kind_fits
    }

    /// Every topic of the grant, with `device` in the device's level.
    fn topics(self, device: &str) -> impl Iterator<Item = String> {
        self.way.kinds().into_iter().map(move |kind| self.topic(device, kind))
    }

    fn topic(self, device: &str, kind: &str) -> String {
        format!("{}/{device}/{}/{kind}", PREFIX.join("/"), self.way.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::cases::{CASES, Deed, Outcome};
    use super::*;

    fn dev(id: &str) -> Identity {
        Identity::Device(DeviceId::new(id).unwrap())
    }

    #[test]
    fn the_table() {
        for case in CASES {
            // A certificate of another authority never comes this far, whatever name it bears.
            let identity = Identity::named(case.who.certificate().common_name).filter(|_| case.who.certificate().ours);
            let may = |action, subject| identity.as_ref().is_some_and(|who| authorize(who, action, subject));
            let allowed = match case.deed {
                Deed::Connect { client_id } => may(Action::Connect, client_id),
                Deed::Publish(topic) | Deed::Will(topic) => may(Action::Publish, topic),
                Deed::PublishRetained(topic) | Deed::WillRetained(topic) => may(Action::PublishRetained, topic),
                Deed::Subscribe { filter, .. } => may(Action::Subscribe, filter),
            };
            assert_eq!(allowed, case.outcome == Outcome::Allowed, "{case:?}");
        }
    }

    #[test]
    fn every_kind_of_topic_has_its_one_speaker_and_its_one_listener() {
        let (device, other) = (dev("dev1"), dev("dev2"));
        let topics = Way::Up.kinds().into_iter().map(|kind| ("up", kind));
        for (way, kind) in topics.chain(Way::Down.kinds().into_iter().map(|kind| ("down", kind))) {
            let topic = format!("muster/v1/d/dev1/{way}/{kind}");
            let up = way == "up";
            assert_eq!(authorize(&device, Action::Publish, &topic), up, "{topic}");
            assert_eq!(authorize(&device, Action::Subscribe, &topic), !up, "{topic}");
            assert_eq!(authorize(&Identity::Controller, Action::Publish, &topic), !up, "{topic}");
            assert_eq!(authorize(&Identity::Controller, Action::Subscribe, &topic), up, "{topic}");
            for action in [Action::Publish, Action::Subscribe, Action::PublishRetained] {
                assert!(!authorize(&other, action, &topic), "{topic}");
            }
        }
    }

    #[test]
    fn no_device_is_called_as_the_controller_is() {
        assert!(DeviceId::new(CONTROLLER_NAME).is_err());
        assert_eq!(Identity::named(CONTROLLER_NAME), Some(Identity::Controller));
        assert_eq!(Identity::named("dev1"), Some(dev("dev1")));
        assert_eq!(Identity::named("+"), None);
    }

    proptest! {
        /// Whatever a device may publish or hear has its own id in the device level.
        #[test]
        fn a_device_never_reaches_past_its_own_level(
            topic in "(muster|\\+|\\$share)/(v1|\\+)/(d|#)/(dev1|dev10|\\+|#)/(up|down|\\+)/(state|chunk|\\+|#)"
        ) {
            for action in [Action::Publish, Action::PublishRetained, Action::Subscribe] {
                if authorize(&dev("dev1"), action, &topic) {
                    prop_assert_eq!(topic.split('/').nth(3), Some("dev1"));
                }
            }
        }
    }
}
