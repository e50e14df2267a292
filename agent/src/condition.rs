//! What the running agent knows of how it does, collected for its status. Every part is there from its own beginning on: an agent
//! that waits to be enrolled answers too.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use muster_shared::ids::DeviceId;

use crate::attributes::AGENT_VERSION;
use crate::heartbeat::Vitals;
use crate::host::ModelHost;
use crate::mqtt::LinkState;
use crate::outbox::Outbox;
use crate::resources;
use crate::status::{BesideStatus, BrokerStatus, Configuration, Status, Use};
use crate::time::{EffectiveTime, wall_ms};

/// How the agent does. Cloning gives another handle to the same.
#[derive(Clone, Default)]
pub(crate) struct Condition(Arc<Inner>);

#[derive(Default)]
struct Inner {
    parts: OnceLock<Known>,
    who: OnceLock<(DeviceId, String)>,
    configuration: Mutex<Configuration>,
}

/// What is known from the start on.
pub(crate) struct Known {
    /// When the agent started, in milliseconds since the Unix epoch.
    pub(crate) started_at_ms: u64,
    /// How often it has.
    pub(crate) starts: u64,
    /// Whether the run before did not end in order.
    pub(crate) crashed: bool,
    /// Where it keeps its data.
    pub(crate) data_dir: PathBuf,
    /// What waits to be delivered.
    pub(crate) outbox: Outbox,
    /// The link to the controller.
    pub(crate) link: LinkState,
    /// What is known of time, and of the certificate.
    pub(crate) time: EffectiveTime,
    /// Its signs of life.
    pub(crate) vitals: Vitals,
}

impl Condition {
    /// Of an agent of which so much is known.
    pub(crate) fn new(known: Known) -> Self {
        let condition = Self::default();
        // Nobody else can have set it.
        let _ = condition.0.parts.set(known);
        condition
    }

    /// The device is enrolled as `device`, and its broker is at `broker`.
    pub(crate) fn enrolled(&self, device: DeviceId, broker: String) {
        let _ = self.0.who.set((device, broker));
    }

    /// Changes what is known of the configuration.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Configuration)) {
        change(&mut self.0.configuration.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All of it, with what `host` serves.
    pub(crate) fn status(&self, host: &ModelHost) -> Status {
        let (limits, load, active) = (host.limits(), host.load(), host.active());
        let mut status = Status {
            agent_version: AGENT_VERSION,
            clock_ms: wall_ms(),
            running: active.as_ref().map(|active| active.served.installed()),
            running_since_ms: active.as_ref().map(|active| active.since_ms),
            requests: host.counts(),
            beside: host.beside().map(|beside| BesideStatus {
                bundle: beside.active().served.installed(),
                stage: beside.stage().clone(),
                requests: host.beside_monitor().counts_since_watch(),
            }),
            workers: Use { used: load.running, limit: limits.max_concurrency },
            queue: Use { used: load.waiting, limit: limits.max_queue },
            configuration: Some(self.0.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            troubles: crate::log::troubles(),
            ..Status::default()
        };
        if let Some(known) = self.0.parts.get() {
            self.add_known(known, &mut status);
        }
        status
    }

    fn add_known(&self, known: &Known, status: &mut Status) {
        let Known { started_at_ms, starts, crashed, data_dir, outbox, link, time, vitals } = known;
        status.started_at_ms = Some(*started_at_ms);
        status.starts = *starts;
        status.crashed = *crashed;
        status.disk_free_bytes = resources::disk_free_bytes(data_dir);
        status.data_dir.clone_from(data_dir);
        status.outbox = Some(outbox.status());
        status.events = outbox.last_events();
        status.certificate_expires_ms = time.own().map(|own| own.not_after_ms);
        status.stuck = vitals.stuck().map(|stuck| stuck.to_string());
        if let Some((device, address)) = self.0.who.get() {
            status.device = Some(device.clone());
            status.broker = Some(BrokerStatus { address: address.clone(), link: link.news() });
        }
        if let Some(report) = outbox.last_state() {
            status.committed = report.committed;
            status.update = Some(report.update);
            status.program = report.program;
            status.freeze_protection = Some(report.freeze_protection);
            status.stale_since_ms = report.stale_since_ms;
            status.root_version = Some(report.root_version);
        }
    }
}
