//! Collections without a network: what devices are told, what is taken in, and what is written down.

use muster_shared::api::EventView;
use muster_shared::collection::{
    Batch, CloseCollection, CollectionProgress, CollectionStage, CollectionStatus, CreateCollection, Phase,
    RecipientSecret, Rule, SampleLimits, SamplesReport, seal,
};
use muster_shared::ids::{CollectionId, DeviceId, Digest};
use muster_shared::messages::{CollectionsDelivery, StateReport};
use muster_shared::topics::{Down, Topic};
use muster_shared::trust::TrustedRoot;
use zeroize::Zeroizing;

use super::*;
use crate::testing::{TestApp, app, app_with};

fn wish(selector: &str) -> CreateCollection {
    CreateCollection {
        selector: selector.parse().unwrap(),
        bundles: vec!["digits@1.0.0".parse().unwrap()],
        rule: Rule::Random { share: 1.0 },
        per_device: SampleLimits { max_count: 4, max_bytes: 10_000 },
        max_total_count: 6,
        max_total_bytes: 100_000,
        duration_ms: 3_600_000,
        upload_within_ms: 3_600_000,
        recipient: RecipientSecret::parse(&"17".repeat(32)).unwrap().public(),
        purpose: "tests".into(),
    }
}

fn batch(device: &DeviceId, id: &CollectionId, samples: usize, seed: u8) -> Vec<u8> {
    let mut batch = Batch::default();
    for n in 0..samples {
        let seed = Zeroizing::new([seed ^ u8::try_from(n).unwrap(); 32]);
        let recipient = wish("*").recipient;
        batch.push(&seal::seal(&recipient, id, device, &seed, vec![7; 100]).unwrap());
    }
    batch.into_bytes()
}

/// What the device was told since the last look, verified as a device does.
fn told(test: &TestApp, device: &DeviceId) -> Vec<(u64, Vec<Wanted>)> {
    let root = TrustedRoot::first(test.root(), None).unwrap();
    let mine = test.broker.take().into_iter().filter(|(topic, _)| *topic == Topic::down(device, Down::Samples));
    mine.map(|(_, payload)| {
        let delivery: CollectionsDelivery = serde_json::from_slice(&payload).unwrap();
        let document = root.verify_collections(&delivery.collections, device, clock::now_ms()).unwrap();
        (document.generation, document.collections)
    })
    .collect()
}

async fn events(test: &TestApp) -> Vec<EventView> {
    test.app.events.list(0, None, None, 1_000).await.unwrap().events
}

fn says(app: &App, device: &DeviceId, generation: u64, id: &CollectionId, held: u64) {
    let progress = CollectionProgress { held, ..CollectionProgress::new(id.clone(), CollectionStage::Sampling) };
    let samples = SamplesReport { generation, allowed: true, collections: vec![progress] };
    app.fleet.update_report(device, StateReport { samples, ..StateReport::default() });
}

