//! What is told of windows in a real store.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_shared::api::{ConceptBasis, DriftKind};
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::labels::{LabelSpec, LabelTask, Prediction, Truth};
use muster_shared::messages::{Position, RequestCounts, Resources, Sequenced, Stream, TelemetryWindow, WindowKey};
use muster_shared::profile::{Objectives, Profile, SliceBy, SliceSet, Slicing};
use muster_shared::quality::{Baseline, ClassBaseline};
use muster_shared::sketch::{
    LabelSketch, LatencySketch, ObjectiveCounts, QuantileSketches, SketchWindow, SliceSketch, SliceSketches,
};

use super::*;
use crate::store::records::{WindowRecord, window_key};
use crate::store::{Expect, Records, Table};
use crate::testing::TestApp;

/// A window of `profile` that started at `start_ms`, with what `fill` counts.
async fn store_of(
    test: &TestApp,
    profile: &Profile,
    (manifest, device, start_ms): (Digest, &DeviceId, u64),
    fill: impl FnOnce(&mut SketchWindow),
) {
    let key = WindowKey { manifest, generation: 1, start_ms, duration_ms: 1_000 };
    let mut window = SketchWindow::empty(key, profile);
    fill(&mut window);
    let position = Position { epoch: 1, sequence: start_ms, oldest: 1 };
    let received_at_ms = start_ms + 5_000;
    let record = WindowRecord {
        device: device.clone(),
        received_at_ms,
        position,
        key,
        telemetry: None,
        sketch: Some(Sequenced { position, body: window }.encode()),
        crash: false,
        program: None,
    };
    let at = window_key(received_at_ms, device, Stream::Sketch, &position);
    let change = Records::put(Table::Windows, at, Expect::Absent, &record).unwrap();
    test.app.records.commit(vec![change]).await.unwrap();
}

/// A window of 100 rows in which the model's class was `class`, and that started at `start_ms`.
async fn store(test: &TestApp, manifest: Digest, device: &DeviceId, start_ms: u64, class: f64) {
    let profile = crate::testing::profile();
    store_of(test, &profile, (manifest, device, start_ms), |window| {
        (0..100).for_each(|_| window.columns[1].add(&profile.columns[1], class));
    })
    .await;
}

#[tokio::test]
async fn groups_are_told_apart_and_windows_added_up() {
    let test = crate::testing::app().await;
    let manifest = test.bundle("digits", "1.0.0", 10).await;
    let (bundle, digest) = (manifest.bundle(), crate::testing::digest_of(&manifest));
    let profile = crate::testing::profile();
    for (name, site, class) in [("a", "lyon", 0.0), ("b", "lyon", 0.0), ("c", "oslo", 1.0), ("d", "", 1.0)] {
        let labels: &[(&str, &str)] = if site.is_empty() { &[] } else { &[("site", site)] };
        let device = test.enrol(name, labels).await;
        for start_ms in [1_000, 2_000] {
            store(&test, digest, &device, start_ms, class).await;
        }
    }

    let all = report(&test.app, &bundle, Wish::default()).await.unwrap();
    assert_eq!((all.groups.len(), all.groups[0].devices, all.groups[0].windows), (1, 4, 8));
    assert_eq!((all.profile, all.groups[0].columns[1].n), (profile.digest(), 800));
    let by_site = Wish { group_by: Some("site".into()), since_ms: 2_000, ..Wish::default() };
    let by_site = report(&test.app, &bundle, by_site).await.unwrap();
    let shown: Vec<_> = by_site.groups.iter().map(|g| (g.group.as_str(), g.devices, g.windows)).collect();
    assert_eq!(shown, [("", 1, 1), ("lyon", 2, 2), ("oslo", 1, 1)]);
    // Nothing was counted of the first column: no score, and no alarm.
    let empty = &by_site.groups[1].columns[0];
    assert_eq!((empty.name.as_str(), empty.psi, empty.drifted), ("x", None, false));
    let unknown = report(&test.app, &"digits@9.9.9".parse().unwrap(), Wish::default()).await;
    assert!(matches!(unknown, Err(DriftError::Report(ReportError::UnknownBundle(_)))));
}

