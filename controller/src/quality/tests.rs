use muster_shared::ids::Digest;
use muster_shared::labels::{LabelTask, Prediction, Truth};
use muster_shared::messages::{Position, Sequenced, Stream, WindowKey};
use muster_shared::profile::{SliceSet, Slicing};
use muster_shared::quality::Baseline;
use muster_shared::sketch::SketchWindow;

use super::*;
use crate::store::records::{WindowRecord, window_key};
use crate::store::{Expect, Records, Table};
use crate::testing::{TestApp, digest_of, profile};

const ALL: Wish<'static> = Wish { group_by: None, since_ms: 0, trend_ms: 1_000 };

/// The profile of the tests with labels of its classes, and slices of its input and of the device's site.
pub(crate) fn labelled() -> Profile {
    let classes = vec!["cat".to_owned(), "dog".to_owned()];
    let half = muster_shared::quality::ClassBaseline { support: 500, predicted: 500, right: 475 };
    let baseline = Baseline::Classification { rows: 1_000, right: 950, classes: vec![half; 2], ece: None };
    let task = LabelTask::Classification { classes };
    let by = SliceBy::Range { tensor: "x".into(), index: 0, edges: vec![1.0] };
    let profile = Profile {
        labels: Some(LabelSpec { baseline: Some(baseline), ..LabelSpec::new("y", task) }),
        slices: vec![
            Slicing { name: "x".into(), by },
            Slicing { name: "site".into(), by: SliceBy::Label { label: "site".into() } },
        ],
        ..profile()
    };
    profile.validate().unwrap();
    profile
}

/// A window of one device: right and wrong answers, in a slice.
pub(crate) async fn window(test: &TestApp, device: &DeviceId, manifest: Digest, at: (u64, u8), n: (u64, u64)) {
    let (profile, (start_ms, slice), (right, wrong)) = (labelled(), at, n);
    let spec = profile.labels.clone().unwrap();
    let key = WindowKey { manifest, generation: 1, start_ms, duration_ms: 1_000 };
    let mut body = SketchWindow::empty(key, &profile);
    let mut labels = LabelSketch::empty(&spec);
    labels.predictions = (right + wrong) * 2;
    for row in 0..right + wrong {
        let answer = Prediction::Class(Some((u16::from(row >= right), 0.9)));
        labels.join(&spec, (&answer, &Truth::Class(0)), SliceSet::default().with(slice), 60_000);
        labels.results.joined += 1;
    }
    body.labels = Some(labels);
    let position = Position { epoch: 1, sequence: start_ms + u64::from(slice) + 1, oldest: 1 };
    let record = WindowRecord {
        device: device.clone(),
        received_at_ms: 5_000,
        position,
        key,
        telemetry: None,
        sketch: Some(Sequenced { position, body }.encode()),
        crash: false,
        program: None,
    };
    let at = window_key(5_000, device, Stream::Sketch, &position);
    test.app.records.commit(vec![Records::put(Table::Windows, at, Expect::Absent, &record).unwrap()]).await.unwrap();
}

