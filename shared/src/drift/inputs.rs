//! What devices found wrong or odd with their inputs, added up by device and held against what the schema and the profile expect.
//!
//! Values are looked at on the device; here are counts only. As for columns, the device is the statistical unit.

use super::clusters::{Clusters, total};
use super::limit::above_limit;
use super::proportion::{self, Prior};
use super::verdict::{Criteria, by_devices, false_discovery_rates};
use crate::api::{
    DataFault, DataQuality, DriftGroup, FaultCause, MissingLimit, OutlierCause, OutlierRate, OutlierRates,
};
use crate::data_schema::{DataSchema, FeatureRule, Handling};
use crate::profile::{Outliers, Profile, Side};
use crate::sketch::{Cause, OutlierCounts, QualitySketch, SketchWindow};

/// Places of what is counted of whole windows; features follow, each with its causes.
mod place {
    pub(super) const ROWS: usize = 0;
    pub(super) const DUPLICATES: usize = 1;
    pub(super) const MALFORMED: usize = 2;
    pub(super) const REJECTED: usize = 3;
    pub(super) const FLAGGED: usize = 4;
    pub(super) const IMPUTED: usize = 5;
    pub(super) const OUTLIER_ROWS: usize = 6;
    pub(super) const ANY: usize = 7;
    pub(super) const RANGE: usize = 8;
    pub(super) const CATEGORY: usize = 9;
    pub(super) const MISSING: usize = 10;
    pub(super) const DISTANCE: usize = 11;
    pub(super) const FEATURES: usize = 12;
}

/// Faults and outliers, by device or by random groups of devices.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InputCounts {
    counts: Clusters,
}

fn place_of(feature: usize, cause: Cause) -> Option<usize> {
    Some(place::FEATURES + feature * Cause::ALL.len() + Cause::ALL.iter().position(|known| *known == cause)?)
}

fn vector(quality: &QualitySketch, outliers: &OutlierCounts) -> Vec<u64> {
    let last = quality.counts().map(|(feature, _, _)| feature + 1).max().unwrap_or(0);
    let mut counts = vec![0; place::FEATURES + last * Cause::ALL.len()];
    for (at, count) in [
        (place::ROWS, quality.rows),
        (place::DUPLICATES, quality.duplicates),
        (place::MALFORMED, quality.malformed),
        (place::REJECTED, quality.rejected),
        (place::FLAGGED, quality.flagged),
        (place::IMPUTED, quality.imputed),
        (place::OUTLIER_ROWS, outliers.rows),
        (place::ANY, outliers.flagged),
        (place::RANGE, outliers.range),
        (place::CATEGORY, outliers.category),
        (place::MISSING, outliers.missing),
        (place::DISTANCE, outliers.distance),
    ] {
        counts[at] = count;
    }
    for (feature, cause, count) in quality.counts() {
        if let Some(at) = place_of(feature, cause) {
            counts[at] = count;
        }
    }
    counts
}

fn share_of(count: u64, rows: u64) -> Option<f64> {
    (rows > 0).then(|| count as f64 / rows as f64)
}

impl InputCounts {
    /// Adds what `device` found in one window, which must fit the schema and the profile of all others.
    pub fn add(&mut self, device: &str, window: &SketchWindow) {
        self.counts.add(device, &vector(&window.quality, &window.outliers));
    }

    /// Adds what was found in inputs of `device` held against the schema alone.
    pub fn add_quality(&mut self, device: &str, quality: &QualitySketch) {
        self.counts.add(device, &vector(quality, &OutlierCounts::default()));
    }

