//! The table of cases by which authorisation is judged: who does what, and what must come of it.
//!
//! One table for all that decide: the unit test of `authorize` runs it, and so do real clients with real certificates
//! against the embedded broker and against mosquitto under the rules that `muster broker acl` prints (`tests/it/acl/`, which
//! includes this file). It names nothing of this crate for that reason.

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Dev1,
    /// Its name begins as the other's does.
    Dev10,
    Controller,
    /// Has a certificate of another authority that bears the name of `dev1`.
    Stranger,
    /// Shows no certificate, and says that it is `dev1`.
    Nobody,
}

/// What somebody shows when it connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Certificate {
    pub(crate) common_name: &'static str,
    /// Whether it is there, and the fleet's own authority signed it.
    pub(crate) ours: bool,
}

impl Who {
    pub(crate) const fn certificate(self) -> Certificate {
        match self {
            Self::Dev1 => Certificate { common_name: "dev1", ours: true },
            Self::Dev10 => Certificate { common_name: "dev10", ours: true },
            Self::Controller => Certificate { common_name: "Muster-Controller", ours: true },
            Self::Stranger | Self::Nobody => Certificate { common_name: "dev1", ours: false },
        }
    }
}

/// What is done, under the own name unless that is the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Connect {
        client_id: &'static str,
    },
    Publish(&'static str),
    PublishRetained(&'static str),
    Will(&'static str),
    WillRetained(&'static str),
    Subscribe {
        filter: &'static str,
        /// A topic that the filter takes in. Allowed, what is said there arrives; refused, it does not, whoever says it.
        hears: &'static str,
    },
}

/// What must come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Allowed,
    Refused,
    /// Refused by us. A broker that has no rule against it lets it pass, and nobody else is worse off: a client id is exchanged for the
    /// own name, and a filter of one's own making brings what is one's own.
    RefusedOrHarmless,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) who: Who,
    pub(crate) deed: Deed,
    pub(crate) outcome: Outcome,
}

const fn case(who: Who, deed: Deed, outcome: Outcome) -> Case {
    Case { who, deed, outcome }
}

const fn hearing(filter: &'static str, hears: &'static str) -> Deed {
    Deed::Subscribe { filter, hears }
}

use Deed::{Connect, Publish, PublishRetained, Will, WillRetained};
use Outcome::{Allowed, Refused, RefusedOrHarmless};
use Who::{Controller, Dev1, Dev10, Nobody, Stranger};

/// Every case.
pub(crate) const CASES: &[Case] = &[
    // The door.
    case(Dev1, Connect { client_id: "dev1" }, Allowed),
    case(Dev10, Connect { client_id: "dev10" }, Allowed),
    case(Dev10, Connect { client_id: "dev1" }, RefusedOrHarmless),
    case(Dev1, Connect { client_id: "dev10" }, RefusedOrHarmless),
    case(Dev1, Connect { client_id: "Muster-Controller" }, RefusedOrHarmless),
    case(Dev1, Connect { client_id: "dev1/" }, RefusedOrHarmless),
    case(Controller, Connect { client_id: "Muster-Controller" }, Allowed),
    case(Controller, Connect { client_id: "dev1" }, RefusedOrHarmless),
    case(Stranger, Connect { client_id: "dev1" }, Refused),
    case(Stranger, Publish("muster/v1/d/dev1/up/presence"), Refused),
    case(Stranger, hearing("muster/v1/d/dev1/down/+", "muster/v1/d/dev1/down/ack"), Refused),
    case(Stranger, Will("muster/v1/d/dev1/up/presence"), Refused),
    case(Nobody, Connect { client_id: "dev1" }, Refused),
    case(Nobody, Publish("muster/v1/d/dev1/up/presence"), Refused),
    // What a device says.
    case(Dev1, Publish("muster/v1/d/dev1/up/state"), Allowed),
    case(Dev1, Publish("muster/v1/d/dev1/up/telemetry"), Allowed),
    case(Dev1, Publish("muster/v1/d/dev1/up/sketch"), Allowed),
    case(Dev1, Publish("muster/v1/d/dev1/up/chunk-request"), Allowed),
    case(Dev1, Publish("muster/v1/d/dev1/up/event"), Allowed),
    case(Dev1, Publish("muster/v1/d/dev1/up/presence"), Allowed),
    case(Dev10, Publish("muster/v1/d/dev10/up/state"), Allowed),
    case(Dev1, Publish("muster/v1/d/dev10/up/state"), Refused),
    case(Dev10, Publish("muster/v1/d/dev1/up/state"), Refused),
    case(Dev10, Publish("muster/v1/d/dev1/up/presence"), Refused),
    case(Dev1, Publish("muster/v1/d/dev1/down/assignment"), Refused),
    case(Dev1, Publish("muster/v1/d/dev10/down/assignment"), Refused),
    case(Dev10, Publish("muster/v1/d/dev1/down/ack"), Refused),
    case(Dev1, Publish("muster/v1/d/dev1/down/samples"), Refused),
    case(Dev10, Publish("muster/v1/d/dev1/down/samples"), Refused),
    case(Dev1, Publish("muster/v1/d/dev1/up/samples"), Refused),
    case(Dev1, Publish("muster/v1/d/dev1/up/unknown"), Refused),
    case(Dev1, Publish("muster/v1/d/dev1/up/state/more"), Refused),
    case(Dev1, Publish("muster/v1/d/dev1/up/state/"), Refused),
    case(Dev1, Publish("muster/v1/d/dev1/up"), Refused),
    case(Dev1, Publish("/muster/v1/d/dev1/up/state"), Refused),
    case(Dev1, Publish("muster/v1/d//up/state"), Refused),
    case(Dev1, Publish("muster/v1/d/dev1//up/state"), Refused),
    case(Dev1, Publish("muster/v2/d/dev1/up/state"), Refused),
    case(Dev1, Publish("muster/v1/d/Muster-Controller/up/state"), Refused),
    case(Dev1, Publish("$SYS/broker/muster"), Refused),
    case(Dev1, Publish("$share/g/muster/v1/d/dev1/up/state"), Refused),
    case(Dev1, Publish("muster/v1/d/+/up/state"), Refused),
    case(Dev1, Publish("muster/v1/d/dev1/up/#"), Refused),
    case(Dev1, Publish(""), Refused),
    case(Dev1, Publish("other"), Refused),
    // What the broker would keep.
    case(Dev1, PublishRetained("muster/v1/d/dev1/up/state"), Refused),
    case(Dev1, PublishRetained("muster/v1/d/dev1/down/assignment"), Refused),
    case(Dev10, PublishRetained("muster/v1/d/dev1/down/assignment"), Refused),
    case(Dev1, PublishRetained("other"), Refused),
    case(Controller, PublishRetained("muster/v1/d/dev1/down/assignment"), Refused),
    // What is said of a device once it is gone.
    case(Dev1, Will("muster/v1/d/dev1/up/presence"), Allowed),
    case(Dev10, Will("muster/v1/d/dev1/up/presence"), Refused),
    case(Dev10, Will("muster/v1/d/dev1/down/assignment"), Refused),
    case(Dev1, Will("muster/v1/d/dev1/down/assignment"), Refused),
    case(Dev1, Will("$SYS/broker/muster"), Refused),
    case(Dev1, Will("other"), Refused),
    case(Dev1, WillRetained("muster/v1/d/dev1/up/presence"), Refused),
    case(Dev10, WillRetained("muster/v1/d/dev1/up/presence"), Refused),
    // What a device hears.
    case(Dev1, hearing("muster/v1/d/dev1/down/+", "muster/v1/d/dev1/down/ack"), Allowed),
    case(Dev1, hearing("muster/v1/d/dev1/down/#", "muster/v1/d/dev1/down/ack"), Allowed),
    case(Dev1, hearing("muster/v1/d/dev1/down/ack", "muster/v1/d/dev1/down/ack"), Allowed),
    case(Dev1, hearing("muster/v1/d/dev1/down/samples", "muster/v1/d/dev1/down/samples"), Allowed),
    case(Dev10, hearing("muster/v1/d/dev1/down/samples", "muster/v1/d/dev1/down/samples"), Refused),
    case(Dev10, hearing("muster/v1/d/dev10/down/+", "muster/v1/d/dev10/down/ack"), Allowed),
    case(Dev1, hearing("muster/v1/d/dev10/down/+", "muster/v1/d/dev10/down/ack"), Refused),
    case(Dev10, hearing("muster/v1/d/dev1/down/+", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev10, hearing("muster/v1/d/dev1/down/ack", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev10, hearing("muster/v1/d/+/down/ack", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev10, hearing("muster/v1/d/+/up/event", "muster/v1/d/dev1/up/event"), Refused),
    case(Dev10, hearing("muster/v1/d/dev1/#", "muster/v1/d/dev1/up/event"), Refused),
    case(Dev10, hearing("muster/v1/d/dev10/#", "muster/v1/d/dev10/up/event"), Refused),
    case(Dev10, hearing("muster/v1/d/dev10/up/event", "muster/v1/d/dev10/up/event"), Refused),
    case(Dev10, hearing("muster/v1/d/dev10/+/event", "muster/v1/d/dev10/up/event"), Refused),
    case(Dev10, hearing("#", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev10, hearing("muster/#", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev10, hearing("+/+/+/+/+/+", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev10, hearing("+/v1/d/dev1/down/+", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev1, hearing("+/v1/d/dev1/down/+", "muster/v1/d/dev1/down/ack"), RefusedOrHarmless),
    case(Dev10, hearing("$share/g/muster/v1/d/dev1/down/+", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev10, hearing("$share/g/#", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev1, hearing("$share/g/muster/v1/d/dev1/down/+", "muster/v1/d/dev1/down/ack"), RefusedOrHarmless),
    case(Dev1, hearing("$SYS/#", "$SYS/broker/uptime"), Refused),
    case(Dev1, hearing("$SYS/broker/uptime", "$SYS/broker/uptime"), Refused),
    // Not filters at all.
    case(Dev10, hearing("muster/v1/d/dev+/down/ack", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev10, hearing("muster/v1/d/dev1#", "muster/v1/d/dev1/down/ack"), Refused),
    case(Dev10, hearing("muster/v1/d/#/ack", "muster/v1/d/dev1/down/ack"), Refused),
    // The controller, where it is a client.
    case(Controller, Publish("muster/v1/d/dev1/down/assignment"), Allowed),
    case(Controller, Publish("muster/v1/d/dev10/down/chunk"), Allowed),
    case(Controller, Publish("muster/v1/d/dev1/down/samples"), Allowed),
    case(Controller, PublishRetained("muster/v1/d/dev1/down/samples"), Refused),
    case(Controller, Publish("muster/v1/d/dev1/up/state"), Refused),
    case(Controller, Publish("other"), Refused),
    case(Controller, Will("muster/v1/d/dev1/up/presence"), Refused),
    case(Controller, hearing("muster/v1/d/+/up/#", "muster/v1/d/dev1/up/event"), Allowed),
    case(Controller, hearing("muster/v1/d/+/up/+", "muster/v1/d/dev10/up/event"), Allowed),
    case(Controller, hearing("muster/v1/d/dev1/up/event", "muster/v1/d/dev1/up/event"), Allowed),
    case(Controller, hearing("muster/v1/d/+/down/+", "muster/v1/d/dev1/down/ack"), Refused),
    case(Controller, hearing("$SYS/#", "$SYS/broker/uptime"), Refused),
];
