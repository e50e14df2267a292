//! What every part of the running controller shares.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::blobs::Blobs;
use crate::config::Config;
use crate::director::Director;
use crate::endpoints::Endpoints;
use crate::events::EventLog;
use crate::metrics::Metrics;
use crate::pki::Pki;
use crate::readiness::Readiness;
use crate::store::Records;

/// The running controller. Parts hold it behind an [`Arc`].
pub(crate) struct App {
    /// As the file had it.
    pub(crate) config: Config,
    /// How devices and people reach us, with the ports really in use.
    pub(crate) endpoints: Endpoints,
    /// Everything that must last.
    pub(crate) records: Records,
    /// The files of bundles.
    pub(crate) blobs: Blobs,
    /// Bundles by the digest of their manifest.
    pub(crate) catalogue: crate::content::Catalogue,
    /// Which rollouts need planning, and what was sent to devices lately.
    pub(crate) schedule: crate::executor::Schedule,
    /// Collections of samples.
    pub(crate) collections: crate::collections::CollectionIndex,
    /// The key that signs assignments.
    pub(crate) director: Director,
    /// The certificate authority.
    pub(crate) pki: Pki,
    /// The way to the devices.
    pub(crate) broker: Arc<dyn crate::broker::Broker>,
    /// Whether all of it can work.
    pub(crate) readiness: Readiness,
    /// Every device, in memory.
    pub(crate) fleet: crate::fleet::FleetIndex,
    /// Labels that wait to be delivered.
    pub(crate) feedback: crate::feedback::FeedbackQueue,
    /// The fleet's history.
    pub(crate) events: EventLog,
    /// What is measured of ourselves.
    pub(crate) metrics: Metrics,
    /// What is told of on its own.
    pub(crate) alerts: crate::alerts::Alerts,
    /// Wakes the executor before its next tick.
    pub(crate) nudge: Arc<Notify>,
}
