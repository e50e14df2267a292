//! Verdicts on counts made by hand, and on any counts at all. How often verdicts are false is simulated in `tests/it/drift.rs`.

use proptest::prelude::*;

use super::*;
use crate::profile::{Column, Profile, Reference, Source};
use crate::sketch::ColumnSketch;

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

fn classes() -> Column {
    Column {
        name: "class".into(),
        source: Source::PredictedClass { tensor: "out".into() },
        reference: Reference::Class { classes: vec!["a".into(), "b".into()], counts: vec![400, 100] },
    }
}

fn sketch(column: &Column, values: impl IntoIterator<Item = f64>) -> ColumnSketch {
    let mut sketch = ColumnSketch::empty(column);
    values.into_iter().for_each(|x| sketch.add(column, x));
    sketch
}

fn scored(column: &Column, sketches: Vec<ColumnSketch>) -> crate::api::ColumnDrift {
    let mut groups = DeviceGroups::default();
    for (device, sketch) in sketches.into_iter().enumerate() {
        groups.add(&device_id(device), &[sketch]);
    }
    groups.score(&Profile { columns: vec![column.clone()], ..Profile::default() }, &Criteria::default()).remove(0)
}

fn device_id(number: usize) -> String {
    format!("d-{number}")
}

#[test]
fn the_same_distribution_has_not_drifted_and_another_has() {
    let column = column();
    let same = (0..10).map(|_| sketch(&column, (0..100).map(|n| f64::from(n % 4)))).collect();
    let drift = scored(&column, same);
    assert!(!drift.drifted && drift.psi.unwrap() < 1e-9 && drift.beyond_chance.is_empty(), "{drift:?}");
    assert_eq!((drift.n, drift.clustering), (1_000, Clustering::Devices));
    let moved = (0..10).map(|_| sketch(&column, (0..100).map(|n| f64::from(n % 2)))).collect();
    let drift = scored(&column, moved);
    // By hand: two cells of .5 against .25, two empty ones against .25, the floor being 1e-4.
    let expected = 2.0 * (0.25 * 2f64.ln() + (0.25 - 1e-4) * 2_500f64.ln());
    assert!(drift.drifted && (drift.psi.unwrap() - expected).abs() < 1e-9, "{drift:?} {expected}");
    assert!(drift.kolmogorov_smirnov.unwrap().is_significant() && drift.wasserstein.unwrap().is_significant());
    assert!((drift.kolmogorov_smirnov.unwrap().value - 0.5).abs() < 1e-12);
    assert_eq!(kind_of(&drift, &Surroundings::default(), &Criteria::default()), crate::api::DriftKind::Data);
}

#[test]
fn a_class_that_is_gone_is_seen_however_much_more_there_is_than_the_reference() {
    let column = classes();
    for rows in [50, 5_000, 500_000] {
        let gone = (0..10).map(|_| sketch(&column, std::iter::repeat_n(0.0, rows))).collect();
        let drift = scored(&column, gone);
        assert!(drift.drifted && drift.chi_square.is_some() && drift.critical.is_some(), "{rows}: {drift:?}");
    }
}

#[test]
fn one_odd_device_is_no_sure_sign() {
    let column = column();
    // Every device sees one kind of input only: few devices are worth few values, whatever they counted.
    let odd = [0.0, 1.0, 2.0, 2.0, 2.0].iter().map(|x| sketch(&column, std::iter::repeat_n(*x, 500))).collect();
    let drift = scored(&column, odd);
    assert!(drift.psi.unwrap() > 0.1 && !drift.drifted, "{drift:?}");
    assert!(drift.n_effective < 10.0 && drift.n == 2_500);
}

#[test]
fn a_device_alone_needs_a_move_that_no_habit_explains() {
    let column = column();
    let slightly = |n: u32| f64::from(if n % 10 < 3 { 0 } else { n % 4 });
    let drift = scored(&column, vec![sketch(&column, (0..10_000).map(slightly))]);
    assert_eq!((drift.drifted, drift.clustering), (false, Clustering::WithinOneDevice), "{drift:?}");
    let drift = scored(&column, vec![sketch(&column, (0..10_000).map(|n| f64::from(n % 2)))]);
    assert!(drift.drifted, "{drift:?}");
    // Were the same rows drawn one by one, the slight move would be beyond chance.
    let cells = sketch(&column, (0..10_000).map(slightly)).cells();
    let rows = column_drift(&column, &column.reference.cells(), &cells, Draws::Rows, &Criteria::default());
    assert!(rows.significant && rows.clustering == Clustering::Rows, "{rows:?}");
}

