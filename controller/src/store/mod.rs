//! The store: byte documents with versions, changed in atomic, conditional batches.
//!
//! [`Store`] is what every backend must do; `conformance` holds each one to it. What the documents mean is
//! decided in [`records`].

mod certificates;
#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod observed;
pub(crate) mod records;
mod sled_backend;

pub(crate) use records::{Records, Stored};
pub(crate) use sled_backend::SledStore;

/// Which kind of document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    /// [`records::DeviceRecord`] by device id.
    Devices,
    /// [`records::ReportRecord`] by device id.
    Reports,
    /// [`records::WindowRecord`] by [`records::window_key`].
    Windows,
    /// [`records::StreamPosition`] by [`records::position_key`].
    Positions,
    /// [`records::EnrolmentTokenRecord`] by the digest of the secret.
    EnrolmentTokens,
    /// [`records::AccessTokenRecord`] by the digest of the token.
    AccessTokens,
    /// [`records::RootRecord`] by [`records::root_key`].
    Roots,
    /// [`records::BundleRecord`] by name@version.
    Bundles,
    /// `muster_rollout::Rollout` by rollout id.
    Rollouts,
    /// `muster_shared::api::EventView` by [`records::event_key`].
    Events,
    /// [`crate::feedback::FeedbackBatchRecord`] by device, time and number.
    Feedback,
    /// Small things: counters, lookups.
    Meta,
    /// `muster_shared::alert::Alert` by fingerprint.
    Alerts,
    /// `muster_shared::alert::AlertRule` by name: those that were applied.
    AlertRules,
    /// `muster_shared::alert::Silence` by id.
    Silences,
    /// `crate::alerts::Delivery` by receiver and number.
    AlertDeliveries,
    /// `crate::collections::CollectionRecord` by collection id.
    Collections,
    /// `crate::collections::OrderRecord` by device id.
    CollectionOrders,
    /// `crate::analysis::TemplateRecord` by template name.
    AnalysisTemplates,
    /// `muster_shared::collection::SampleBatch` by collection, device and number.
    SampleBatches,
}

impl Table {
    /// Its name, for messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Reports => "reports",
            Self::Windows => "windows",
            Self::Positions => "positions",
            Self::EnrolmentTokens => "enrolment-tokens",
            Self::AccessTokens => "access-tokens",
            Self::Roots => "roots",
            Self::Bundles => "bundles",
            Self::Rollouts => "rollouts",
            Self::Events => "events",
            Self::Feedback => "feedback",
            Self::Meta => "meta",
            Self::Alerts => "alerts",
            Self::AlertRules => "alert-rules",
            Self::Silences => "silences",
            Self::AlertDeliveries => "alert-deliveries",
            Self::Collections => "collections",
            Self::CollectionOrders => "collection-orders",
            Self::AnalysisTemplates => "analysis-templates",
            Self::SampleBatches => "sample-batches",
        }
    }
}

/// A document and how often it has been put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Versioned {
    /// 1 after the first put, then one more with each; a key that was deleted starts anew.
    pub(crate) version: u64,
    /// The document.
    pub(crate) value: Vec<u8>,
}

/// What must hold for a change to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Nothing.
    Anything,
    /// The key holds nothing.
    Absent,
    /// The key holds a document of this version.
    Version(u64),
}

/// One change of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Sets a document.
    Put {
        /// Where.
        table: Table,
        /// Its key.
        key: String,
        /// What must hold.
        expect: Expect,
        /// The document.
        value: Vec<u8>,
    },
    /// Removes a document; removing what is not there is no fault unless a version is expected.
    Delete {
        /// Where.
        table: Table,
        /// Its key.
        key: String,
        /// What must hold.
        expect: Expect,
    },
}

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// An expectation did not hold; nothing was changed.
    #[error("{} {key:?} was changed by somebody else", table.name())]
    Conflict {
        /// Where.
        table: Table,
        /// The key.
        key: String,
    },
    /// A document is not what it should be.
    #[error("the store's document {} {key:?} is damaged: {reason}", table.name())]
    Document {
        /// Where.
        table: Table,
        /// The key.
        key: String,
        /// What the parser says.
        reason: String,
    },
    /// Another process uses the folder.
    #[error("the store in {folder} is in use by another process: stop the other controller, or set another data-dir")]
    InUse {
        /// The folder.
        folder: String,
    },
    /// The files are damaged.
    #[error(
        "the store in {folder} is damaged ({reason}); nothing in it was changed: move the folder away and restore a backup"
    )]
    Corrupt {
        /// The folder.
        folder: String,
        /// What was found.
        reason: String,
    },
    /// The disk is full.
    #[error(
        "the disk with the store in {folder} is full: make room, of which 32 MiB are always kept free, and try again"
    )]
    Full {
        /// The folder.
        folder: String,
    },
    /// Reading or writing failed.
    #[error("the store in {folder} cannot be read or written: {reason}")]
    Io {
        /// The folder.
        folder: String,
        /// What the system says.
        reason: String,
    },
    /// The store has been shut, or refuses after a failed write whose outcome is unknown.
    #[error("the store takes no changes any more: a write failed before, or the controller is stopping")]
    Closed,
}

/// What every backend does.
#[async_trait::async_trait]
pub(crate) trait Store: Send + Sync + 'static {
    /// The document under `key`.
    async fn get(&self, table: Table, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// Up to `limit` documents whose keys start with `prefix` and come after `after`, in ascending order of the keys'
    /// bytes.
    async fn scan(
        &self,
        table: Table,
        after: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(String, Versioned)>, StoreError>;

    /// Makes all changes, in order, or none, and returns once they would survive a power cut. Expectations are held
    /// against what was stored before the batch.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when an expectation does not hold.
    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError>;
}