#[tokio::test]
async fn a_drift_is_explained_by_cells_devices_and_time() {
    let test = crate::testing::app().await;
    let manifest = test.bundle("digits", "1.0.0", 10).await;
    let (bundle, digest) = (manifest.bundle(), crate::testing::digest_of(&manifest));
    let profile = crate::testing::profile();
    // The reference has both classes. From the third step on, nine of ten devices see one of them only.
    for n in 0..10 {
        let device = test.enrol(&format!("device-{n}"), &[]).await;
        for step in 1..=5 {
            let class = if step >= 3 && n > 0 { 0 } else { (step + n) % 2 };
            store(&test, digest, &device, step * 1_000, class as f64).await;
        }
    }
    let steps = report(&test.app, &bundle, Wish { by_window: true, ..Wish::default() }).await.unwrap();
    let drifted: Vec<bool> = steps.groups.iter().map(|group| group.columns[1].drifted).collect();
    let starts: Vec<u64> = steps.groups.iter().map(|group| group.start_ms).collect();
    assert_eq!(starts, [1_000, 2_000, 3_000, 4_000, 5_000]);
    assert!(!drifted[0] && !drifted[1], "{drifted:?}");

    let question = Question { wish: Wish::default(), column: Some(profile.columns[1].name.clone()) };
    let explained = explain(&test.app, &bundle, question.clone()).await.unwrap();
    let [explained] = &explained[..] else { panic!("{explained:?}") };
    assert_eq!((explained.devices, explained.column.n, explained.contributors.len()), (10, 5_000, 10));
    let cells: u64 = explained.cells.iter().map(|cell| cell.current).sum();
    assert_eq!(cells, 5_000);
    let change: f64 = explained.cells.iter().map(|cell| cell.change).sum();
    assert!(change.abs() < 1e-9);
    // 3,800 of one class and 1,200 of the other, against 60 and 40; figures by the formulas written out in Python.
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    close(explained.column.psi.unwrap(), 0.119_554_304_293);
    for (cell, (change, psi)) in
        explained.cells.iter().zip([(0.16, 0.037_822_204_490), (-0.16, 0.081_732_099_803), (0.0, 0.0), (0.0, 0.0)])
    {
        close(cell.change, change);
        close(cell.psi, psi);
    }
    // The one that saw both as before hides the drift of the others.
    let hides = explained.contributors.last().unwrap();
    assert_eq!((hides.device.as_str(), hides.n), ("device-0", 500));
    close(hides.psi, 0.162_186_043_243);
    close(hides.psi_without.unwrap(), 0.196_165_850_602);
    close(hides.contribution, 1.0 - 0.196_165_850_602 / 0.119_554_304_293);
    let most = &explained.contributors[0];
    close(most.psi_without.unwrap(), 0.112_466_689_021);
    assert!(explained.contributors.windows(2).all(|pair| pair[0].contribution >= pair[1].contribution));
    let kind = if explained.column.drifted { DriftKind::Prediction } else { DriftKind::None };
    assert_eq!((explained.kind, explained.concept_basis), (kind, ConceptBasis::Nothing));
    assert!(explained.sentence.contains(&profile.columns[1].name), "{}", explained.sentence);

    let late = Question { wish: Wish { since_ms: 3_000, ..Wish::default() }, column: None };
    let late = explain(&test.app, &bundle, late).await.unwrap().remove(0);
    assert_eq!((late.column.name.as_str(), late.column.n), (profile.columns[1].name.as_str(), 3_000));

    let unknown = Question { column: Some("nothing".into()), ..question };
    assert!(matches!(explain(&test.app, &bundle, unknown).await, Err(DriftError::UnknownColumn { .. })));

    let exported = export(&test.app, &bundle, Wish { by_window: true, ..Wish::default() }).await.unwrap();
    let of_class = exported.windows.iter().filter(|window| window.column == profile.columns[1].name);
    let rows: Vec<u64> = of_class.map(|window| window.counts.iter().sum()).collect();
    assert_eq!(rows, [1_000; 5]);
    assert!(exported.cells.values().flatten().any(|(cell, _)| cell == "(missing)"));
}

/// The class as in the reference, or one of them only; `right` of 100 labels agree.
fn counted(profile: &Profile, one_only: bool, right: u64) -> impl FnOnce(&mut SketchWindow) {
    let (columns, spec) = (profile.columns.clone(), profile.labels.clone());
    move |window| {
        for row in 0..100 {
            window.columns[1].add(&columns[1], f64::from(u8::from(!one_only && row % 10 >= 6)));
        }
        let Some(spec) = spec else { return };
        let mut labels = LabelSketch::empty(&spec);
        for row in 0..100 {
            let answer = Prediction::Class(Some((u16::from(row >= right), 0.9)));
            labels.join(&spec, (&answer, &Truth::Class(0)), SliceSet::default(), 60_000);
        }
        window.labels = Some(labels);
    }
}