#[test]
fn missing_and_unexpected_values_have_their_own_tests() {
    let column = column();
    let mut odd = sketch(&column, [0.5, -1.0, 9.0, f64::NAN, f64::INFINITY]);
    (0..5).for_each(|_| odd.add_missing());
    let drift = scored(&column, vec![odd]);
    // NaN stands for no value.
    assert!((drift.missing_share - 0.6).abs() < 1e-12 && (drift.unexpected_share - 0.3).abs() < 1e-12, "{drift:?}");

    // The distribution of what is there has not moved, but every fourth value is gone.
    let gaps = (0..20)
        .map(|_| {
            let mut sketch = sketch(&column, (0..60).map(|n| f64::from(n % 4)));
            (0..20).for_each(|_| sketch.add_missing());
            sketch
        })
        .collect();
    let drift = scored(&column, gaps);
    assert!(drift.drifted && drift.beyond_chance.contains(&crate::api::ScoreName::Missing), "{drift:?}");
    assert!(drift.kolmogorov_smirnov.unwrap().value < 1e-9);
    assert_eq!(kind_of(&drift, &Surroundings::default(), &Criteria::default()), crate::api::DriftKind::Quality);

    let unseen = (0..20).map(|_| sketch(&classes(), (0..50).map(|n| f64::from(n % 5)))).collect();
    let drift = scored(&classes(), unseen);
    assert!(drift.beyond_chance.contains(&crate::api::ScoreName::Unexpected) && drift.drifted, "{drift:?}");
    assert!((drift.unexpected_share - 0.6).abs() < 1e-12);
}

#[test]
fn nothing_counted_is_no_score_and_no_alarm() {
    for column in [column(), classes()] {
        let drift = scored(&column, vec![ColumnSketch::empty(&column)]);
        assert_eq!((drift.psi, drift.critical, drift.n, drift.drifted), (None, None, 0, false));
    }
    // A profile with one bin, and NaN everywhere.
    let mut one = column();
    one.reference = Reference::Numeric { lower_edges: vec![5.0], max: 5.0, counts: vec![100], missing: 0 };
    let drift = scored(&one, vec![sketch(&one, vec![5.0; 30])]);
    assert!(!drift.drifted && drift.psi == Some(0.0) && drift.wasserstein.is_none(), "{drift:?}");
    let drift = scored(&one, (0..9).map(|_| sketch(&one, vec![f64::NAN; 30])).collect());
    assert!(drift.drifted && (drift.missing_share - 1.0).abs() < 1e-12, "{drift:?}");
}

#[test]
fn false_discovery_rates_are_the_published_ones() {
    // scipy.stats.false_discovery_control([0.001, 0.04, 0.03, 0.2, 0.9, 0.03])
    let expected = [0.006, 0.06, 0.06, 0.24, 0.9, 0.06];
    for (rate, expected) in false_discovery_rates(&[0.001, 0.04, 0.03, 0.2, 0.9, 0.03]).into_iter().zip(expected) {
        assert!((rate - expected).abs() < 1e-12, "{rate} {expected}");
    }
    assert!(false_discovery_rates(&[]).is_empty());
}

