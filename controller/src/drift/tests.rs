//! What is told of windows in a real store.

use muster_shared::api::DriftKind;
use muster_shared::ids::DeviceId;
use muster_shared::messages::{Position, Sequenced, Stream, WindowKey};
use muster_shared::sketch::SketchWindow;

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
