//! The two places a bundle can be in, and the pointer to the one that counts.

use muster_shared::chunk::ChunkSet;
use muster_shared::ids::{BundleRef, Digest};
use serde::{Deserialize, Serialize};

/// One of the two places a bundle can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its name, as of its folder.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SlotContent {
    /// Digest of the bundle's manifest.
    pub manifest: Digest,
    /// Its name and version.
    pub bundle: BundleRef,
    /// Its place among the releases of its name.
    pub release_counter: u64,
    /// The least release counter the device will run once it has committed this bundle.
    pub security_floor: u64,
    /// Bytes of all its files.
    pub total_bytes: u64,
    /// The chunks whose bytes are durable.
    pub have: ChunkSet,
    /// It was brought here to run beside another, and has not been committed since: nothing falls back to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_served: bool,
}

/// What both slots hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slots {
    a: Option<SlotContent>,
    b: Option<SlotContent>,
}

impl Slots {
    /// What `slot` holds.
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&SlotContent> {
        match slot {
            Slot::A => self.a.as_ref(),
            Slot::B => self.b.as_ref(),
        }
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut SlotContent> {
        match slot {
            Slot::A => self.a.as_mut(),
            Slot::B => self.b.as_mut(),
        }
    }

    pub(crate) fn set(&mut self, slot: Slot, content: Option<SlotContent>) {
        match slot {
            Slot::A => self.a = content,
            Slot::B => self.b = content,
        }
    }

    /// The slot that holds the bundle with this manifest.
    #[must_use]
    pub fn holding(&self, manifest: &Digest) -> Option<Slot> {
        Slot::ALL.into_iter().find(|slot| self.get(*slot).is_some_and(|c| c.manifest == *manifest))
    }
}

/// The bundle that has passed its probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pointer {
    /// Where it is.
    pub slot: Slot,
    /// The generation under which it came to run.
    pub generation: u64,
}
