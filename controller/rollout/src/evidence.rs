//! Sums of what the two sides of a comparison measured. Windows of another bundle or generation than meant are left out.

use std::collections::BTreeMap;

use muster_shared::drift::effective_size;
use muster_shared::rollout::{ArmSummary, DeviceOutcomes, FailureKind};
use muster_shared::sketch::LatencySketch;
use muster_shared::trust::Stage;

use crate::cohort::Survey;
use crate::fleet::{BesideCounts, DeviceFacts, Evidence, Fleet, Predictions};
use crate::rollout::{Errand, Rollout, Target};
use crate::walk::side_by_side;

/// What one side measured.
#[derive(Debug, Default)]
pub(crate) struct Arm<'f> {
    /// The numbers a verdict shows.
    pub(crate) summary: ArmSummary,
    /// Classes predicted, by column.
    pub(crate) predictions: BTreeMap<&'f str, BTreeMap<&'f str, u64>>,
    /// What they were counted from, by the number of the device.
    predicted: Vec<(u32, &'f Predictions)>,
    latency_us: LatencySketch,
    /// How many requests the latency rests on, where they are the very ones that the rollout's devices ran on a shadow.
    pub(crate) shadowed: Option<u64>,
    /// Rows for which the bundle and the one it ran beside named the same class, and rows for which they did not.
    pub(crate) compared: (u64, u64),
    /// Of a control's devices, those that run the bundle beside the incumbent, and are canaries as well.
    pub(crate) canaries: u32,
}

impl<'f> Arm<'f> {
    /// The rollout's devices, on the bundle and under the generation they were given.
    pub(crate) fn canary(rollout: &Rollout, fleet: &'f Fleet) -> Self {
        let mut arm = Self::default();
        for (_, target, facts) in side_by_side(&rollout.targets, &fleet.devices) {
            // A failure counts wherever it happens.
            arm.summary.failures += u32::from(target.failure.is_some());
            arm.summary.rejected += u32::from(target.failed_as() == Some(FailureKind::Rejected));
            arm.summary.timed_out += u32::from(target.is_timed_out());
            if rollout.is_watched(target) {
                arm.add_device(facts.filter(|facts| !facts.revoked), |evidence| target.is_about(evidence));
                arm.summary.succeeded += u32::from(has_succeeded(target));
            }
        }
        arm.finish()
    }

    /// The devices the rollout means but has not reached, on what they have committed. Those that run the bundle
    /// already, or were told to by another rollout, are no control for it. Where the bundle runs beside another, the devices that have it are their own control: both models
    /// see the same device at the same time, so what sets devices apart cancels.
    pub(crate) fn control(rollout: &Rollout, survey: &Survey<'f>, fleet: &'f Fleet) -> Self {
        let mut arm = Self::default();
        let bundle = Some(rollout.bundle.manifest);
        let beside = rollout.targets.iter().filter(|(_, target)| target.beside && rollout.is_watched(target));
        let beside = rollout.governed_of(beside, fleet).map(|(_, _, facts)| facts);
        let untouched = survey.untouched(&rollout.targets).map(|(_, facts)| facts);
        let untold = untouched.filter(|facts| facts.desired.as_ref().is_none_or(|desired| desired.manifest != bundle));
        for (facts, is_canary) in beside.map(|facts| (facts, true)).chain(untold.map(|facts| (facts, false))) {
            if let Some(incumbent) = rollout.incumbent(facts).filter(|incumbent| *incumbent != rollout.bundle.manifest)
            {
                arm.add_device(Some(facts), |evidence| evidence.manifest == incumbent);
                arm.canaries += u32::from(is_canary);
                // It runs what it is meant to run, or it would not be here.
                arm.summary.succeeded += 1;
            }
        }
        if matches!(rollout.wave_stage(), Stage::Shadow { .. }) {
            arm.time_as_shadowed(rollout, fleet);
        }
        arm.finish()
    }

    /// A shadow's time is its model's alone, so what it is held against is the incumbent's model, for the very same requests.
    fn time_as_shadowed(&mut self, rollout: &Rollout, fleet: &Fleet) {
        self.latency_us = LatencySketch::default();
        for (id, target) in rollout.targets.iter().filter(|(_, target)| target.beside) {
            let facts = fleet.devices.get(id).filter(|facts| !facts.revoked);
            let own = facts.into_iter().flat_map(|facts| &facts.evidence).filter(|evidence| target.is_about(evidence));
            own.for_each(|evidence| self.latency_us.merge(&evidence.incumbent_us));
        }
        self.shadowed = Some(self.latency_us.count());
    }

    /// What one device of the rollout measured, on the bundle and under the generation it was given.
    pub(crate) fn of_device(target: &Target, facts: &'f DeviceFacts) -> ArmSummary {
        let mut arm = Self::default();
        arm.add_device(Some(facts), |evidence| target.is_about(evidence));
        arm.summary.failures = u32::from(target.failure.is_some());
        arm.summary.rejected = u32::from(target.failed_as() == Some(FailureKind::Rejected));
        arm.summary.timed_out = u32::from(target.is_timed_out());
        arm.summary.succeeded = u32::from(has_succeeded(target));
        arm.finish().summary
    }