#[tokio::test]
async fn what_differed_from_the_first_windows_on_is_skew() {
    let test = crate::testing::app().await;
    let profile = crate::testing::profile();
    let now_ms = crate::clock::now_ms() / 1_000 * 1_000;
    for (version, drifts_from) in [("1.0.0", 1), ("1.0.1", 4)] {
        let manifest = test.bundle("digits", version, 10).await;
        let digest = crate::testing::digest_of(&manifest);
        for n in 0..10 {
            let device = test.enrol(&format!("{version}-{n}"), &[]).await;
            for step in 1..=6 {
                let at = (digest, &device, now_ms - 60_000 + step * 1_000);
                store_of(&test, &profile, at, counted(&profile, step >= drifts_from, 0)).await;
            }
        }
        let question = |since_ms| Question { wish: Wish { since_ms, ..Wish::default() }, column: Some("class".into()) };
        let found = explain(&test.app, &manifest.bundle(), question(0)).await.unwrap().remove(0);
        let kind = if drifts_from == 1 { DriftKind::Skew } else { DriftKind::Prediction };
        assert!(found.column.drifted && found.kind == kind, "{found:?}");
        assert_eq!(found.since_ms, Some(now_ms - 60_000 + drifts_from * 1_000));
        // Without the first windows nobody can tell.
        let later = explain(&test.app, &manifest.bundle(), question(now_ms - 57_000)).await.unwrap().remove(0);
        assert_eq!(later.kind, DriftKind::Prediction);
    }
}

#[tokio::test]
async fn concept_drift_is_told_from_labels_where_there_are_any() {
    let test = crate::testing::app().await;
    let half = ClassBaseline { support: 500, predicted: 500, right: 475 };
    let baseline = Baseline::Classification { rows: 1_000, right: 950, classes: vec![half; 2], ece: None };
    let task = LabelTask::Classification { classes: vec!["cat".to_owned(), "dog".to_owned()] };
    for (version, baseline, right, expected, basis) in [
        ("1.0.0", Some(baseline.clone()), [80, 80], DriftKind::Concept, ConceptBasis::LabelsAgainstReference),
        ("1.0.1", Some(baseline), [95, 95], DriftKind::None, ConceptBasis::LabelsAgainstReference),
        ("1.0.2", None, [95, 80], DriftKind::Concept, ConceptBasis::LabelsAgainstEarlier),
        ("1.0.3", None, [80, 80], DriftKind::None, ConceptBasis::LabelsAgainstEarlier),
    ] {
        let labels = Some(LabelSpec { baseline, ..LabelSpec::new("y", task.clone()) });
        let profile = Profile { labels, ..crate::testing::profile() };
        let manifest = test.bundle_with("pets", version, profile.clone()).await;
        let digest = crate::testing::digest_of(&manifest);
        for n in 0..8 {
            let device = test.enrol(&format!("{version}-{n}"), &[]).await;
            for step in 0..4 {
                let right = right[step / 2] + n % 2;
                let at = (digest, &device, (step as u64 + 1) * 1_000);
                store_of(&test, &profile, at, counted(&profile, false, right)).await;
            }
        }
        let question = Question { wish: Wish::default(), column: None };
        let found = explain(&test.app, &manifest.bundle(), question).await.unwrap().remove(0);
        assert_eq!((found.kind, found.concept_basis), (expected, basis), "{version}: {found:?}");
        // Half of the devices have one more right.
        let current = (right[1] as f64 + 0.5) / 100.0;
        assert!((found.concept[0].current - current).abs() < 1e-9, "{version}: {:?}", found.concept);
    }
}

