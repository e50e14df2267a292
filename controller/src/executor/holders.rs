//! Which devices the rollouts of one pass have, found once for all of them. Whether one that has a device keeps it from another is asked of the rollouts
//! as they stand at that moment: in a pass they take devices in, end and go back one after the other.

use std::collections::HashMap;

use muster_rollout::Rollout;
use muster_shared::ids::{DeviceId, RolloutId};

use crate::store::Stored;

/// The places of the rollouts that have each device, in ascending order: the older rollout comes first.
#[derive(Debug, Default)]
pub(super) struct Holders(HashMap<DeviceId, Vec<usize>>);

impl Holders {
    /// Those among `rollouts`.
    pub(super) fn among(rollouts: &[Stored<Rollout>]) -> Self {
        let mut holders = Self::default();
        (0..rollouts.len()).for_each(|at| holders.update(rollouts, at));
        holders
    }

    /// The rollout at `at` may have taken devices in. It gives none up but by its end, which is seen when it is asked.
    pub(super) fn update(&mut self, rollouts: &[Stored<Rollout>], at: usize) {
        let Some(Stored { value: rollout, .. }) = rollouts.get(at) else { return };
        if rollout.status().is_terminal() {
            return;
        }
        for device in rollout.targets.keys() {
            match self.0.get_mut(device) {
                Some(places) => {
                    if let Err(before) = places.binary_search(&at) {
                        places.insert(before, at);
                    }
                }
                None => drop(self.0.insert(device.clone(), vec![at])),
            }
        }
    }

    /// The oldest of `rollouts`, as they stand now, that holds the device against `rollout`.
    pub(super) fn holder(
        &self,
        rollouts: &[Stored<Rollout>],
        device: &DeviceId,
        rollout: &Rollout,
    ) -> Option<RolloutId> {
        let others = self.0.get(device)?.iter().filter_map(|at| rollouts.get(*at)).map(|other| &other.value);
        let mut holding = others.filter(|other| other.id != rollout.id && other.holds_against(rollout));
        holding.next().map(|holder| holder.id.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use muster_rollout::{Action, BundleFacts, DeviceFacts, Fleet, KnownFacts, OperatorAction, plan};
    use muster_shared::bundle::Requirements;
    use muster_shared::ids::Digest;
    use muster_shared::messages::StateReport;
    use muster_shared::rollout::{RolloutSpec, RolloutStatus, WaveSpec};
    use proptest::prelude::*;

    use super::*;

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    fn rollout(number: usize, emergency: bool) -> Rollout {
        let wave = WaveSpec::of("100%".parse().unwrap(), 0, 1);
        let spec = RolloutSpec::of("digits@1.0.0".parse().unwrap(), "*".parse().unwrap(), vec![wave]);
        let bundle = BundleFacts {
            manifest: Digest::of(b"m"),
            bundle: spec.bundle.clone(),
            requirements: Requirements::default(),
            reference_predictions: BTreeMap::new(),
            track: Default::default(),
            features: Default::default(),
        };
        let id = RolloutId::new(format!("r{}", number + 1)).unwrap();
        Rollout::new(id, RolloutSpec { emergency, ..spec }, bundle, 1_000 + number as u64).unwrap()
    }

    /// A rollout that has just those devices.
    fn with(rollout: &Rollout, devices: &[&str]) -> Rollout {
        let known = KnownFacts { reported: Some(StateReport::default()), ..KnownFacts::default() };
        let facts = DeviceFacts { known: known.into(), online: true, ..DeviceFacts::default() };
        let devices = devices.iter().map(|name| (device(name), facts.clone())).collect();
        let decision = plan(rollout, &Fleet { devices, ..Fleet::default() }, 2_000);
        assert!(decision.actions.iter().all(|Action::Assign { device, .. }| decision.next.takes_part(device)));
        decision.next
    }

    fn stored(rollouts: impl IntoIterator<Item = Rollout>) -> Vec<Stored<Rollout>> {
        rollouts.into_iter().map(|value| Stored { version: 1, value }).collect()
    }

    #[test]
    fn a_device_is_anothers_from_when_it_is_taken_until_that_one_ends() {
        let mut rollouts = stored([rollout(0, false), rollout(1, false)]);
        let mut holders = Holders::among(&rollouts);
        let holder = |holders: &Holders, rollouts: &[Stored<Rollout>], at: usize| {
            holders.holder(rollouts, &device("a"), &rollouts[at].value).map(|id| id.to_string())
        };
        assert_eq!(holder(&holders, &rollouts, 1), None);
        rollouts[0].value = with(&rollouts[0].value, &["a"]);
        holders.update(&rollouts, 0);
        assert_eq!(holder(&holders, &rollouts, 1).as_deref(), Some("r1"));
        assert_eq!(holder(&holders, &rollouts, 0), None, "it is its own");
        rollouts[0].value = rollouts[0].value.apply(OperatorAction::Abort, "alice", None, 3_000).unwrap();
        assert_eq!(rollouts[0].value.status(), RolloutStatus::Stopped);
        assert_eq!(holder(&holders, &rollouts, 1), None, "it has ended, and nobody had to be told");
    }

    #[test]
    fn who_goes_back_lets_an_emergency_have_its_devices_and_nobody_else() {
        let mut rollouts = stored([rollout(0, false), rollout(1, false), rollout(2, true)]);
        rollouts[0].value = with(&rollouts[0].value, &["a"]);
        let holders = Holders::among(&rollouts);
        let holder = |rollouts: &[Stored<Rollout>], at: usize| {
            holders.holder(rollouts, &device("a"), &rollouts[at].value).map(|id| id.to_string())
        };
        assert_eq!(holder(&rollouts, 2).as_deref(), Some("r1"));
        rollouts[0].value = rollouts[0].value.apply(OperatorAction::Rollback, "alice", None, 3_000).unwrap();
        assert_eq!(holder(&rollouts, 2), None);
        assert_eq!(holder(&rollouts, 1).as_deref(), Some("r1"));
    }

    proptest! {
        /// As if every rollout were asked for every device, whatever was taken in and ended in which order.
        #[test]
        fn who_holds_a_device_is_the_oldest_that_has_it_and_has_not_ended(
            steps in prop::collection::vec((0usize..4, 0usize..5, any::<bool>()), 0..20),
        ) {
            const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
            let mut rollouts = stored((0..4).map(|number| rollout(number, number == 3)));
            let mut holders = Holders::among(&rollouts);
            for (at, name, ends) in steps {
                let now = &rollouts[at].value;
                let had: Vec<&str> = NAMES.into_iter().filter(|name| now.takes_part(&device(name))).collect();
                let action = if name < 2 { OperatorAction::Abort } else { OperatorAction::Rollback };
                rollouts[at].value = match now.apply(action, "alice", None, 3_000) {
                    Ok(ended) if ends => ended,
                    _ if now.status() == RolloutStatus::Ready => with(now, &[&had[..], &[NAMES[name]]].concat()),
                    _ => continue,
                };
                holders.update(&rollouts, at);
                for (name, asking) in NAMES.into_iter().flat_map(|name| rollouts.iter().map(move |own| (name, own))) {
                    let own = &asking.value;
                    let mut holding = rollouts.iter().map(|other| &other.value).filter(|other| {
                        let lets_go = other.status() == RolloutStatus::RollingBack && own.is_urgent();
                        other.id != own.id && other.takes_part(&device(name)) && !other.status().is_terminal() && !lets_go
                    });
                    let expected = holding.next().map(|holder| holder.id.clone());
                    prop_assert_eq!(holders.holder(&rollouts, &device(name), own), expected);
                }
            }
        }
    }
}
