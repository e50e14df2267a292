//! What is told of windows in a real store.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_shared::api::DriftKind;
use muster_shared::ids::DeviceId;
use muster_shared::messages::{Position, RequestCounts, Resources, Sequenced, Stream, TelemetryWindow, WindowKey};
use muster_shared::profile::{Objectives, Profile};
use muster_shared::sketch::{LatencySketch, ObjectiveCounts, QuantileSketches, SketchWindow};

use super::*;
use crate::store::records::{WindowRecord, window_key};
use crate::store::{Expect, Records, Table};
use crate::testing::TestApp;

/// A window of 100 rows in which the model's class was `class`, and that started at `start_ms`.
async fn store(test: &TestApp, manifest: muster_shared::ids::Digest, device: &DeviceId, start_ms: u64, class: f64) {
    let profile = crate::testing::profile();
    let key = WindowKey { manifest, generation: 1, start_ms, duration_ms: 1_000 };
    let mut window = SketchWindow::empty(key, &profile);
    (0..100).for_each(|_| window.columns[1].add(&profile.columns[1], class));
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
    };
    let at = window_key(received_at_ms, device, Stream::Sketch, &position);
    let change = Records::put(Table::Windows, at, Expect::Absent, &record).unwrap();
    test.app.records.commit(vec![change]).await.unwrap();
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
    // The one that saw both as before hides the drift of the others.
    let hides = explained.contributors.last().unwrap();
    assert!(hides.device.as_str() == "device-0" && hides.contribution < 0.0, "{:?}", explained.contributors);
    let kind = if explained.column.drifted { DriftKind::Prediction } else { DriftKind::None };
    assert_eq!(explained.kind, kind);
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