#[test]
fn many_devices_are_kept_as_random_groups() {
    let column = column();
    let profile = Profile { columns: vec![column.clone(), classes()], ..Profile::default() };
    let device = |n: usize| {
        let values = (0..20).map(move |row| f64::from(u32::try_from((row + n) % 4).unwrap()));
        [sketch(&column, values), sketch(&classes(), [0.0, 0.0, 0.0, 0.0, 1.0])]
    };
    let (mut forwards, mut backwards, mut halves) =
        (DeviceGroups::default(), DeviceGroups::default(), [DeviceGroups::default(), DeviceGroups::default()]);
    for n in 0..1_000 {
        forwards.add(&device_id(n), &device(n));
        backwards.add(&device_id(999 - n), &device(999 - n));
        halves[usize::from(n >= 950)].add(&device_id(n), &device(n));
    }
    let [mut merged, few] = halves;
    merged.merge(&few);
    assert_eq!((&forwards, &forwards), (&backwards, &merged));
    let [mut few, many] = [few, forwards.clone()];
    few.merge(&many);
    assert_eq!(few.devices(), 1_000);
    assert_eq!(forwards.devices(), 1_000);
    assert_eq!(forwards.totals(&profile)[0].iter().sum::<u64>(), 20_000);
    assert_eq!(forwards.totals(&profile)[1], [4_000, 1_000, 0, 0]);
    let columns = forwards.score(&profile, &Criteria::default());
    assert!(columns.iter().all(|column| !column.drifted && column.clustering == Clustering::Devices), "{columns:?}");
    assert_eq!(forwards.score_one(&profile, 1, &Criteria::default()).as_ref(), columns.last());
}

proptest! {
    /// Counts come from devices, which may say anything.
    #[test]
    fn any_counts_are_judged_without_harm(
        reference in prop::collection::vec(any_count(), 9),
        devices in prop::collection::vec(prop::collection::vec(any_count(), 9), 0..12),
        alpha in prop_oneof![Just(0.01), Just(0.0), Just(1.0), 0.0..1.0f64],
    ) {
        let mut current = vec![0u64; 9];
        for device in &devices {
            current.iter_mut().zip(device).for_each(|(sum, n)| *sum = sum.saturating_add(*n));
        }
        let criteria = Criteria { alpha, ..Criteria::default() };
        for layout in [Layout::numeric(vec![-1.0, 0.0, 1.0, 2.0, 5.0]), Layout::classes(7)] {
            for draws in [Draws::Rows, by_devices(&devices)] {
                let Some(verdict) = judge(&layout, &reference, &current, draws, &criteria) else {
                    prop_assert!(reference.iter().all(|n| *n == 0) || current.iter().all(|n| *n == 0));
                    continue;
                };
                let scores = [Some(verdict.psi), Some(verdict.jensen_shannon), Some(verdict.l_infinity), verdict.kolmogorov_smirnov, verdict.wasserstein];
                for score in scores.into_iter().flatten() {
                    prop_assert!(score.value.is_finite() && score.value >= 0.0, "{:?}", verdict);
                    prop_assert!(score.critical.is_none_or(|critical| critical.is_finite() && critical >= 0.0), "{:?}", verdict);
                }
                for p_value in [verdict.p_value, verdict.missing.p_value, verdict.unexpected.p_value] {
                    prop_assert!((0.0..=1.0).contains(&p_value), "{:?}", verdict);
                }
                prop_assert!(verdict.n_effective.is_finite() && verdict.n_effective >= 0.0, "{:?}", verdict);
                prop_assert!(!verdict.drifted || (verdict.significant && verdict.effect), "{:?}", verdict);
            }
        }
    }

    #[test]
    fn devices_that_agree_are_worth_their_rows_and_split_ones_are_not(rows in 20u64..500, devices in 6usize..40) {
        let column = classes();
        let reference = column.reference.cells();
        let alike = vec![vec![rows * 4, rows, 0, 0]; devices];
        let split: Vec<_> = (0..devices).map(|d| if d % 5 == 0 { vec![0, rows, 0, 0] } else { vec![rows, 0, 0, 0] }).collect();
        let worth = |counts: &[Vec<u64>]| {
            let mut current = vec![0; 4];
            counts.iter().for_each(|c| current.iter_mut().zip(c).for_each(|(sum, n)| *sum += n));
            column_drift(&column, &reference, &current, by_devices(counts), &Criteria::default()).n_effective
        };
        let total = rows as f64 * devices as f64;
        prop_assert!((worth(&alike) - total * 5.0).abs() < 1e-6 * total);
        prop_assert!(worth(&split) < devices as f64 * 1.5, "{}", worth(&split));
    }
}

fn any_count() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0), 4 => 0..1_000u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}
