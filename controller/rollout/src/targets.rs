//! The devices of a rollout, which all its copies share until one of them changes: a plan makes several, and most ticks change no device.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use muster_shared::ids::DeviceId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rollout::Target;

/// Targets by the names of their devices: reads as the map it holds. To copy and to compare copies takes no look at them; the first change
/// of a copy gives it a map of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Targets(Arc<BTreeMap<DeviceId, Target>>);

impl Targets {
    /// Puts other targets in the place of those at `changed`, counted in the order of names, which is that of `changed` too.
    pub(crate) fn replace(&mut self, changed: Vec<(usize, Target)>) {
        if changed.is_empty() {
            return;
        }
        let mut changed = changed.into_iter().peekable();
        for (at, target) in self.values_mut().enumerate() {
            if let Some((_, next)) = changed.next_if(|(next_at, _)| *next_at == at) {
                *target = next;
            }
        }
    }
}

impl Deref for Targets {
    type Target = BTreeMap<DeviceId, Target>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Targets {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

impl<'t> IntoIterator for &'t Targets {
    type Item = (&'t DeviceId, &'t Target);
    type IntoIter = std::collections::btree_map::Iter<'t, DeviceId, Target>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(|targets| Self(Arc::new(targets)))
    }
}
