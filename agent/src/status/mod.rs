//! How the agent does, in one answer: what runs and why, the link to the controller, what waits, what went wrong.
//!
//! The agent fills it in while it runs ([`crate::condition`]), the command `status` from files where it does not. It is bounded, and
//! holds no secret: anybody on the device may ask for it.

mod text;

use std::path::PathBuf;

use muster_shared::ids::DeviceId;
use muster_shared::messages::{
    DeviceEvent, FreezeProtection, InstalledBundle, RequestCounts, TrackReport, UpdateReport,
};
use muster_shared::trust::Stage;
use serde::Serialize;

pub(crate) use self::text::{moment, text};
use crate::log::Trouble;
use crate::mqtt::LinkNews;

/// All of it. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Status {
    /// The version of the agent that says so.
    pub(crate) agent_version: &'static str,
    /// Who the device is; none before it is enrolled.
    pub(crate) device: Option<DeviceId>,
    /// The device's clock.
    pub(crate) clock_ms: u64,
    /// When the agent started; none where it does not run.
    pub(crate) started_at_ms: Option<u64>,
    /// How often it has.
    pub(crate) starts: u64,
    /// Whether the run before this one, or the last one where none runs, did not end in order.
    pub(crate) crashed: bool,
    /// What answers requests.
    pub(crate) running: Option<InstalledBundle>,
    /// Since when.
    pub(crate) running_since_ms: Option<u64>,
    /// What it was asked since it took over.
    pub(crate) requests: RequestCounts,
    /// What runs beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) beside: Option<BesideStatus>,
    /// Requests that are computed.
    pub(crate) workers: Use,
    /// Requests that wait.
    pub(crate) queue: Use,
    /// What the device falls back to.
    pub(crate) committed: Option<InstalledBundle>,
    /// The update it works on, or did last.
    pub(crate) update: Option<UpdateReport>,
    /// How it stands with its own program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) program: Option<TrackReport>,
    /// Whether it can tell that a document is out of date.
    pub(crate) freeze_protection: Option<FreezeProtection>,
    /// When the last assignment ended, if it was not renewed.
    pub(crate) stale_since_ms: Option<u64>,
    /// The version of the root document it trusts.
    pub(crate) root_version: Option<u64>,
    /// What happened last, the oldest first.
    pub(crate) events: Vec<DeviceEvent>,
    /// The link to the controller.
    pub(crate) broker: Option<BrokerStatus>,
    /// When the device's certificate ends.
    pub(crate) certificate_expires_ms: Option<u64>,
    /// What waits to be delivered.
    pub(crate) outbox: Option<OutboxStatus>,
    /// The last warnings and errors of the log, the oldest first.
    pub(crate) troubles: Vec<Trouble>,
    /// Where the agent keeps its data.
    pub(crate) data_dir: PathBuf,
    /// Room where that is, in bytes.
    pub(crate) disk_free_bytes: u64,
    /// The configuration in force.
    pub(crate) configuration: Option<Configuration>,
    /// What has come to a standstill.
    pub(crate) stuck: Option<String>,
}

/// A bundle beside the one that answers.
#[derive(Debug, Serialize)]
pub(crate) struct BesideStatus {
    /// Which.
    pub(crate) bundle: InstalledBundle,
    /// In which part.
    pub(crate) stage: Stage,
    /// What it was asked since it began.
    pub(crate) requests: RequestCounts,
}

/// How much of something bounded is in use.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Use {
    /// So much.
    pub(crate) used: usize,
    /// Of so much.
    pub(crate) limit: usize,
}

/// The link to the controller's broker.
#[derive(Debug, Serialize)]
pub(crate) struct BrokerStatus {
    /// Where the broker is.
    pub(crate) address: String,
    /// How the link does.
    #[serde(flatten)]
    pub(crate) link: LinkNews,
}

/// What waits to be delivered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct OutboxStatus {
    /// Messages that wait.
    pub(crate) messages: u64,
    /// Bytes they take.
    pub(crate) bytes: u64,
    /// Messages given up for want of space since the outbox was made.
    pub(crate) given_up: u64,
    /// Why nothing can be stored.
    pub(crate) trouble: Option<String>,
}

/// The configuration in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Configuration {
    /// Its file; none where all is as it comes.
    pub(crate) file: Option<PathBuf>,
    /// When it was last taken.
    pub(crate) loaded_at_ms: u64,
    /// What of the file takes effect only when the agent is started again.
    pub(crate) restart_needed: Vec<&'static str>,
    /// Why the file was last refused; what was in force before is.
    pub(crate) refused: Option<String>,
}
