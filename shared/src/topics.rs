//! The MQTT topics: this file builds and parses all of them.
//!
//! `muster/v1/d/<device>/up/<kind>` carries what a device says, `muster/v1/d/<device>/down/<kind>`
//! what it is told. Who may use which is decided in [`crate::acl`].

use std::fmt;
use std::str::FromStr;

use crate::ids::{DeviceId, IdError};

/// Levels every topic starts with, the protocol's major version included.
pub const PREFIX: [&str; 3] = ["muster", "v1", "d"];

/// What a device says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Up {
    /// Reported state, attributes and generation ([`crate::messages::StateReport`]).
    State,
    /// Counters, latency and resources of a closed window ([`crate::messages::TelemetryWindow`]).
    Telemetry,
    /// Monitoring sketches of a closed window ([`crate::sketch::SketchWindow`]).
    Sketch,
    /// Chunks wanted ([`crate::messages::ChunkRequest`]).
    ChunkRequest,
    /// Transitions, alarms and errors ([`crate::messages::DeviceEvent`]).
    Event,
    /// Online and will message ([`crate::messages::Presence`]).
    Presence,
    /// What came of labels from the centre ([`crate::feedback::FeedbackReceipt`]).
    Feedback,
}

/// What a device is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Down {
    /// A signed assignment ([`crate::messages::AssignmentDelivery`]).
    Assignment,
    /// The bytes of a chunk ([`crate::chunk::ChunkFrame`]).
    Chunk,
    /// What has been stored ([`crate::messages::Ack`]).
    Ack,
    /// A request to the agent ([`crate::messages::Command`]).
    Command,
    /// New root documents ([`crate::messages::RootDelivery`]).
    Root,
    /// Labels that are known only at the centre ([`crate::feedback::FeedbackDelivery`]).
    Feedback,
    /// Which samples may be collected ([`crate::messages::CollectionsDelivery`]).
    Samples,
}

impl Up {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::State, Self::Telemetry, Self::Sketch, Self::ChunkRequest, Self::Event, Self::Presence, Self::Feedback];

    /// The last level of the topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Telemetry => "telemetry",
            Self::Sketch => "sketch",
            Self::ChunkRequest => "chunk-request",
            Self::Event => "event",
            Self::Presence => "presence",
            Self::Feedback => "feedback",
        }
    }
}

impl Down {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Assignment, Self::Chunk, Self::Ack, Self::Command, Self::Root, Self::Feedback, Self::Samples];

    /// The last level of the topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Assignment => "assignment",
            Self::Chunk => "chunk",
            Self::Ack => "ack",
            Self::Command => "command",
            Self::Root => "root",
            Self::Feedback => "feedback",
            Self::Samples => "samples",
        }
    }
}

/// Which way a topic goes, and what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// From the device.
    Up(Up),
    /// To the device.
    Down(Down),
}

/// One concrete topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic {
    /// Whose topic it is.
    pub device: DeviceId,
    /// Direction and content.
    pub kind: Kind,
}

/// Why a text is not one of our topics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Other levels than `muster/v1/d/<device>/up|down/<kind>`.
    #[error("not a Muster topic: muster/v1/d/<device>/up|down/<kind> is expected")]
    Shape,
    /// The device level is not a device id.
    #[error("the topic's device level is not a device id")]
    Device(#[source] IdError),
}

impl Topic {
    /// The topic on which `device` says `kind`.
    #[must_use]
    pub fn up(device: &DeviceId, kind: Up) -> Self {
        Self { device: device.clone(), kind: Kind::Up(kind) }
    }

    /// The topic on which `device` is told `kind`.
    #[must_use]
    pub fn down(device: &DeviceId, kind: Down) -> Self {
        Self { device: device.clone(), kind: Kind::Down(kind) }
    }

    /// The filter with which a device hears everything it is told.
    #[must_use]
    pub fn down_filter(device: &DeviceId) -> String {
        format!("{}/{device}/down/+", PREFIX.join("/"))
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (direction, kind) = match self.kind {
            Kind::Up(kind) => ("up", kind.as_str()),
            Kind::Down(kind) => ("down", kind.as_str()),
        };
        write!(f, "{}/{}/{direction}/{kind}", PREFIX.join("/"), self.device)
    }
}

impl FromStr for Topic {
    type Err = TopicError;
    fn from_str(text: &str) -> Result<Self, TopicError> {
        let levels: Vec<&str> = text.split('/').take(7).collect();
        let [p0, p1, p2, device, direction, kind] = levels[..] else {
            return Err(TopicError::Shape);
        };
        if [p0, p1, p2] != PREFIX {
            return Err(TopicError::Shape);
        }
        let kind = match direction {
            "up" => Up::ALL.into_iter().find(|k| k.as_str() == kind).map(Kind::Up),
            "down" => Down::ALL.into_iter().find(|k| k.as_str() == kind).map(Kind::Down),
            _ => None,
        }
        .ok_or(TopicError::Shape)?;
        Ok(Self { device: DeviceId::new(device).map_err(TopicError::Device)?, kind })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_topic_parses_back_to_itself() {
        let device = DeviceId::new("press-7").unwrap();
        let ups = Up::ALL.map(|k| Topic::up(&device, k));
        let downs = Down::ALL.map(|k| Topic::down(&device, k));
        for topic in ups.into_iter().chain(downs) {
            assert_eq!(topic.to_string().parse::<Topic>().unwrap(), topic);
        }
        assert_eq!(Topic::up(&device, Up::ChunkRequest).to_string(), "muster/v1/d/press-7/up/chunk-request");
    }

    #[test]
    fn near_misses_are_refused() {
        for bad in [
            "muster/v1/d/dev/up/state/",
            "muster/v1/d/dev/up",
            "/muster/v1/d/dev/up/state",
            "muster/v2/d/dev/up/state",
            "muster/v1/d/dev/down/state",
            "muster/v1/d//up/state",
            "muster/v1/d/+/up/state",
            "muster/v1/d/dev/up/#",
        ] {
            assert!(bad.parse::<Topic>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in "(muster/v1/d/)?.{0,80}") {
            if let Ok(topic) = text.parse::<Topic>() {
                prop_assert_eq!(topic.to_string(), text);
            }
        }
    }
}