    /// Adds what others found against the same schema and profile.
    pub fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
    }

    /// The counts at place `part` among those at place `whole`: of each device what is not, and what is.
    fn shares(&self, whole: usize, part: usize) -> Vec<Vec<u64>> {
        let at = |counts: &[u64], place: usize| counts.get(place).copied().unwrap_or(0);
        let split = |counts: &Vec<u64>| {
            let (whole, part) = (at(counts, whole), at(counts, part));
            vec![whole.saturating_sub(part), part.min(whole)]
        };
        self.counts.vectors().map(split).collect()
    }

    /// What was wrong with inputs; `None` where nothing was looked at and nothing refused. Without a schema there are whole requests only.
    #[must_use]
    pub fn quality(&self, schema: Option<&DataSchema>, criteria: &Criteria) -> Option<DataQuality> {
        let sum = total(self.counts.vectors());
        let at = |place: usize| sum.get(place).copied().unwrap_or(0);
        let rows = at(place::ROWS);
        if rows == 0 && at(place::MALFORMED) == 0 {
            return None;
        }
        let features = schema.map_or(&[][..], |schema| &schema.features);
        let mut faults: Vec<DataFault> = features
            .iter()
            .enumerate()
            .flat_map(|(feature, rule)| Cause::ALL.map(|cause| (feature, rule, cause)))
            .filter_map(|(feature, rule, cause)| {
                let count = at(place_of(feature, cause)?);
                Some(DataFault {
                    feature: Some(rule.name.clone()),
                    cause: cause.into(),
                    count,
                    share: share_of(count, rows),
                    handling: rule.handling(cause),
                })
            })
            .collect();
        let duplicates = schema.and_then(|schema| schema.duplicates);
        faults.push(DataFault {
            feature: None,
            cause: FaultCause::Duplicate,
            count: at(place::DUPLICATES),
            share: share_of(at(place::DUPLICATES), rows),
            handling: duplicates.map_or(Handling::Counted, |duplicates| duplicates.on_violation.into()),
        });
        faults.push(DataFault {
            feature: None,
            cause: FaultCause::Malformed,
            count: at(place::MALFORMED),
            share: None,
            handling: Handling::Rejected,
        });
        faults.retain(|fault| fault.count > 0);
        faults.sort_by_key(|fault| std::cmp::Reverse(fault.count));
        Some(DataQuality {
            rows,
            rejected: at(place::REJECTED),
            flagged: at(place::FLAGGED),
            imputed: at(place::IMPUTED),
            faults,
            missing_limits: self.missing_limits(features, criteria),
        })
    }

    fn missing_limits(&self, features: &[FeatureRule], criteria: &Criteria) -> Vec<MissingLimit> {
        let judged = features.iter().enumerate().filter_map(|(feature, rule)| {
            let limit = rule.max_missing_share?;
            let found = above_limit(&self.shares(place::ROWS, place_of(feature, Cause::Missing)?), limit)?;
            Some(MissingLimit {
                feature: rule.name.clone(),
                share: found.share,
                limit,
                n_effective: found.n_effective,
                p_value: found.p_value,
                q_value: None,
                exceeded: found.p_value <= criteria.alpha,
            })
        });
        judged.collect()
    }

    /// How many rows are outliers, beside what `profile` expects; `None` where it flags none or no row was looked at.
    #[must_use]
    pub fn outliers(&self, profile: &Profile, criteria: &Criteria) -> Option<OutlierRates> {
        let expected = profile.outliers.as_ref()?;
        let sum = total(self.counts.vectors());
        let rows = sum.get(place::OUTLIER_ROWS).copied().filter(|rows| *rows > 0)?;
        let reference_rows = profile
            .columns
            .iter()
            .filter(|column| column.source.tensor().0 == Side::Input)
            .map(|column| column.reference.cells().iter().fold(0, |sum: u64, n| sum.saturating_add(*n)))
            .max()?;
        let rates = expectations(expected, reference_rows).into_iter().filter_map(|(cause, at, [rest, marked])| {
            let counts = self.shares(place::OUTLIER_ROWS, at);
            let current = total(&counts);
            let found = proportion::test(&[rest, marked], &current, by_devices(&counts), &[1], Prior::Counted)?;
            let above = found.current - found.reference;
            let p_value = if above > 0.0 { found.p_value } else { 1.0 };
            Some(OutlierRate {
                cause,
                count: current.get(1).copied().unwrap_or(0),
                share: found.current,
                expected: found.reference,
                n_effective: found.n_effective,
                p_value,
                q_value: None,
                exceeded: p_value <= criteria.alpha && above >= criteria.min_share_effect,
            })
        });
        Some(OutlierRates { rows, rates: rates.collect() })
    }
}

/// What the reference says of each sense: where it is counted, and the reference's rows that are not and that are outliers, each held against the others. For
/// the distance too, each was held against what was fitted to others.
fn expectations(expected: &Outliers, reference_rows: u64) -> Vec<(OutlierCause, usize, [u64; 2])> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of rows")]
    let split = |share: f64, rows: u64| {
        let marked = ((share.clamp(0.0, 1.0) * rows as f64).round() as u64).min(rows);
        [rows - marked, marked]
    };
    let far = expected.distance.as_ref().map_or(0.0, |distance| 1.0 - distance.quantile);
    let ordinary = split(expected.expected_share, reference_rows);
    let mut all = vec![
        (OutlierCause::Any, place::ANY, split(expected.expected_share + far, reference_rows)),
        (OutlierCause::Range, place::RANGE, ordinary),
        (OutlierCause::Category, place::CATEGORY, ordinary),
        (OutlierCause::Missing, place::MISSING, ordinary),
    ];
    if expected.distance.is_some() {
        all.push((OutlierCause::Distance, place::DISTANCE, split(far, reference_rows)));
    }
    all
}