#[tokio::test]
async fn slices_come_worst_first_and_small_ones_are_kept_back() {
    let test = crate::testing::app().await;
    let by = SliceBy::Range { tensor: "x".into(), index: 0, edges: vec![0.5, 1.0, 1.5] };
    let slices = vec![Slicing { name: "x".into(), by }];
    let profile = Profile { slices, ..crate::testing::profile() };
    profile.validate().unwrap();
    let manifest = test.bundle_with("digits", "1.0.0", profile.clone()).await;
    let digest = crate::testing::digest_of(&manifest);
    for n in 0..8 {
        let device = test.enrol(&format!("device-{n}"), &[]).await;
        store_of(&test, &profile, (digest, &device, 1_000), |window| {
            let mut counted = vec![SliceSketch::empty(&profile); profile.slice_count()];
            // Rows of each slice; in the second one of the classes is all there is, and of the last there are 16 rows in all.
            for (slice, rows, one_only) in
                [(0, 100, false), (1, 100, true), (2, 50, false), (3, 100, false), (4, 2, true)]
            {
                let slice = &mut counted[slice];
                slice.rows = rows;
                for row in 0..rows {
                    let class = f64::from(u8::from(!one_only && row % 10 >= 6));
                    slice.columns[1].add(&profile.columns[1], class);
                    window.columns[1].add(&profile.columns[1], class);
                }
            }
            window.slices = SliceSketches::of_counted(counted);
        })
        .await;
    }
    let by_slice = || Wish { by_slice: true, ..Wish::default() };
    let found = report(&test.app, &manifest.bundle(), by_slice()).await.unwrap();
    let told: Vec<_> = found.groups.iter().map(|group| (group.slice.as_deref(), group.suppressed)).collect();
    let expected = [
        (None, false),
        (Some("x=0.5 to 1"), false),
        (Some("x=< 0.5"), false),
        (Some("x=>= 1.5"), false),
        (Some("x=(missing)"), true),
        (Some("x=1 to 1.5"), true),
    ];
    assert_eq!(told, expected, "the next smallest hides the smallest");
    assert!(found.groups[1].columns[1].drifted && !found.groups[2].columns[1].drifted);
    let hidden = &found.groups[4..];
    assert!(hidden.iter().all(|group| group.columns.is_empty() && group.devices == 0 && group.windows == 0));
    let exported = export(&test.app, &manifest.bundle(), by_slice()).await.unwrap();
    let slices: std::collections::BTreeSet<_> =
        exported.windows.iter().filter_map(|window| window.slice.as_deref()).collect();
    assert_eq!(slices.into_iter().collect::<Vec<_>>(), ["x=0.5 to 1", "x=< 0.5", "x=>= 1.5"]);
}

#[tokio::test]
async fn many_steps_become_longer_ones_and_nothing_is_lost() {
    let test = crate::testing::app().await;
    let manifest = test.bundle("digits", "1.0.0", 10).await;
    let (bundle, digest) = (manifest.bundle(), crate::testing::digest_of(&manifest));
    let device = test.enrol("a", &[]).await;
    for step in 1..=60 {
        store(&test, digest, &device, step * 1_000, 0.0).await;
    }
    // A clock that runs far ahead makes no step in the future.
    store(&test, digest, &device, u64::MAX / 4, 0.0).await;
    let steps = report(&test.app, &bundle, Wish { by_window: true, ..Wish::default() }).await.unwrap();
    assert!(steps.groups.len() <= collect::MAX_STEPS && steps.groups.len() > 20, "{}", steps.groups.len());
    assert_eq!(steps.groups.iter().map(|group| group.windows).sum::<u64>(), 61);
    assert!(steps.groups.windows(2).all(|pair| pair[0].start_ms < pair[1].start_ms));
}

