//! What a pass costs over large fleets, on the real index and the real store, beside planning alone. It judges nothing and takes a while:
//! `muster-bench pass` runs it and prints what it says.

use std::time::Instant;

use muster_rollout::{plan, verify};
use muster_shared::ids::RolloutId;
use muster_shared::sketch::SketchWindow;

use super::*;
use crate::executor::holders::Holders;
use crate::fleet::Observation;
use crate::store::Expect;
use crate::testing::{app_with, device_record, profile};

/// Devices whose records are stored together.
const BATCH: usize = 1_000;
/// Rounds of which the least counts: others on the machine can only make one take longer.
const ROUNDS: usize = 5;
/// Sites among which devices are shared out.
const SITES: usize = 100;
/// A soak that outlasts the measurement.
const SOAK_MS: u64 = 3_600_000;

/// One wave that is watched, and one that comes when it has passed.
fn wish(bundle: &Manifest, selector: &str, first: &str) -> RolloutSpec {
    let wave = |size: &str| WaveSpec::of(size.parse().unwrap(), SOAK_MS, 10 * SOAK_MS);
    RolloutSpec::of(bundle.bundle(), selector.parse().unwrap(), vec![wave(first), wave("100%")])
}

/// What a device measured in one minute of one bundle.
fn measure(test: &TestApp, device: &DeviceId, manifest: Digest, generation: u64, number: u64) {
    let key = WindowKey { manifest, generation, start_ms: 0, duration_ms: 60_000 };
    let mut latency_us = LatencySketch::default();
    (0..60).for_each(|n| latency_us.add(2_000 + n * 37 + number % 500));
    let requests = RequestCounts { served: 60, ..RequestCounts::default() };
    let (resources, objectives, numbers) = Default::default();
    let window =
        TelemetryWindow { key, requests, latency_us, resources, comparison: None, objectives, numbers, program: None };
    let mut sketch = SketchWindow::empty(key, &profile());
    (0..60).for_each(|n| sketch.columns[1].add(&profile().columns[1], f64::from(n % 2)));
    let now_ms = clock::now_ms();
    test.app.fleet.observe(device, Observation::of_telemetry(&window, now_ms));
    test.app.fleet.observe(device, Observation::of_sketch(&sketch, &profile(), now_ms));
}

fn report(manifest: &Manifest, generation: u64) -> StateReport {
    let digest = digest_of(manifest);
    let own = InstalledBundle { manifest: digest, bundle: manifest.bundle(), generation };
    StateReport {
        generation,
        update: UpdateReport {
            state: UpdateState::Committed,
            generation,
            manifest: Some(digest),
            ..UpdateReport::default()
        },
        running: Some(own.clone()),
        committed: Some(own),
        attributes: [("arch", "aarch64"), ("os", "linux"), ("agent-version", "0.1.0"), ("memory-bytes", "1073741824")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        protocol: PROTOCOL,
        ..StateReport::default()
    }
}

/// A controller with devices that are connected, run a bundle of their own and measure it.
async fn large(devices: usize) -> (TestApp, Manifest) {
    let test = app_with(|_| {}).await;
    let own = test.bundle("digits", "1.0.0", 10).await;
    let names: Vec<String> = (0..devices).map(|number| format!("press-{number:07}")).collect();
    for (batch, names) in names.chunks(BATCH).enumerate() {
        let mut changes = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let mut record = device_record(name);
            record.labels.insert("site".into(), format!("{}", (batch * BATCH + at) % SITES));
            changes.push(Records::put(Table::Devices, name.as_str(), Expect::Absent, &record).unwrap());
            test.app.fleet.update_record(&record, 1);
            test.app.fleet.set_online(&record.id, true, clock::now_ms());
            test.app.fleet.update_report(&record.id, report(&own, 1));
            measure(&test, &record.id, digest_of(&own), 1, at as u64);
        }
        test.app.records.commit(changes).await.unwrap();
    }
    (test, own)
}

/// Devices that were told have it at once, and measure it.
async fn comply_all(test: &TestApp, bundle: &Manifest, ids: &[RolloutId]) {
    for id in ids {
        let rollout = test.app.records.get::<Rollout>(Table::Rollouts, id.as_str()).await.unwrap().unwrap().value;
        for (number, (device, target)) in rollout.targets.iter().enumerate() {
            test.app.fleet.update_report(device, report(bundle, target.generation));
            measure(test, device, digest_of(bundle), target.generation, number as u64);
        }
    }
}

