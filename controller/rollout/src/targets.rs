//! The devices of a rollout, which all its copies share until one of them changes: a plan makes several, and most ticks change no device.

use std::collections::BTreeMap;

use muster_shared::ids::DeviceId;

use crate::rollout::Target;
use crate::shared::Shared;

/// Targets by the names of their devices.
pub type Targets = Shared<BTreeMap<DeviceId, Target>>;

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

#[cfg(test)]
mod tests {
    use muster_shared::trust::Activation;
    use proptest::prelude::*;

    use super::*;
    use crate::rollout::Errand;

    fn target(generation: u64) -> Target {
        Target {
            errand: Errand::Forward,
            manifest: None,
            generation,
            previous: None,
            wave: 0,
            assigned_at_ms: 0,
            done_at_ms: None,
            failure: None,
            failure_kind: muster_shared::rollout::FailureKind::Failed,
            deadline: crate::DeadlineState::default(),
            beside: false,
            activation: Activation::AtOnce,
            group: None,
            attempts: 1,
        }
    }

    proptest! {
        #[test]
        fn who_is_replaced_is_and_copies_stay_as_they_were(
            devices in prop::collection::btree_map("[a-z]{1,3}", any::<bool>(), 0..20),
        ) {
            let id = |name: &String| DeviceId::new(name).unwrap();
            let mut targets = Targets::default();
            targets.extend(devices.keys().map(|name| (id(name), target(1))));
            let (before, mut expected) = (targets.clone(), BTreeMap::clone(&targets));
            let meant = devices.iter().enumerate().filter(|(_, (_, meant))| **meant);
            targets.replace(meant.clone().map(|(at, _)| (at, target(2))).collect());
            meant.for_each(|(_, (name, _))| drop(expected.insert(id(name), target(2))));
            prop_assert_eq!(&*targets, &expected);
            prop_assert!(before.values().all(|target| target.generation == 1));
            let json = serde_json::to_string(&targets).unwrap();
            prop_assert_eq!(&json, &serde_json::to_string(&expected).unwrap());
            prop_assert_eq!(serde_json::from_str::<Targets>(&json).unwrap(), targets);
        }
    }
}