#[tokio::test]
async fn groups_slices_and_times_are_told_apart() {
    let test = crate::testing::app().await;
    let manifest = test.bundle_with("pets", "1.0.0", labelled()).await;
    let (bundle, digest) = (manifest.bundle(), digest_of(&manifest));
    let lyon = test.enrol("a", &[("site", "lyon")]).await;
    let oslo = test.enrol("b", &[("site", "oslo")]).await;
    window(&test, &lyon, digest, (0, 0), (95, 5)).await;
    window(&test, &lyon, digest, (1_000, 1), (80, 20)).await;
    window(&test, &oslo, digest, (1_500, 0), (40, 60)).await;
    window(&test, &oslo, digest, (2_000, 2), (5, 0)).await;

    let whole = report(&test.app, &bundle, ALL).await.unwrap();
    let [group] = &whole.groups[..] else { panic!("{whole:?}") };
    assert_eq!((group.devices, group.windows, group.quality.labels), (2, 4, 305));
    let accuracy = group.quality.classification.as_ref().unwrap().accuracy;
    assert!((accuracy.value - 220.0 / 305.0).abs() < 1e-12, "{accuracy:?}");
    // Two devices that disagree say little about the fleet.
    assert!(accuracy.low.unwrap() < 0.2, "{accuracy:?}");
    assert_eq!((group.standing.predictions, group.standing.results.joined), (610, 305));
    assert!((group.standing.coverage.unwrap() - 0.5).abs() < 1e-12);
    assert!((group.standing.delay_p50_ms.unwrap() / 60_000.0 - 1.0).abs() < 0.03, "{:?}", group.standing);
    // The five of the third slice are kept back, and with them the next smallest, or they would be the rest.
    let slices: Vec<(&str, bool)> = group.slices.iter().map(|s| (s.slice.as_str(), s.quality.suppressed)).collect();
    assert_eq!(slices[0], ("site=oslo", false), "the worst comes first: {slices:?}");
    assert!(slices.contains(&("x=(missing)", true)) && slices.contains(&("x=>= 1", true)), "{slices:?}");
    assert!(slices.contains(&("x=< 1", false)) && slices.contains(&("site=lyon", false)), "{slices:?}");
    let trend: Vec<(u64, u64)> = group.trend.iter().map(|point| (point.start_ms, point.quality.labels)).collect();
    assert_eq!(trend, [(0, 100), (1_000, 200), (2_000, 5)]);
    assert!(group.trend[2].quality.suppressed && group.trend[2].quality.classification.is_none());
    assert_eq!(group.concept.len(), 1);

    let by_site = Wish { group_by: Some("site"), since_ms: 1_000, ..ALL };
    let parts = report(&test.app, &bundle, by_site).await.unwrap();
    let shown: Vec<_> = parts.groups.iter().map(|g| (g.group.as_str(), g.quality.labels)).collect();
    assert_eq!(shown, [("lyon", 100), ("oslo", 105)]);
    let oslo = &parts.groups[1];
    assert!(oslo.concept[0].drifted && oslo.concept[0].metric == "accuracy", "{:?}", oslo.concept);
}

#[tokio::test]
async fn a_bundle_without_labels_has_no_groups_and_one_that_is_not_there_is_named() {
    let test = crate::testing::app().await;
    let manifest = test.bundle("plain", "1.0.0", 10).await;
    let bare = report(&test.app, &manifest.bundle(), ALL).await.unwrap();
    assert_eq!((bare.task, bare.groups.len(), bare.baseline), (None, 0, None));
    let unknown = report(&test.app, &"plain@2.0.0".parse().unwrap(), ALL).await;
    assert!(matches!(unknown, Err(ReportError::UnknownBundle(_))));
}

/// A group of any number of devices keeps a bounded number of sums, and loses no label.
#[test]
fn a_large_fleet_is_put_together_in_clusters() {
    let profile = labelled();
    let spec = profile.labels.clone().unwrap();
    let mut labels = LabelSketch::empty(&spec);
    labels.join(&spec, (&Prediction::Class(Some((0, 0.5))), &Truth::Class(0)), SliceSet::default().with(0), 1);
    let mut group = Group::default();
    for device in 0..2_000 {
        let device = DeviceId::new(format!("d{device}")).unwrap();
        let told = vec![SliceName { slicing: "site".into(), slice: device.to_string() }];
        group.add(&spec, &device, &labels, (&profile.slice_names(), told), device.as_str().len() as u64);
    }
    assert_eq!((group.devices.len(), group.all.len()), (2_000, CLUSTERS));
    assert!(group.slices.len() <= MAX_SLICES_OF_ONE + 2, "{}", group.slices.len());
    assert!(group.trend.values().all(|clusters| clusters.len() <= TREND_CLUSTERS));
    let shown = group.show(String::new(), &spec);
    assert_eq!((shown.quality.labels, shown.devices), (2_000, 2_000));
}