/// A bundle with quantiles of its number and objectives for latency, and one window of each of two devices.
async fn watched(test: &TestApp) -> BundleRef {
    let objectives = Objectives { latency_us: vec![50_000, 100_000] };
    let profile = Profile { quantiles: vec![0], objectives: objectives.clone(), ..crate::testing::profile() };
    let manifest = test.bundle_with("press", "1.0.0", profile.clone()).await;
    let digest = crate::testing::digest_of(&manifest);
    for (name, site, offset) in [("a", "lyon", 0.0), ("b", "oslo", 100.0)] {
        let device = test.enrol(name, &[("site", site)]).await;
        let key = WindowKey { manifest: digest, generation: 1, start_ms: 1_000, duration_ms: 1_000 };
        let mut window = SketchWindow::empty(key, &profile);
        let mut kept = QuantileSketch::default();
        let mut counts = ObjectiveCounts::empty(&objectives);
        for row in 0..100_u32 {
            window.columns[0].add(&profile.columns[0], offset + f64::from(row));
            kept.add(offset + f64::from(row));
            // Of every device: 49 above the one edge, and above the other one of lyon's and none of oslo's.
            counts.add(u64::from(row) * 1_000 + if offset == 0.0 && row == 99 { 5_000 } else { 0 });
        }
        window.quantiles = QuantileSketches::of_counted(vec![Some(kept)]);
        let telemetry = TelemetryWindow {
            key,
            requests: RequestCounts { served: 100, ..RequestCounts::default() },
            latency_us: LatencySketch::default(),
            resources: Resources::default(),
            comparison: None,
            objectives: counts,
            numbers: Default::default(),
            program: None,
        };
        for (stream, telemetry, sketch) in
            [(Stream::Telemetry, Some(telemetry), None), (Stream::Sketch, None, Some(window))]
        {
            let position = Position { epoch: 1, sequence: 1, oldest: 1 };
            let record = WindowRecord {
                device: device.clone(),
                received_at_ms: 6_000,
                position,
                key,
                telemetry,
                sketch: sketch.map(|body| Sequenced { position, body }.encode()),
                crash: false,
                program: None,
            };
            let at = window_key(6_000, &device, stream, &position);
            let change = Records::put(Table::Windows, at, Expect::Absent, &record).unwrap();
            test.app.records.commit(vec![change]).await.unwrap();
        }
    }
    manifest.bundle()
}

#[tokio::test]
async fn quantiles_and_objectives_are_told_by_group() {
    let test = crate::testing::app().await;
    let bundle = watched(&test).await;
    let all = report(&test.app, &bundle, Wish::default()).await.unwrap();
    let [group] = &all.groups[..] else { panic!("{all:?}") };
    let [quantiles] = &group.quantiles[..] else { panic!("{group:?}") };
    assert_eq!((quantiles.column.as_str(), quantiles.n), ("x", 200));
    let median = quantiles.quantiles.iter().find(|(rank, _)| (rank - 0.5).abs() < 1e-9).unwrap().1;
    assert!((median - 100.0).abs() <= 200.0 * 2.0 * quantiles.rank_error, "{median}");
    let above: Vec<_> = group.objectives.iter().map(|count| (count.edge_us, count.served, count.above)).collect();
    assert_eq!(above, [(50_000, 200, 98), (100_000, 200, 1)]);

    let by_site = Wish { group_by: Some("site".into()), ..Wish::default() };
    let sites = report(&test.app, &bundle, by_site.clone()).await.unwrap();
    let shown = |group: &DriftGroup| (group.group.clone(), group.quantiles[0].n, group.objectives[1].above);
    assert_eq!(sites.groups.iter().map(shown).collect::<Vec<_>>(), [("lyon".into(), 100, 1), ("oslo".into(), 100, 0)]);

    let exported = quantiles_of(&test, &bundle, by_site).await;
    assert_eq!(exported.len(), 2);
    // So few values are all in the bytes: that is what the warning is about.
    let (least, most) = (exported[1].quantiles(&[0.0]).unwrap()[0], exported[1].quantiles(&[1.0]).unwrap()[0]);
    assert_eq!((least, most), (100.0, 199.0));
    let late = Wish { since_ms: 5_000, ..Wish::default() };
    assert!(quantiles_of(&test, &bundle, late.clone()).await.is_empty());
    assert!(report(&test.app, &bundle, late).await.unwrap().groups.is_empty());
    // A bundle that asks for neither has neither.
    let plain = test.bundle("digits", "1.0.0", 10).await;
    let device = test.enrol("c", &[]).await;
    store(&test, crate::testing::digest_of(&plain), &device, 1_000, 0.0).await;
    let plain = report(&test.app, &plain.bundle(), Wish::default()).await.unwrap();
    assert!(plain.groups[0].quantiles.is_empty() && plain.groups[0].objectives.is_empty());
}

async fn quantiles_of(test: &TestApp, bundle: &BundleRef, wish: Wish) -> Vec<QuantileSketch> {
    let sketches = quantiles(&test.app, bundle, wish).await.unwrap().sketches;
    let bytes = sketches.iter().map(|sketch| STANDARD.decode(&sketch.sketch).unwrap());
    bytes.map(|bytes| QuantileSketch::from_bytes(&bytes).unwrap()).collect()
}
