//! A device as the planner may meet one: it works on what it was told, succeeds or fails, and measures what it runs.

use std::collections::BTreeMap;

use muster_rollout::Evidence;
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::messages::{InstalledBundle, RequestCounts, StateReport, UpdateReport, UpdateState};
use muster_shared::sketch::LatencySketch;

use crate::chance::Chance;
use crate::scenario::Scenario;

/// One device.
pub(crate) struct Device {
    /// What it would report now.
    pub(crate) report: StateReport,
    /// Whether it is there.
    pub(crate) online: bool,
}

impl Device {
    /// A device on the incumbent.
    pub(crate) fn new(incumbent: Digest) -> Self {
        let running = Some(installed(incumbent, 1));
        let update = UpdateReport { state: UpdateState::Committed, generation: 1, ..UpdateReport::default() };
        let report = StateReport {
            generation: 1,
            update: UpdateReport { manifest: Some(incumbent), ..update },
            running: running.clone(),
            committed: running,
            ..StateReport::default()
        };
        Self { report, online: true }
    }

    /// A device that runs nothing and has never been told anything.
    pub(crate) fn blank() -> Self {
        Self { report: StateReport::default(), online: true }
    }

    /// Takes an assignment; older and repeated ones are nothing to it.
    pub(crate) fn hear(&mut self, manifest: Option<Digest>, generation: u64) {
        if generation <= self.report.generation {
            return;
        }
        self.report.generation = generation;
        self.report.running = self.report.committed.clone();
        self.report.update =
            UpdateReport { state: UpdateState::Fetching, generation, manifest, ..UpdateReport::default() };
    }

    /// Gets one step further with what it was told.
    pub(crate) fn work(&mut self, chance: &mut Chance, scenario: &Scenario) {
        let update = &mut self.report.update;
        let on_bundle = update.manifest == Some(scenario.bundle());
        match update.state {
            UpdateState::Fetching if update.manifest.is_none() => {
                update.state = UpdateState::Idle;
                self.report.running = None;
                self.report.committed = None;
            }
            UpdateState::Fetching if on_bundle && chance.percent(scenario.fails_percent) => {
                update.state = UpdateState::Failed;
                update.reason = Some("no space".to_owned());
            }
            UpdateState::Fetching => update.state = UpdateState::Verified,
            UpdateState::Verified => {
                update.state = UpdateState::Trial;
                self.report.running = update.manifest.map(|manifest| installed(manifest, update.generation));
            }
            UpdateState::Trial if on_bundle && chance.percent(scenario.fails_percent) => {
                update.state = UpdateState::Reverted;
                self.report.running = self.report.committed.clone();
            }
            UpdateState::Trial => {
                update.state = UpdateState::Committed;
                self.report.committed = self.report.running.clone();
            }
            UpdateState::Idle
            | UpdateState::Beside
            | UpdateState::Committed
            | UpdateState::Reverted
            | UpdateState::Failed
            | UpdateState::Other => {}
        }
    }

    /// A window of what it runs, if it runs anything.
    pub(crate) fn measure(&self, chance: &mut Chance, scenario: &Scenario) -> Option<Evidence> {
        let running = self.report.running.as_ref()?;
        let bad = scenario.is_bad && running.manifest == scenario.bundle();
        let mut latency_us = LatencySketch::default();
        (0..4).for_each(|_| latency_us.add(1 + chance.below(3)));
        let class = if chance.percent(50) { "0" } else { "1" };
        Some(Evidence {
            reports: 1,
            requests: RequestCounts { served: 4, failed: if bad { 4 } else { 0 }, ..RequestCounts::default() },
            latency_us,
            predictions: BTreeMap::from([("class".to_owned(), BTreeMap::from([(class.to_owned(), 4)]))]),
            crashes: u32::from(chance.percent(scenario.crashes_percent)),
            ..Evidence::of(running.manifest, running.generation)
        })
    }
}

fn installed(manifest: Digest, generation: u64) -> InstalledBundle {
    InstalledBundle { manifest, bundle: reference(), generation }
}

/// The bundle's name, which decides nothing.
pub(crate) fn reference() -> BundleRef {
    "digits@1.0.0".parse().expect("a bundle reference")
}
