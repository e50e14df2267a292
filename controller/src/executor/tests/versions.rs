//! Devices whose agents are older than the controller: what they are told, and what not.

use muster_shared::rollout::BlueGreen;
use muster_shared::trust::{Activation, Stage};

use super::*;

/// The fields of the assignments published for `device`, as they stand in the signed documents.
fn fields(published: &[(Topic, Bytes)], device: &DeviceId) -> Vec<BTreeSet<String>> {
    let ours =
        published.iter().filter(|(topic, _)| topic.device == *device && topic.kind == Kind::Down(Down::Assignment));
    ours.map(|(_, payload)| {
        let delivery: AssignmentDelivery = serde_json::from_slice(payload).unwrap();
        let document: serde_json::Value =
            serde_json::from_slice(&delivery.assignment.payload_bytes().unwrap()).unwrap();
        document.as_object().unwrap().keys().cloned().collect()
    })
    .collect()
}

/// What assignments held before any device said what it understands.
fn first_fields() -> BTreeSet<String> {
    ["device", "rollout", "manifest", "generation", "issued_at_ms", "expires_ms", "watch"].map(str::to_owned).into()
}

/// The device says that it has `bundle`, and is of number `protocol`.
fn settled(test: &TestApp, device: &DeviceId, bundle: &Manifest, generation: u64, protocol: u32) {
    let own = InstalledBundle { manifest: digest_of(bundle), bundle: bundle.bundle(), generation };
    let update = UpdateReport {
        state: UpdateState::Committed,
        generation,
        manifest: Some(digest_of(bundle)),
        ..UpdateReport::default()
    };
    let attributes = [("agent-version".to_owned(), "0.1.0".to_owned())].into();
    let report = StateReport {
        generation,
        update,
        running: Some(own.clone()),
        committed: Some(own),
        can_hold: true,
        attributes,
        protocol,
        ..StateReport::default()
    };
    test.app.fleet.update_report(device, report);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_there_and_back_is_written_as_the_first_agents_read_it() {
    let test = app().await;
    let devices = fleet(&test, &["old"]).await;
    let (before, bundle) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    test.desire(&devices[0], Some(digest_of(&before)), 1).await;
    settled(&test, &devices[0], &before, 1, 0);
    let (id, wish) = (RolloutId::new("r1").unwrap(), spec(&bundle, "*", &["100%"]));
    assert!(!wish.delivery.is_default());
    create(&test.app, wish, "alice", None).await.unwrap();
    pass::pass(&test.app).await;
    pass::pass(&test.app).await;
    let there = fields(&test.broker.take(), &devices[0]);
    assert!(!there.is_empty() && there.iter().all(|fields| *fields == first_fields()), "{there:?}");
    act(&test.app, &id, OperatorAction::Rollback, "alice", None).await.unwrap();
    let mut back = Vec::new();
    plan_until(&test, &id, is(RolloutStatus::RollingBack)).await;
    reissue(&test.app, &devices[0]).await;
    back.extend(test.broker.take());
    let told = assignments(&test, &back);
    assert_eq!(told.last().map(|told| told.manifest), Some(Some(digest_of(&before))));
    assert_eq!(told.last().map(|told| told.delivery), Some(DeliveryPolicy::default()), "what eases it is left out");
    assert!(fields(&back, &devices[0]).iter().all(|fields| *fields == first_fields()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_does_not_know_leaves_it_out_with_the_reason() {
    let test = app().await;
    let devices = fleet(&test, &["new", "old"]).await;
    let (before, bundle) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    for (device, protocol) in devices.iter().zip([PROTOCOL, 0]) {
        test.desire(device, Some(digest_of(&before)), 1).await;
        settled(&test, device, &before, 1, protocol);
    }
    let shadow = RolloutSpec { stage: Stage::Shadow { share_bp: 10_000 }, ..spec(&bundle, "*", &["100%"]) };
    let id = create(&test.app, shadow, "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    let about: BTreeSet<_> =
        told.iter().filter(|told| told.manifest == Some(digest_of(&bundle))).map(|told| told.device.as_str()).collect();
    assert!(!about.contains("old"), "{about:?}");
    let shown = serde_json::to_string(&view(&test.app, &id).await.unwrap().waiting).unwrap();
    let reason = "its agent 0.1.0 does not know running a bundle beside another: update the agent first";
    assert!(shown.contains(reason), "{shown}");
    let view = test.app.fleet.view(&devices[1]).unwrap();
    assert_eq!((view.protocol, test.app.fleet.view(&devices[0]).unwrap().protocol), (0, PROTOCOL));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_falls_back_to_an_earlier_agent_is_told_nothing_that_it_cannot_read_and_goes_back_all_the_same() {
    let test = app().await;
    let devices = fleet(&test, &["a"]).await;
    let (before, bundle) = (test.bundle("digits", "1.0.0", 10).await, test.bundle("digits", "1.1.0", 10).await);
    let device = &devices[0];
    test.desire(device, Some(digest_of(&before)), 1).await;
    settled(&test, device, &before, 1, PROTOCOL);
    let together = RolloutSpec {
        blue_green: Some(BlueGreen { group_by: "agent-version".to_owned(), ..BlueGreen::default() }),
        ..spec(&bundle, "*", &["100%"])
    };
    let id = create(&test.app, together, "alice", None).await.unwrap().id;
    let told = plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await;
    assert!(told.iter().any(|told| told.activation == Activation::Hold));
    settled(&test, device, &before, 1, 0);
    test.broker.take();
    for _ in 0..5 {
        reissue(&test.app, device).await;
        pass::pass(&test.app).await;
    }
    assert_eq!(assignments(&test, &test.broker.take()), [], "it could not read it");
    let shown = serde_json::to_string(&view(&test.app, &id).await.unwrap().waiting).unwrap();
    assert!(shown.contains(r#""reason":"cannot-be-told""#), "{shown}");
    assert!(shown.contains("its agent 0.1.0 does not know waiting with the switch"), "{shown}");
    act(&test.app, &id, OperatorAction::Rollback, "alice", None).await.unwrap();
    plan_until(&test, &id, is(RolloutStatus::RollingBack)).await;
    reissue(&test.app, device).await;
    let published = test.broker.take();
    let back = assignments(&test, &published);
    assert_eq!(back.last().map(|told| told.manifest), Some(Some(digest_of(&before))));
    assert!(fields(&published, device).iter().all(|fields| *fields == first_fields()));
    settled(&test, device, &before, back.last().unwrap().generation, 0);
    plan_until(&test, &id, is(RolloutStatus::RolledBack)).await;
}
