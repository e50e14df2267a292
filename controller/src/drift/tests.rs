//! What is told of windows in a real store.

use muster_shared::messages::{Position, Sequenced, Stream, WindowKey};
use muster_shared::sketch::SketchWindow;

use super::*;
use crate::store::records::{WindowRecord, window_key};
use crate::store::{Expect, Records, Table};

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
    assert!(matches!(unknown, Err(DriftError::UnknownBundle(_))));
}
