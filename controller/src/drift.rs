//! How far a bundle's inputs and answers have moved from its reference sample.
//!
//! Sketches of every device and window are added up exactly, for each group of devices apart. The device is the
//! statistical unit: how much all the counts of a group are worth is estimated from the counts of each device. A
//! column counts as drifted when the move is both significant and large enough to matter. Nothing here stops a
//! rollout.

use std::collections::BTreeMap;

use muster_shared::api::{ColumnDrift, DriftGroup, DriftReport};
use muster_shared::drift::{effective_size, occupied_cells, psi, psi_critical};
use muster_shared::ids::{BundleRef, DeviceId};
use muster_shared::messages::Sequenced;
use muster_shared::profile::{Column, Profile};
use muster_shared::sketch::{ColumnSketch, SketchWindow};

use crate::state::App;
use crate::store::records::{LeftOut, WindowRecord, window_key_floor};
use crate::store::{StoreError, Table};

/// Chance of a false alarm per column.
const ALPHA: f64 = 0.01;
/// A score below this is too small to matter, however sure it is.
const MIN_EFFECT: f64 = 0.1;
/// Windows are kept in order of arrival, and a device's clock may run ahead of ours by this much, in milliseconds.
const CLOCK_SLACK_MS: u64 = 24 * 3_600_000;
/// Windows read at once.
const PAGE: usize = 256;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriftError {
    /// No such bundle.
    #[error("there is no bundle {0}")]
    UnknownBundle(BundleRef),
    /// The store failed.
    #[error("the monitoring windows cannot be read")]
    Store(#[from] StoreError),
}

/// Compares what devices saw in windows that started at `since_ms` or later with the bundle's reference, for each
/// value of the label `group_by` apart, or for the whole fleet.
///
/// # Errors
/// [`DriftError`].
pub(crate) async fn report(
    app: &App,
    bundle: &BundleRef,
    group_by: Option<&str>,
    since_ms: u64,
) -> Result<DriftReport, DriftError> {
    let listed = app.catalogue.find(bundle).await?.ok_or_else(|| DriftError::UnknownBundle(bundle.clone()))?;
    let profile = &listed.manifest.profile;
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let mut after = window_key_floor(since_ms.saturating_sub(CLOCK_SLACK_MS));
    let mut left_out = LeftOut::default();
    loop {
        let page = app.records.scan::<WindowRecord>(Table::Windows, Some(&after), "", PAGE).await?;
        let last = page.len() < PAGE;
        for (key, window) in page {
            after = key;
            let window = window.value;
            if window.key.manifest != listed.digest || window.key.start_ms < since_ms {
                continue;
            }
            // Counters and crashes come in windows as well.
            let Some(bytes) = window.sketch.as_deref() else { continue };
            let sketch = Sequenced::<SketchWindow>::decode(bytes).ok();
            let Some(sketch) = sketch.filter(|sketch| sketch.body.fits(profile)) else {
                left_out.add(Table::Windows, &after);
                continue;
            };
            let label = group_by.and_then(|label| app.fleet.label(&window.device, label));
            groups.entry(label.unwrap_or_default()).or_default().add(&window.device, sketch.body);
        }
        if last {
            break;
        }
    }
    left_out.tell();
    Ok(DriftReport {
        bundle: listed.bundle.clone(),
        profile: profile.digest(),
        group_by: group_by.map(str::to_owned),
        alpha: ALPHA,
        min_effect: MIN_EFFECT,
        since_ms,
        groups: groups.into_iter().map(|(group, sums)| sums.show(group, profile)).collect(),
    })
}

/// The windows of a group, added up for each device.
#[derive(Default)]
struct Group {
    windows: u64,
    devices: BTreeMap<DeviceId, SketchWindow>,
}

impl Group {
    fn add(&mut self, device: &DeviceId, window: SketchWindow) {
        self.windows += 1;
        match self.devices.get_mut(device) {
            // It fits the same profile, so it can be added.
            Some(sum) => drop(sum.merge(&window)),
            None => {
                self.devices.insert(device.clone(), window);
            }
        }
    }

    fn show(&self, group: String, profile: &Profile) -> DriftGroup {
        let column = |(at, column): (usize, &Column)| {
            let sketches: Vec<_> = self.devices.values().filter_map(|window| window.columns.get(at)).collect();
            column_drift(column, &sketches)
        };
        DriftGroup {
            group,
            devices: u32::try_from(self.devices.len()).unwrap_or(u32::MAX),
            windows: self.windows,
            columns: profile.columns.iter().enumerate().map(column).collect(),
        }
    }
}

/// Scores a column from one sketch of each device.
fn column_drift(column: &Column, devices: &[&ColumnSketch]) -> ColumnDrift {
    let mut sum = ColumnSketch::empty(column);
    for sketch in devices {
        // They fit the same column, so they can be added.
        drop(sum.merge(sketch));
    }
    let (reference, current) = (column.reference.cells(), sum.cells());
    let by_device: Vec<Vec<u64>> = devices.iter().map(|sketch| sketch.cells()).collect();
    let n_effective = effective_size(&by_device);
    let n_reference = reference.iter().map(|n| *n as f64).sum();
    let score = psi(&reference, &current);
    let critical = psi_critical(occupied_cells(&reference, &current), n_reference, n_effective, ALPHA);
    let (missing, unexpected) = match &sum {
        ColumnSketch::Numeric(s) => (
            s.missing,
            [s.below_min, s.above_max, s.nan, s.pos_inf, s.neg_inf].into_iter().fold(0, u64::saturating_add),
        ),
        ColumnSketch::Class(s) => (s.missing, s.other),
    };
    let n = sum.total();
    let share = |part: u64| if n == 0 { 0.0 } else { part as f64 / n as f64 };
    let drifted = score.zip(critical).is_some_and(|(score, critical)| score > critical && score > MIN_EFFECT);
    ColumnDrift {
        name: column.name.clone(),
        prediction: column.is_prediction(),
        psi: score,
        critical,
        n,
        n_effective,
        missing_share: share(missing),
        unexpected_share: share(unexpected),
        drifted,
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::messages::{Position, Stream, WindowKey};
    use muster_shared::profile::{Reference, Source};
    use proptest::prelude::*;

    use super::*;
    use crate::store::records::window_key;
    use crate::store::{Expect, Records};

    fn column() -> Column {
        Column {
            name: "x".into(),
            source: Source::Input { tensor: "in".into(), index: 0 },
            reference: Reference::Numeric {
                lower_edges: vec![0.0, 1.0, 2.0, 3.0],
                max: 4.0,
                counts: vec![250; 4],
                missing: 0,
            },
        }
    }

    fn sketch(column: &Column, values: impl IntoIterator<Item = f64>) -> ColumnSketch {
        let mut sketch = ColumnSketch::empty(column);
        values.into_iter().for_each(|x| sketch.add(column, x));
        sketch
    }

    #[test]
    fn the_same_distribution_has_not_drifted_and_another_has() {
        let column = column();
        let same: Vec<_> = (0..10).map(|_| sketch(&column, (0..100).map(|n| f64::from(n % 4)))).collect();
        let drift = column_drift(&column, &same.iter().collect::<Vec<_>>());
        assert!(!drift.drifted && drift.psi.unwrap() < 1e-9, "{drift:?}");
        assert_eq!(drift.n, 1_000);
        let moved: Vec<_> = (0..10).map(|_| sketch(&column, (0..100).map(|n| f64::from(n % 2)))).collect();
        let drift = column_drift(&column, &moved.iter().collect::<Vec<_>>());
        // By hand: two cells of .5 against .25, two empty ones against .25, the floor being 1e-4.
        let expected = 2.0 * (0.25 * 2f64.ln() + (0.25 - 1e-4) * 2_500f64.ln());
        assert!(drift.drifted && (drift.psi.unwrap() - expected).abs() < 1e-9, "{drift:?} {expected}");
    }

    #[test]
    fn one_odd_device_is_no_sure_sign() {
        let column = column();
        // Every device sees one kind of input only: 4 devices are worth 4 values, whatever they counted.
        let odd: Vec<_> = [0.0, 1.0, 2.0, 2.0].iter().map(|x| sketch(&column, std::iter::repeat_n(*x, 500))).collect();
        let drift = column_drift(&column, &odd.iter().collect::<Vec<_>>());
        assert!(drift.psi.unwrap() > MIN_EFFECT && !drift.drifted, "{drift:?}");
        assert!(drift.n_effective < 10.0 && drift.n == 2_000);
    }

    #[test]
    fn missing_and_unexpected_values_have_their_shares() {
        let column = column();
        let mut odd = sketch(&column, [0.5, -1.0, 9.0, f64::NAN, f64::INFINITY]);
        (0..5).for_each(|_| odd.add_missing());
        let drift = column_drift(&column, &[&odd]);
        assert!((drift.missing_share - 0.5).abs() < 1e-12 && (drift.unexpected_share - 0.4).abs() < 1e-12, "{drift:?}");
        let none = column_drift(&column, &[]);
        assert_eq!((none.psi, none.critical, none.n, none.drifted), (None, None, 0, false));
    }

    #[tokio::test]
    async fn groups_are_told_apart_and_windows_added_up() {
        let test = crate::testing::app().await;
        let manifest = test.bundle("digits", "1.0.0", 10).await;
        let (bundle, digest) = (manifest.bundle(), crate::testing::digest_of(&manifest));
        let profile = crate::testing::profile();
        let mut changes = Vec::new();
        for (name, site, class) in [("a", "lyon", 0.0), ("b", "lyon", 0.0), ("c", "oslo", 1.0), ("d", "", 1.0)] {
            let labels: &[(&str, &str)] = if site.is_empty() { &[] } else { &[("site", site)] };
            let device = test.enrol(name, labels).await;
            for sequence in 1..=2 {
                let key = WindowKey { manifest: digest, generation: 1, start_ms: 1_000 * sequence, duration_ms: 1 };
                let mut window = SketchWindow::empty(key, &profile);
                (0..100).for_each(|_| window.columns[1].add(&profile.columns[1], class));
                let position = Position { epoch: 1, sequence, oldest: 1 };
                let record = WindowRecord {
                    device: device.clone(),
                    received_at_ms: 5_000,
                    position,
                    key,
                    telemetry: None,
                    sketch: Some(Sequenced { position, body: window }.encode()),
                    crash: false,
                };
                let at = window_key(5_000, &device, Stream::Sketch, &position);
                changes.push(Records::put(Table::Windows, at, Expect::Absent, &record).unwrap());
            }
        }
        test.app.records.commit(changes).await.unwrap();

        let all = report(&test.app, &bundle, None, 0).await.unwrap();
        assert_eq!((all.groups.len(), all.groups[0].devices, all.groups[0].windows), (1, 4, 8));
        assert_eq!((all.profile, all.groups[0].columns[1].n), (profile.digest(), 800));
        let by_site = report(&test.app, &bundle, Some("site"), 2_000).await.unwrap();
        let shown: Vec<_> = by_site.groups.iter().map(|g| (g.group.as_str(), g.devices, g.windows)).collect();
        assert_eq!(shown, [("", 1, 1), ("lyon", 2, 2), ("oslo", 1, 1)]);
        // Nothing was counted of the first column: no score, and no alarm.
        let empty = &by_site.groups[1].columns[0];
        assert_eq!((empty.name.as_str(), empty.psi, empty.drifted), ("x", None, false));
        let unknown = report(&test.app, &"digits@9.9.9".parse().unwrap(), None, 0).await;
        assert!(matches!(unknown, Err(DriftError::UnknownBundle(_))));
    }

    proptest! {
        #[test]
        fn any_counts_have_a_finite_score(values in prop::collection::vec(prop::collection::vec(-2.0..6.0f64, 0..30), 0..6)) {
            let column = column();
            let sketches: Vec<_> = values.into_iter().map(|v| sketch(&column, v)).collect();
            let drift = column_drift(&column, &sketches.iter().collect::<Vec<_>>());
            prop_assert!(drift.psi.is_none_or(f64::is_finite) && drift.critical.is_none_or(f64::is_finite));
            prop_assert_eq!(drift.psi.is_some(), drift.n > 0);
        }
    }
}