    fn add_device(&mut self, facts: Option<&'f DeviceFacts>, counts: impl Fn(&Evidence) -> bool) {
        let mut reports = 0u32;
        let errors_before = self.summary.errors;
        let mut crashed = false;
        for evidence in facts.into_iter().flat_map(|facts| &facts.evidence).filter(|evidence| counts(evidence)) {
            reports = reports.saturating_add(evidence.reports);
            crashed |= evidence.crashes > 0;
            self.summary.requests = self.summary.requests.saturating_add(evidence.requests.served);
            self.summary.errors = self.summary.errors.saturating_add(evidence.requests.errors());
            self.latency_us.merge(&evidence.latency_us);
            let (agreed, disagreed) = self.compared;
            let BesideCounts { agreed: more_agreed, disagreed: more_disagreed, .. } = evidence.beside;
            self.compared = (agreed.saturating_add(more_agreed), disagreed.saturating_add(more_disagreed));
            for (column, classes) in &evidence.predictions {
                add(self.predictions.entry(column).or_default(), classes);
            }
            if !evidence.predictions.is_empty() {
                self.predicted.push((self.summary.devices, &evidence.predictions));
            }
        }
        self.summary.devices += 1;
        self.summary.erring += u32::from(reports > 0 && (crashed || self.summary.errors > errors_before));
        self.summary.reporting += u32::from(reports > 0);
        self.summary.reports = self.summary.reports.saturating_add(reports);
    }

    /// How many independent predictions those of `column` are worth, as one device's resemble each other.
    pub(crate) fn effective_predictions(&self, column: &str) -> f64 {
        let Some(all) = self.predictions.get(column) else { return 0.0 };
        let mut devices: Vec<Vec<u64>> = Vec::new();
        for of_device in self.predicted.chunk_by(|(one, _), (other, _)| one == other) {
            let mut own = vec![0u64; all.len()];
            for classes in of_device.iter().filter_map(|(_, predictions)| predictions.get(column)) {
                // Sorted alike, so that each class is found along the way.
                let mut cells = all.keys().zip(&mut own);
                for (class, n) in classes {
                    if let Some((_, cell)) = cells.find(|(of_all, _)| *of_all == class) {
                        *cell = cell.saturating_add(*n);
                    }
                }
            }
            devices.push(own);
        }
        effective_size(&devices)
    }

    fn finish(mut self) -> Self {
        self.summary.latency_p99_us = self.latency_us.quantile_us(0.99);
        // Every row gives one prediction a column, so the fullest column counts the rows.
        self.summary.predictions = self.predictions.values().map(total).max().unwrap_or(0);
        self
    }
}

/// Whether a device has what it was meant to have, and has not failed since.
fn has_succeeded(target: &Target) -> bool {
    target.failure.is_none()
        && match target.errand {
            Errand::Keep => true,
            Errand::Forward => target.done_at_ms.is_some(),
            Errand::Back => false,
        }
}

impl Rollout {
    /// How the devices that have come in fare, since the current wave began.
    #[must_use]
    pub fn outcomes(&self, fleet: &Fleet) -> DeviceOutcomes {
        let mut outcomes = DeviceOutcomes::default();
        for (_, target, facts) in side_by_side(&self.targets, &fleet.devices) {
            if !self.is_watched(target) {
                continue;
            }
            let facts = facts.filter(|facts| !facts.revoked);
            let own = facts.into_iter().flat_map(|facts| &facts.evidence).filter(|evidence| target.is_about(evidence));
            let (reports, faults) = own.fold((0u64, 0u64), |(reports, faults), own| {
                let faulty = own.requests.errors().saturating_add(u64::from(own.crashes));
                (reports + u64::from(own.reports), faults.saturating_add(faulty))
            });
            outcomes.targeted += 1;
            outcomes.succeeded += u32::from(has_succeeded(target));
            match target.failed_as() {
                Some(FailureKind::Failed) => outcomes.failed += 1,
                Some(FailureKind::Rejected) => outcomes.rejected += 1,
                Some(FailureKind::TimedOut) => outcomes.timed_out += 1,
                None => {}
            }
            outcomes.reported += u32::from(reports > 0);
            outcomes.erring += u32::from(reports > 0 && faults > 0);
        }
        outcomes
    }
}

/// Adds counts of classes. Those of one column mostly have the same classes, and are then added one by one without looking any up.
fn add<'f>(sums: &mut BTreeMap<&'f str, u64>, classes: &'f BTreeMap<String, u64>) {
    if sums.len() == classes.len() && sums.keys().eq(classes.keys()) {
        for (sum, n) in sums.values_mut().zip(classes.values()) {
            *sum = sum.saturating_add(*n);
        }
        return;
    }
    for (class, n) in classes {
        let sum = sums.entry(class).or_default();
        *sum = sum.saturating_add(*n);
    }
}

/// All counts of one column.
pub(crate) fn total<K>(classes: &BTreeMap<K, u64>) -> u64 {
    classes.values().fold(0, |sum, n| sum.saturating_add(*n))
}
