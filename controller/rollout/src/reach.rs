//! Whom a rollout never takes in though its selector means them: the group that is held back, and who came later.
//!
//! The group is chosen by a hash of the device alone, so it is the same in every rollout with the same share, and a smaller share is part of
//! a larger one. Its devices stay what the others were, which is what makes them controls, also for the last wave.

use std::collections::BTreeSet;

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Joining, RolloutSpec, WaveSize};
use sha2::{Digest as _, Sha256};

use crate::cohort::first_number;
use crate::fleet::Fleet;
use crate::rollout::Rollout;

/// What sets this hash apart from every other of a device's name; no name holds the last byte.
const DOMAIN: &[u8] = b"muster holdback group\0";

/// Whether `device` belongs to the group that `spec` holds back.
pub(crate) fn is_held_back(spec: &RolloutSpec, device: &DeviceId) -> bool {
    match spec.holdback {
        Some(WaveSize::Percent(percent)) => place(device) * 100 < u128::from(percent) << 64,
        Some(WaveSize::Count(_)) | None => false,
    }
}

/// Where a device stands among all there can be: its place out of 2⁶⁴.
fn place(device: &DeviceId) -> u128 {
    let hash = Sha256::new().chain_update(DOMAIN).chain_update(device.as_str()).finalize();
    u128::from(first_number(hash.into()))
}

/// The devices that a rollout which begins now means for good; none where later ones are welcome.
pub(crate) fn meant(spec: &RolloutSpec, fleet: &Fleet) -> Option<BTreeSet<DeviceId>> {
    let selected = fleet.devices.iter().filter(|(id, facts)| facts.is_meant_by(&spec.selector, id));
    (spec.joining == Joining::Exclude).then(|| selected.map(|(id, _)| id.clone()).collect())
}

impl Rollout {
    /// Whether `device` is meant only since the rollout began, which takes nobody in who comes later.
    pub(crate) fn came_later(&self, device: &DeviceId) -> bool {
        self.meant.as_ref().is_some_and(|meant| !meant.contains(device))
    }
}

/// Whether the last wave leaves devices to compare with.
pub(crate) fn keeps_controls(spec: &RolloutSpec) -> bool {
    !spec.stage.is_serve() || spec.holdback.is_some()
}

#[cfg(test)]
mod tests {
    use muster_shared::selector::Selector;
    use proptest::prelude::*;

    use super::*;

    fn group(percent: u8, devices: &[DeviceId]) -> Vec<&DeviceId> {
        let spec = RolloutSpec {
            holdback: Some(WaveSize::Percent(percent)),
            ..RolloutSpec::of("a@1.0.0".parse().unwrap(), Selector::all(), Vec::new())
        };
        devices.iter().filter(|device| is_held_back(&spec, device)).collect()
    }

    #[test]
    fn a_group_has_about_its_share() {
        let devices: Vec<DeviceId> = (0..10_000).map(|n| DeviceId::new(format!("press-{n}")).unwrap()).collect();
        for percent in [1u8, 5, 20, 50] {
            let (have, share) = (group(percent, &devices).len() as f64, f64::from(percent) / 100.0);
            // Four standard errors of a binomial share.
            let error = 4.0 * (10_000.0 * share * (1.0 - share)).sqrt();
            assert!((have - 10_000.0 * share).abs() < error, "{have} of {percent} %");
        }
    }

    /// Computed with `hashlib.sha256(b"muster holdback group\0press-7")`: the group must not change from version to version.
    #[test]
    fn the_place_of_a_device_is_for_good() {
        assert_eq!(place(&DeviceId::new("press-7").unwrap()), PLACE_OF_PRESS_7);
    }

    const PLACE_OF_PRESS_7: u128 = 10_611_788_934_379_478_048;

    proptest! {
        #[test]
        fn a_smaller_share_is_part_of_a_larger_one(
            names in prop::collection::btree_set("[a-z][a-z0-9-]{0,12}[a-z0-9]", 0..60), small in 1u8..=50, more in 0u8..=50,
        ) {
            let devices: Vec<DeviceId> = names.iter().filter_map(|name| DeviceId::new(name.as_str()).ok()).collect();
            let large = group((small + more).min(100), &devices);
            prop_assert!(group(small, &devices).iter().all(|device| large.contains(device)));
        }
    }
}