/// Judges what is tested of the inputs of groups that are looked at together, as [`super::adjust`] does for columns: nothing counts as exceeded whose
/// false discovery rate over all of it is above `alpha`.
pub fn adjust_inputs<'g>(groups: impl IntoIterator<Item = &'g mut DriftGroup>, alpha: f64) {
    let mut tested = Vec::new();
    for group in groups {
        let limits = group.quality.iter_mut().flat_map(|quality| &mut quality.missing_limits);
        tested.extend(limits.map(|limit| (limit.p_value, &mut limit.q_value, &mut limit.exceeded)));
        let rates = group.outliers.iter_mut().flat_map(|outliers| &mut outliers.rates);
        tested.extend(rates.map(|rate| (rate.p_value, &mut rate.q_value, &mut rate.exceeded)));
    }
    limit_false_discoveries(tested, alpha);
}

/// The same where there is one table and nothing else is tested of its inputs.
pub fn adjust_limits(quality: &mut DataQuality, alpha: f64) {
    let limits = quality.missing_limits.iter_mut();
    limit_false_discoveries(
        limits.map(|limit| (limit.p_value, &mut limit.q_value, &mut limit.exceeded)).collect(),
        alpha,
    );
}

fn limit_false_discoveries(tested: Vec<(f64, &mut Option<f64>, &mut bool)>, alpha: f64) {
    let p_values: Vec<f64> = tested.iter().map(|(p_value, _, _)| *p_value).collect();
    for ((_, q_value, exceeded), rate) in tested.into_iter().zip(false_discovery_rates(&p_values)) {
        *q_value = Some(rate);
        *exceeded &= rate <= alpha;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::DataType;
    use crate::data_schema::{Duplicates, Imputed, OnViolation};
    use crate::ids::Digest;
    use crate::messages::WindowKey;
    use crate::profile::{Centre, Column, Distance, Reference, Source};

    fn schema() -> DataSchema {
        let age = FeatureRule {
            max: Some(120.0),
            on_violation: OnViolation::Reject,
            ..FeatureRule::of("age", "x", 0, DataType::Fp32)
        };
        let bmi = FeatureRule {
            may_be_missing: true,
            max_missing_share: Some(0.1),
            max: Some(80.0),
            stuck_after: Some(5),
            on_violation: OnViolation::Impute,
            impute: Some(Imputed::Number(26.0)),
            ..FeatureRule::of("bmi", "x", 1, DataType::Fp32)
        };
        let duplicates = Some(Duplicates { among_last: 8, on_violation: OnViolation::Flag });
        DataSchema { duplicates, features: vec![age, bmi] }
    }

    /// 1,000 reference rows, of which 20 stand alone at an end, and 10 are too far.
    fn profile() -> Profile {
        let column = Column {
            name: "age".into(),
            source: Source::Input { tensor: "x".into(), index: 0 },
            reference: Reference::Numeric { lower_edges: vec![0.0, 1.0], max: 2.0, counts: vec![500, 500], missing: 0 },
        };
        let centre = Centre { mean: vec![1.0], variance: vec![0.25] };
        let distance =
            Distance { columns: vec![0], centres: vec![centre], threshold: 5.0, quantile: 0.99, whitening: Vec::new() };
        let outliers = Outliers { expected_share: 0.02, distance: Some(distance) };
        Profile { columns: vec![column], outliers: Some(outliers), ..Profile::default() }
    }

    fn window(fill: impl Fn(&mut QualitySketch, &mut OutlierCounts)) -> SketchWindow {
        let key = WindowKey { manifest: Digest::of(b"m"), generation: 1, start_ms: 0, duration_ms: 1_000 };
        let mut window = SketchWindow::empty(key, &profile());
        window.quality = QualitySketch::empty(Some(schema().digest()));
        fill(&mut window.quality, &mut window.outliers);
        window
    }

    fn counted(devices: usize, fill: impl Fn(usize, &mut QualitySketch, &mut OutlierCounts)) -> InputCounts {
        let mut counts = InputCounts::default();
        for device in 0..devices {
            counts.add(&format!("d-{device}"), &window(|quality, outliers| fill(device, quality, outliers)));
        }
        counts
    }

    #[test]
    fn every_fault_is_told_by_feature_and_cause_with_what_was_done() {
        let counts = counted(10, |_, quality, _| {
            (quality.rows, quality.duplicates, quality.malformed) = (100, 7, 2);
            (quality.rejected, quality.flagged, quality.imputed) = (3, 4, 5);
            quality.add(0, Cause::Missing, 1);
            quality.add(0, Cause::AboveMax, 3);
            quality.add(1, Cause::Missing, 30);
            quality.add(1, Cause::AboveMax, 5);
            quality.add(1, Cause::Stuck, 4);
        });
        let quality = counts.quality(Some(&schema()), &Criteria::default()).unwrap();
        assert_eq!((quality.rows, quality.rejected, quality.flagged, quality.imputed), (1_000, 30, 40, 50));
        let told: Vec<_> = quality
            .faults
            .iter()
            .map(|fault| (fault.feature.as_deref().unwrap_or("-"), fault.cause, fault.count, fault.handling))
            .collect();
        assert_eq!(
            told,
            [
                ("bmi", FaultCause::Missing, 300, Handling::Counted),
                ("-", FaultCause::Duplicate, 70, Handling::Flagged),
                ("bmi", FaultCause::AboveMax, 50, Handling::Imputed),
                ("bmi", FaultCause::Stuck, 40, Handling::Flagged),
                ("age", FaultCause::AboveMax, 30, Handling::Rejected),
                ("-", FaultCause::Malformed, 20, Handling::Rejected),
                ("age", FaultCause::Missing, 10, Handling::Rejected),
            ]
        );
        assert_eq!((quality.faults[0].share, quality.faults[5].share), (Some(0.3), None));
        assert_eq!(quality.violations().count(), 6);
        let [limit] = &quality.missing_limits[..] else { panic!("{quality:?}") };
        assert!(limit.exceeded && (limit.share, limit.limit) == (0.3, 0.1), "{limit:?}");
        assert_eq!(quality.exceeded("bmi"), Some(limit));
        assert_eq!(counts.quality(None, &Criteria::default()).unwrap().faults.len(), 2);
        assert_eq!(InputCounts::default().quality(Some(&schema()), &Criteria::default()), None);
    }

    #[test]
    fn outliers_stand_beside_what_the_profile_expects() {
        let rates = |fill: &dyn Fn(usize, &mut OutlierCounts)| {
            let counts = counted(20, |device, _, outliers| fill(device, outliers));
            counts.outliers(&profile(), &Criteria::default()).unwrap()
        };
        let as_ever = rates(&|device, outliers| {
            (outliers.rows, outliers.flagged, outliers.range) = (100, 3, 2);
            outliers.distance = u64::from(device % 2 == 0);
        });
        let told: Vec<_> = as_ever.rates.iter().map(|rate| (rate.cause, rate.count, rate.expected)).collect();
        assert_eq!(
            told,
            [
                (OutlierCause::Any, 60, 0.03),
                (OutlierCause::Range, 40, 0.02),
                (OutlierCause::Category, 0, 0.02),
                (OutlierCause::Missing, 0, 0.02),
                (OutlierCause::Distance, 10, 0.01),
            ]
        );
        assert!(as_ever.rows == 2_000 && as_ever.rates.iter().all(|rate| !rate.exceeded), "{as_ever:?}");
        let more = rates(&|_, outliers| {
            (outliers.rows, outliers.flagged, outliers.range, outliers.distance) = (100, 10, 10, 1);
        });
        let exceeded: Vec<_> = more.rates.iter().filter(|rate| rate.exceeded).map(|rate| rate.cause).collect();
        assert_eq!(exceeded, [OutlierCause::Any, OutlierCause::Range]);
        // The same rows from one of the devices are no sign of the fleet.
        let odd = rates(&|device, outliers| {
            let flagged = if device == 0 { 200 } else { 0 };
            (outliers.rows, outliers.flagged, outliers.range) = (if device == 0 { 200 } else { 100 }, flagged, flagged);
        });
        assert!(odd.rates.iter().all(|rate| !rate.exceeded), "{odd:?}");
        let none = Profile { outliers: None, ..profile() };
        assert_eq!(counted(1, |_, _, outliers| outliers.rows = 9).outliers(&none, &Criteria::default()), None);
        assert_eq!(InputCounts::default().outliers(&profile(), &Criteria::default()), None);
    }

    #[test]
    fn what_is_tested_together_shares_the_chance_of_a_false_alarm() {
        let group = |exceeds: bool| {
            let counts = counted(20, |_, quality, outliers| {
                (quality.rows, outliers.rows) = (100, 100);
                quality.add(1, Cause::Missing, if exceeds { 40 } else { 9 });
            });
            DriftGroup {
                group: String::new(),
                slice: None,
                suppressed: false,
                start_ms: 0,
                end_ms: 1,
                devices: 20,
                windows: 20,
                columns: Vec::new(),
                quality: counts.quality(Some(&schema()), &Criteria::default()),
                outliers: counts.outliers(&profile(), &Criteria::default()),
                quantiles: Vec::new(),
                objectives: Vec::new(),
            }
        };
        let mut groups = [group(true), group(false)];
        adjust_inputs(&mut groups, 0.01);
        let limits = groups.each_ref().map(|group| group.quality.as_ref().unwrap().missing_limits[0].clone());
        assert_eq!(limits.each_ref().map(|limit| limit.exceeded), [true, false]);
        // Twelve tests, one of them sure: its rate is twelve times its chance.
        let rate = limits[0].q_value.unwrap();
        assert!((rate - (12.0 * limits[0].p_value).min(1.0)).abs() <= 1e-12 * rate, "{limits:?}");
    }
}
