//! Success and errors of the devices of each rollout that has not ended, with their two denominators: gauges of Prometheus, two over two.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_shared::ids::RolloutId;
use muster_shared::rollout::DeviceOutcomes;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

type Count = fn(&DeviceOutcomes) -> u32;

/// Name, help, and what is shown.
const FAMILIES: [(&str, &str, Count); 4] = [
    ("rollout_devices_targeted", "Devices that a rollout has told to run its bundle, or that had it", |all| {
        all.targeted
    }),
    (
        "rollout_devices_succeeded",
        "Of the devices targeted, those that have what they were meant to have, and have not failed",
        |all| all.succeeded,
    ),
    ("rollout_devices_reported", "Devices of a rollout with a report since the wave began", |all| all.reported),
    (
        "rollout_devices_erring",
        "Of the devices that reported, those with an error or a crash since the wave began",
        |all| all.erring,
    ),
];

type Known = BTreeMap<RolloutId, (u32, DeviceOutcomes)>;

/// How the devices of each rollout fare, as its last plan saw them. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct RolloutOutcomes {
    known: Arc<Mutex<Known>>,
}

impl RolloutOutcomes {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how the devices fare in `wave`, counted from 0.
    pub(super) fn note(&self, rollout: &RolloutId, wave: u32, outcomes: DeviceOutcomes) {
        self.lock().insert(rollout.clone(), (wave, outcomes));
    }

    /// The rollout has ended, or is not there.
    pub(super) fn forget(&self, rollout: &RolloutId) {
        self.lock().remove(rollout);
    }
}

impl Collector for RolloutOutcomes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let known = self.lock().clone();
        // A family without samples would be a type of nothing.
        for (name, help, count) in FAMILIES.iter().filter(|_| !known.is_empty()) {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (rollout, (wave, outcomes)) in &known {
                let labels = [("rollout", rollout.to_string()), ("wave", (u64::from(*wave) + 1).to_string())];
                ConstGauge::new(i64::from(count(outcomes))).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
