use muster_shared::topics::Kind;
use serde_json::json;

use super::*;
use crate::testing::{TestApp, app, app_with};

fn label(device: Option<&DeviceId>, id: &str) -> FeedbackLine {
    let item = FeedbackItem { id: id.into(), label: json!(1), ..FeedbackItem::default() };
    FeedbackLine { device: device.cloned(), item }
}

/// What was sent to devices since the last call.
fn sent(test: &TestApp) -> Vec<(DeviceId, FeedbackDelivery)> {
    let published = test.broker.take();
    let labels = published.into_iter().filter(|(topic, _)| topic.kind == Kind::Down(Down::Feedback));
    labels.map(|(topic, payload)| (topic.device, serde_json::from_slice(&payload).unwrap())).collect()
}

fn receipt(delivery: &FeedbackDelivery, joined: u64) -> FeedbackReceipt {
    FeedbackReceipt { batch: delivery.batch, counts: FeedbackCounts { joined, ..FeedbackCounts::default() } }
}

#[tokio::test]
async fn labels_wait_for_their_device_and_go_when_it_has_taken_them() {
    let test = app().await;
    let device = test.enrol("a", &[]).await;
    let labels: Vec<_> = (0..MAX_FEEDBACK_ITEMS + 5).map(|n| label(Some(&device), &format!("i{n}"))).collect();
    let pushed = push(&test.app, labels, None, "ann").await.unwrap();
    assert_eq!((pushed.accepted, pushed.devices, pushed.refused), (MAX_FEEDBACK_ITEMS as u64 + 5, 1, vec![]));
    assert_eq!(sent(&test), [], "it is away");

    test.app.fleet.set_online(&device, true, 1);
    deliver(&test.app, &device).await;
    let [(to, first)] = &sent(&test)[..] else { panic!() };
    assert_eq!((to, first.items.len(), first.items[0].id.as_str()), (&device, MAX_FEEDBACK_ITEMS, "i0"));
    deliver(&test.app, &device).await;
    assert_eq!(sent(&test), [], "it has had little time");
    // It came back, so the message may be lost.
    test.app.feedback.connected(&device);
    deliver(&test.app, &device).await;
    assert_eq!(sent(&test)[0].1, *first);

    let stranger = FeedbackReceipt { batch: Digest::of(b"x"), counts: FeedbackCounts::default() };
    assert!(!received(&test.app, &device, &stranger).await.unwrap());
    assert!(received(&test.app, &device, &receipt(first, 990)).await.unwrap());
    assert!(!received(&test.app, &device, &receipt(first, 990)).await.unwrap(), "it counts once");
    let [(_, second)] = &sent(&test)[..] else { panic!("the next one follows at once") };
    assert_eq!(second.items.len(), 5);
    // What was not acknowledged is still there after a restart.
    let reopened = FeedbackQueue::load(&test.app.records).await.unwrap();
    assert_eq!(reopened.of(&device), (5, 1));
    assert!(received(&test.app, &device, &receipt(second, 5)).await.unwrap());
    let [standing] = &standing(&test.app, None, 10).await.unwrap()[..] else { panic!() };
    assert_eq!((standing.waiting, standing.results.joined, standing.expired), (0, 995, 0));
}

#[tokio::test]
async fn what_cannot_be_routed_is_refused_with_the_reason() {
    let test = app().await;
    let (known, gone) = (test.enrol("a", &[("site", "lyon")]).await, test.enrol("b", &[]).await);
    test.revoke(&gone).await;
    let error = push(&test.app, vec![label(Some(&known), "x"), label(None, "y")], None, "ann").await.unwrap_err();
    assert!(error.to_string().contains("label 2 names no device"), "{error}");
    assert_eq!(test.app.feedback.of(&known), (0, 0), "nothing is taken then");
    let stranger = DeviceId::new("nobody").unwrap();
    let labels = vec![label(Some(&gone), "x"), label(Some(&stranger), "x"), label(Some(&known), "x")];
    let pushed = push(&test.app, labels.clone(), None, "ann").await.unwrap();
    let refused: Vec<&str> = pushed.refused.iter().map(|refused| refused.device.as_str()).collect();
    assert_eq!((pushed.accepted, refused), (1, vec!["b", "nobody"]));
    let selector: Selector = "site=oslo".parse().unwrap();
    let pushed = push(&test.app, labels, Some(&selector), "ann").await.unwrap();
    assert_eq!((pushed.accepted, pushed.refused.len()), (0, 3));
    let long = FeedbackLine {
        device: Some(known.clone()),
        item: FeedbackItem { id: "x".repeat(70_000), ..FeedbackItem::default() },
    };
    assert!(matches!(push(&test.app, vec![long], None, "ann").await, Err(FeedbackError::TooLong(1))));
    for at in 0..MAX_WAITING_OF_DEVICE {
        let batch = WaitingBatch { labels: 1, expires_ms: u64::MAX };
        test.app.feedback.add(&known, at.to_string(), batch);
    }
    assert!(matches!(
        push(&test.app, vec![label(Some(&known), "x")], None, "ann").await,
        Err(FeedbackError::Full { limit: MAX_WAITING_OF_DEVICE, .. })
    ));
}

#[tokio::test]
async fn labels_that_nobody_takes_expire_and_are_counted() {
    let test = app_with(|config| config.feedback.valid_for_ms = 1).await;
    let device = test.enrol("a", &[]).await;
    push(&test.app, vec![label(Some(&device), "x"), label(Some(&device), "y")], None, "ann").await.unwrap();
    expire(&test.app, &device, 0).await.unwrap();
    assert_eq!(test.app.feedback.of(&device), (2, 1));
    expire(&test.app, &device, clock::now_ms() + 10).await.unwrap();
    assert_eq!(test.app.feedback.of(&device), (0, 0));
    let [standing] = &standing(&test.app, None, 10).await.unwrap()[..] else { panic!() };
    assert_eq!((standing.waiting, standing.expired), (0, 2));
}

#[test]
fn batches_are_small_enough_for_a_slow_line() {
    let items = |count: usize, id: usize| -> Vec<FeedbackItem> {
        (0..count).map(|_| FeedbackItem { id: "x".repeat(id), ..FeedbackItem::default() }).collect()
    };
    assert_eq!(batches(items(2_500, 10)).iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 500]);
    for batch in batches(items(300, 1_000)) {
        let delivery = FeedbackDelivery { batch: Digest::of(b"x"), items: batch };
        assert!(serde_json::to_vec(&delivery).unwrap().len() <= MAX_DELIVERED_FEEDBACK_BYTES);
    }
    assert!(batches(Vec::new()).is_empty());
}