async fn stored(test: &TestApp, ids: &[RolloutId]) -> Vec<Stored<Rollout>> {
    let mut rollouts = Vec::new();
    for id in ids {
        rollouts.extend(test.app.records.get::<Rollout>(Table::Rollouts, id.as_str()).await.unwrap());
    }
    rollouts
}

/// What planning all rollouts once takes, in milliseconds.
#[derive(Clone, Copy)]
struct Parts {
    facts: f64,
    planning: f64,
    checking: f64,
}

fn ms_since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// What a pass does without its store: each rollout is shown its fleet, planned and checked.
fn parts(test: &TestApp, rollouts: &[Stored<Rollout>]) -> Parts {
    let mut parts = Parts { facts: 0.0, planning: 0.0, checking: 0.0 };
    let now_ms = clock::now_ms();
    let began = Instant::now();
    let holders = Holders::among(rollouts);
    parts.facts += ms_since(began);
    for Stored { value: rollout, .. } in rollouts {
        let began = Instant::now();
        let fleet = pass::facts(&test.app, rollout, &holders, rollouts, now_ms);
        parts.facts += ms_since(began);
        let began = Instant::now();
        let decision = plan(rollout, &fleet, now_ms);
        parts.planning += ms_since(began);
        let began = Instant::now();
        assert_eq!(verify(rollout, &decision, &fleet, now_ms), Ok(()));
        parts.checking += ms_since(began);
        let began = Instant::now();
        drop(fleet);
        parts.facts += ms_since(began);
    }
    parts
}

/// The least of several rounds of a pass and of its parts.
async fn say(test: &TestApp, what: &str, ids: &[RolloutId]) {
    let mut whole = f64::INFINITY;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        pass::pass(&test.app).await;
        whole = whole.min(ms_since(began));
    }
    let rollouts = stored(test, ids).await;
    let rounds: Vec<Parts> = (0..ROUNDS).map(|_| parts(test, &rollouts)).collect();
    let least = |part: fn(&Parts) -> f64| rounds.iter().map(part).fold(f64::INFINITY, f64::min);
    let planning = least(|parts| parts.planning);
    for (part, ms) in [
        ("planning", planning),
        ("showing the fleet", least(|parts| parts.facts)),
        ("checking", least(|parts| parts.checking)),
        ("the whole pass", whole),
    ] {
        println!("pass\t{what}: {part}\t{ms:.2}\t{:.2}", ms / planning);
    }
}

/// Rollouts that have begun, while their devices are told and while their waves are watched.
async fn measured(devices: usize, rollouts: usize, first: &str, selector: impl Fn(usize) -> String) {
    let (test, _) = large(devices).await;
    let bundle = test.bundle("digits", "1.1.0", 10).await;
    let mut ids = Vec::new();
    for at in 0..rollouts {
        ids.push(create(&test.app, wish(&bundle, &selector(at), first), "alice", None).await.unwrap().id);
    }
    let what = format!("{rollouts} x {devices}, {}", selector(0));
    pass::pass(&test.app).await;
    say(&test, &format!("{what}, devices are told"), &ids).await;
    comply_all(&test, &bundle, &ids).await;
    pass::pass(&test.app).await;
    pass::pass(&test.app).await;
    say(&test, &format!("{what}, a wave is watched"), &ids).await;
    let all = stored(&test, &ids).await;
    assert!(all.iter().all(|rollout| rollout.value.status() == RolloutStatus::Running), "{what}");
    assert!(all.iter().all(|rollout| !rollout.value.targets.is_empty()), "{what}");
}

#[tokio::test]
#[ignore = "it takes minutes and judges nothing: muster-bench pass runs it"]
async fn a_pass_over_large_fleets() {
    for devices in [1_000, 10_000, 100_000] {
        measured(devices, 1, "10%", |_| "*".to_owned()).await;
    }
    measured(10_000, 100, "1%", |_| "*".to_owned()).await;
    measured(10_000, 100, "1%", |site| format!("site={site}")).await;
}