#[tokio::test]
async fn devices_are_told_what_is_stored_under_a_number_that_grows_with_every_change() {
    let test = app().await;
    let app = &test.app;
    test.bundle("digits", "1.0.0", 10).await;
    let (lyon, quito) =
        (test.enrol("dev-1", &[("site", "lyon")]).await, test.enrol("dev-2", &[("site", "quito")]).await);
    for device in [&lyon, &quito] {
        app.fleet.set_online(device, true, 1);
        // Whoever takes no part hears nothing.
        tell(app, device).await;
    }
    assert_eq!((told(&test, &lyon), app.collections.told_devices()), (vec![], vec![]));

    let view = open(app, wish("site=lyon"), "ann").await.unwrap();
    assert_eq!((view.status, view.devices_total), (CollectionStatus::Open, 1));
    tell::resolve(app).await;
    let said = told(&test, &lyon);
    assert_eq!((said.len(), said[0].0, said[0].1[0].phase), (1, 1, Phase::Open));
    // Said again, it is the same statement; one that did not answer is told again, one that did is not.
    tell(app, &lyon).await;
    assert_eq!(told(&test, &lyon)[0], said[0]);
    says(app, &lyon, 0, &view.id, 0);
    tell::remind(app, clock::now_ms() + 20_000).await;
    assert_eq!(told(&test, &lyon).len(), 1);
    says(app, &lyon, 1, &view.id, 0);
    tell::remind(app, clock::now_ms() + 40_000).await;
    assert_eq!(told(&test, &lyon), vec![]);

    // Another controller over the same store goes on with the numbers.
    let again = CollectionIndex::load(&app.records).await.unwrap();
    assert_eq!(again.told(&lyon).unwrap().order.value, app.collections.told(&lyon).unwrap().order.value);

    close(app, &view.id, &CloseCollection::default(), "ann").await.unwrap();
    tell::resolve(app).await;
    let said = told(&test, &lyon);
    assert_eq!((said[0].0, said[0].1[0].phase), (2, Phase::Closed));
    assert!(matches!(close(app, &view.id, &CloseCollection::default(), "ann").await, Err(CollectionError::Closed(_))));
    // A device that has accepted more than is stored here is told under a higher number still.
    says(app, &lyon, 9, &view.id, 0);
    close(app, &view.id, &CloseCollection { discard: true, reason: None }, "ann").await.unwrap();
    tell::resolve(app).await;
    assert_eq!(told(&test, &lyon), vec![(10, vec![])]);
    assert_eq!(app.collections.told_devices(), [lyon]);
}

#[tokio::test]
async fn a_batch_is_taken_in_once_and_within_the_limits() {
    let test = app().await;
    let app = &test.app;
    test.bundle("digits", "1.0.0", 10).await;
    let devices = [test.enrol("dev-1", &[]).await, test.enrol("dev-2", &[]).await, test.enrol("dev-3", &[]).await];
    let id = open(app, wish("id!=dev-3"), "ann").await.unwrap().id;
    tell::resolve(app).await;
    let [one, two, three] = &devices;
    let content = batch(one, &id, 2, 1);
    let bring =
        async |device: &DeviceId, number, of, content: &[u8]| receive(app, device, &id, (number, of), content).await;
    for _ in 0..2 {
        let stored = bring(one, 0, 2, &content).await.unwrap();
        assert_eq!((stored.samples, stored.sha256), (2, Digest::of(&content)));
    }
    assert_eq!(view(app, &id).unwrap().samples, 2, "the same batch counts once");
    assert!(matches!(bring(one, 0, 2, &batch(one, &id, 2, 9)).await, Err(CollectionError::Changed(0))));
    bring(one, 1, 2, &batch(one, &id, 2, 2)).await.unwrap();
    // Four of one device, six altogether; and nothing from whoever was not asked.
    assert!(matches!(bring(one, 2, 3, &batch(one, &id, 1, 3)).await, Err(CollectionError::NotWanted { .. })));
    assert!(matches!(bring(two, 0, 1, &batch(two, &id, 3, 4)).await, Err(CollectionError::NotWanted { .. })));
    assert!(matches!(bring(three, 0, 1, &batch(three, &id, 1, 4)).await, Err(CollectionError::NotWanted { .. })));
    for rubbish in [&b""[..], b"rubbish", &content[..content.len() - 1]] {
        assert!(matches!(bring(two, 0, 1, rubbish).await, Err(CollectionError::Batch(_))));
    }
    assert!(matches!(bring(two, 3, 3, &batch(two, &id, 1, 4)).await, Err(CollectionError::Batch(_))));
    bring(two, 0, 1, &batch(two, &id, 2, 4)).await.unwrap();
    let other = CollectionId::new("c99").unwrap();
    assert!(matches!(receive(app, one, &other, (0, 1), &content).await, Err(CollectionError::Unknown(_))));

    // Another controller over the same store knows what there is; deleted, nothing is left.
    let again = CollectionIndex::load(&app.records).await.unwrap().get(&id).unwrap();
    assert_eq!((again.samples, again.devices.len()), (6, 2));
    assert_eq!(batches(app, &id, None).await.unwrap().len(), 3);
    assert_eq!(batches(app, &id, Some(two)).await.unwrap().len(), 1);
    let folder = folder(app, &id);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
    delete(app, &id, "ann", "a test").await.unwrap();
    assert!(!folder.exists() && app.collections.get(&id).is_none());
    assert!(app.records.all::<SampleBatch>(crate::store::Table::SampleBatches, "").await.unwrap().is_empty());
    let kinds: Vec<String> = events(&test).await.into_iter().map(|event| event.kind).collect();
    for kind in ["collection.opened", "collection.received", "collection.deleted"] {
        assert!(kinds.iter().any(|known| known == kind), "{kind} is not among {kinds:?}");
    }
    assert_eq!(kinds.iter().filter(|kind| *kind == "collection.received").count(), 2);
}

