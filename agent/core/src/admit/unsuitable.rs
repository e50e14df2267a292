//! Why a genuine bundle cannot run on this device, in the words its operator reads.

use muster_shared::ids::BundleRef;

/// Why a bundle cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    /// Its release counter is below the floor.
    #[error("release {counter} of {bundle} is below this device's security floor {floor}")]
    BelowFloor {
        /// The bundle.
        bundle: BundleRef,
        /// Its release counter.
        counter: u64,
        /// The device's floor.
        floor: u64,
    },
    /// It is out of date.
    #[error("the manifest of {bundle} expired at {expires_ms} ms, it is {now_ms} ms now")]
    Expired {
        /// The bundle.
        bundle: BundleRef,
        /// When it expired, in milliseconds since the Unix epoch.
        expires_ms: u64,
        /// The time it was held against.
        now_ms: u64,
    },
    /// Another architecture.
    #[error("{bundle} is for {wanted}, this device is {found}")]
    Architecture {
        /// The bundle.
        bundle: BundleRef,
        /// Its architectures.
        wanted: String,
        /// The device's.
        found: String,
    },
    /// Too little memory.
    #[error("{bundle} needs {need} bytes of memory, this device has {have}")]
    Memory {
        /// The bundle.
        bundle: BundleRef,
        /// What it needs, in bytes.
        need: u64,
        /// What there is, in bytes.
        have: u64,
    },
    /// The model cannot be loaded at all.
    #[error("the model of {bundle} takes {need} bytes of memory at least, this service may have {have}")]
    MemoryLimit {
        /// The bundle.
        bundle: BundleRef,
        /// The length of its model's file, in bytes.
        need: u64,
        /// What the device and the service's own limit allow, in bytes.
        have: u64,
    },
    /// Too little memory is left for a second model.
    #[error("{bundle} needs {need} bytes of memory beside the bundle in service, {have} are available")]
    MemoryBeside {
        /// The bundle.
        bundle: BundleRef,
        /// What its manifest says it needs, in bytes.
        need: u64,
        /// What could be taken now, in bytes.
        have: u64,
    },
    /// The processor lacks instructions.
    #[error("{bundle} needs a processor with {missing}, which this device's has not")]
    CpuFeatures {
        /// The bundle.
        bundle: BundleRef,
        /// What is missing.
        missing: String,
    },
    /// It is another kind of device, or in another condition.
    #[error("{bundle} needs a device with {missing}")]
    Attributes {
        /// The bundle.
        bundle: BundleRef,
        /// What is not met, each with what there is instead.
        missing: String,
    },
    /// The agent is too old.
    #[error("{bundle} needs muster-agent {need} or later, this is {have}")]
    AgentVersion {
        /// The bundle.
        bundle: BundleRef,
        /// The least version.
        need: semver::Version,
        /// This version.
        have: semver::Version,
    },
    /// More than its owner lets bundles take.
    #[error(
        "{bundle} needs {need} bytes of disk beside the {beside} of the bundle in use, storage.max-bytes allows {allowed} in all ({free} are free)"
    )]
    Quota {
        /// The bundle.
        bundle: BundleRef,
        /// What it needs, in bytes.
        need: u64,
        /// What the bundle in the other slot takes, in bytes.
        beside: u64,
        /// What both together may take, in bytes.
        allowed: u64,
        /// What there is, in bytes.
        free: u64,
    },
    /// Too little room.
    #[error(
        "{bundle} needs {need} bytes of disk with reserve, {free} are free (storage.max-bytes would allow {allowed})"
    )]
    DiskSpace {
        /// The bundle.
        bundle: BundleRef,
        /// What it needs, in bytes.
        need: u64,
        /// What there is, in bytes.
        free: u64,
        /// What bundles may take in all, in bytes.
        allowed: u64,
    },
}