#[tokio::test]
async fn a_collection_is_stopped_by_what_devices_hold_and_by_its_time() {
    let test = app().await;
    let app = &test.app;
    test.bundle("digits", "1.0.0", 10).await;
    let device = test.enrol("dev-1", &[]).await;
    let held = open(app, wish("*"), "ann").await.unwrap().id;
    says(app, &device, 1, &held, 5);
    end_what_is_over(app, clock::now_ms()).await;
    assert!(view(app, &held).unwrap().closing.is_none());
    says(app, &device, 1, &held, 6);
    end_what_is_over(app, clock::now_ms()).await;
    let closing = view(app, &held).unwrap().closing.unwrap();
    assert!(closing.by == "controller" && closing.reason.contains("6 samples"), "{closing:?}");

    let timed = open(app, wish("*"), "ann").await.unwrap();
    end_what_is_over(app, timed.ends_ms).await;
    assert!(view(app, &timed.id).unwrap().closing.unwrap().reason.contains("time is up"));
    // Kept as long as configured, then gone.
    let timed = view(app, &timed.id).unwrap();
    tidy(app, timed.upload_by_ms + app.config.samples.retention_ms - 1).await;
    assert!(app.collections.get(&timed.id).is_some());
    tidy(app, timed.upload_by_ms + app.config.samples.retention_ms).await;
    assert!(app.collections.get(&timed.id).is_none());
}

#[tokio::test]
async fn there_are_bounds_and_wishes_that_make_no_sense_are_refused() {
    let test = app_with(|config| config.samples.max_bytes = 300).await;
    let app = &test.app;
    assert!(matches!(open(app, wish("*"), "ann").await, Err(CollectionError::UnknownBundle(_))));
    test.bundle("digits", "1.0.0", 10).await;
    let device = test.enrol("dev-1", &[]).await;
    for change in [
        |wish: &mut CreateCollection| wish.bundles.clear(),
        |wish: &mut CreateCollection| wish.duration_ms = 0,
        |wish: &mut CreateCollection| wish.upload_within_ms = u64::MAX,
        |wish: &mut CreateCollection| wish.max_total_count = 0,
        |wish: &mut CreateCollection| wish.rule = Rule::Random { share: 2.0 },
        |wish: &mut CreateCollection| wish.per_device.max_count = 0,
    ] {
        let mut wish = wish("*");
        change(&mut wish);
        assert!(matches!(open(app, wish, "ann").await, Err(CollectionError::Spec(_))));
    }
    let first = open(app, wish("*"), "ann").await.unwrap().id;
    tell::resolve(app).await;
    let full = receive(app, &device, &first, (0, 1), &batch(&device, &first, 2, 1)).await;
    assert!(matches!(full, Err(CollectionError::Full(_))), "{full:?}");
    receive(app, &device, &first, (0, 1), &batch(&device, &first, 1, 1)).await.unwrap();
    for _ in 1..8 {
        open(app, wish("*"), "ann").await.unwrap();
    }
    assert!(matches!(open(app, wish("*"), "ann").await, Err(CollectionError::TooMany(_))));
}
