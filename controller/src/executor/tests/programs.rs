//! Rollouts of agent programs, beside what devices serve.

use muster_shared::messages::{ProgramKey, TrackReport};

use super::*;

const MODEL_GENERATION: u64 = 7;

/// What a device that serves a model and runs `program` says of itself.
fn report(model: Digest, program: TrackReport) -> StateReport {
    let installed =
        InstalledBundle { manifest: model, bundle: "digits@1.0.0".parse().unwrap(), generation: MODEL_GENERATION };
    StateReport {
        generation: MODEL_GENERATION,
        running: Some(installed.clone()),
        committed: Some(installed),
        attributes: [("arch".to_owned(), "x86_64".to_owned())].into(),
        program: Some(program),
        protocol: PROTOCOL,
        ..StateReport::default()
    }
}

/// A fleet on the packages' programs.
async fn packaged(test: &TestApp, names: &[&str], model: Digest) -> Vec<DeviceId> {
    let devices = fleet(test, names).await;
    for device in &devices {
        test.desire(device, Some(model), MODEL_GENERATION).await;
        test.app.fleet.update_report(device, report(model, TrackReport::default()));
    }
    devices
}

/// What was said of programs: models' assignments are renewed meanwhile.
fn of_programs(mut told: Vec<Assignment>) -> Vec<Assignment> {
    told.retain(|told| told.track == Track::Program);
    told
}

/// The device does with its program as it was told, in the state given.
fn take_up(test: &TestApp, told: &Assignment, bundle: &Manifest, model: Digest, state: UpdateState) {
    assert_eq!(told.track, Track::Program);
    let (manifest, generation) = (told.manifest, told.generation);
    let runs = manifest.filter(|_| state == UpdateState::Committed);
    let installed = runs.map(|manifest| InstalledBundle { manifest, bundle: bundle.bundle(), generation });
    let update = UpdateReport { state, generation, manifest, ..UpdateReport::default() };
    let program =
        TrackReport { generation, update, running: installed.clone(), committed: installed, ..TrackReport::default() };
    test.app.fleet.update_report(&told.device, report(model, program));
}

/// A window that the program measured while the device served its model.
fn measure(test: &TestApp, device: &DeviceId, model: Digest, program: Option<ProgramKey>) {
    let mut latency_us = LatencySketch::default();
    latency_us.add(100);
    let window = TelemetryWindow {
        key: WindowKey { manifest: model, generation: MODEL_GENERATION, start_ms: 0, duration_ms: 1 },
        requests: RequestCounts { served: 1, ..RequestCounts::default() },
        latency_us,
        resources: Resources::default(),
        comparison: None,
        objectives: Default::default(),
        numbers: Default::default(),
        program,
    };
    test.app.fleet.observe(device, Observation::of_telemetry(&window, clock::now_ms()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_goes_in_waves_and_leaves_the_model_alone() {
    let test = app().await;
    let model = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let devices = packaged(&test, &["a", "b", "c"], model).await;
    let program = test.program("0.2.0", "x86_64").await;
    let id = create(&test.app, spec(&program, "*", &["1", "100%"]), "alice", None).await.unwrap().id;
    let first = of_programs(plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await);
    assert_eq!(first.len(), 1);
    let told = &first[0];
    assert_eq!((told.track, told.manifest, told.generation), (Track::Program, Some(digest_of(&program)), 1));
    take_up(&test, told, &program, model, UpdateState::Committed);
    // What was measured under the program before is no evidence of this one.
    measure(&test, &told.device, model, None);
    devices.iter().filter(|device| **device != told.device).for_each(|device| measure(&test, device, model, None));
    for _ in 0..10 {
        pass::pass(&test.app).await;
    }
    assert!(
        of_programs(assignments(&test, &test.broker.take())).is_empty(),
        "a wave passed without evidence of the program"
    );
    let runs = ProgramKey { manifest: digest_of(&program), generation: 1 };
    measure(&test, &told.device, model, Some(runs));
    let second = of_programs(plan_until(&test, &id, |view| !view.waves[1].devices.is_empty()).await);
    assert_eq!(second.len(), 2);
    for told in &second {
        take_up(&test, told, &program, model, UpdateState::Committed);
        measure(&test, &told.device, model, Some(ProgramKey { manifest: digest_of(&program), generation: 1 }));
    }
    plan_until(&test, &id, is(RolloutStatus::Completed)).await;
    for device in &devices {
        assert_eq!(desired(&test, device).await, Some((Some(model), MODEL_GENERATION)), "{device}");
        let view = test.app.fleet.view(device).unwrap();
        assert_eq!(view.desired_program.unwrap().bundle, Some(program.bundle()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_fails_gives_way_to_the_packages_own() {
    let test = app().await;
    let model = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    packaged(&test, &["a", "b"], model).await;
    let program = test.program("0.2.0", "x86_64").await;
    let id = create(&test.app, spec(&program, "*", &["1", "100%"]), "alice", None).await.unwrap().id;
    let first = of_programs(plan_until(&test, &id, |view| !view.waves[0].devices.is_empty()).await);
    take_up(&test, &first[0], &program, model, UpdateState::Reverted);
    let mut back = of_programs(plan_until(&test, &id, is(RolloutStatus::RollingBack)).await);
    while back.is_empty() {
        pass::pass(&test.app).await;
        back.extend(of_programs(assignments(&test, &test.broker.take())));
    }
    assert_eq!(back.len(), 1, "nobody else heard of it");
    assert_eq!((back[0].track, back[0].manifest, back[0].generation), (Track::Program, None, 2));
    take_up(&test, &back[0], &program, model, UpdateState::Committed);
    plan_until(&test, &id, is(RolloutStatus::RolledBack)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_cannot_exchange_its_program_is_told_of_none() {
    let test = app().await;
    let model = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let devices = packaged(&test, &["old"], model).await;
    let old = StateReport { program: None, protocol: 0, ..report(model, TrackReport::default()) };
    test.app.fleet.update_report(&devices[0], old.clone());
    let program = test.program("0.2.0", "x86_64").await;
    let id = create(&test.app, spec(&program, "*", &["100%"]), "alice", None).await.unwrap().id;
    for _ in 0..5 {
        pass::pass(&test.app).await;
    }
    assert!(of_programs(assignments(&test, &test.broker.take())).is_empty());
    let shown = serde_json::to_string(&view(&test.app, &id).await.unwrap().waiting).unwrap();
    assert!(shown.contains("cannot exchange its program"), "{shown}");
    // Nor is one that had heard of a program and went back to an earlier package.
    test.desire_program(&devices[0], Some(digest_of(&program)), 3).await;
    reissue(&test.app, &devices[0]).await;
    pass::pass(&test.app).await;
    assert!(of_programs(assignments(&test, &test.broker.take())).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_hears_of_both_when_it_connects_and_may_fetch_both() {
    let test = app().await;
    let model = digest_of(&test.bundle("digits", "1.0.0", 10).await);
    let devices = packaged(&test, &["a"], model).await;
    let program = digest_of(&test.program("0.2.0", "x86_64").await);
    test.desire_program(&devices[0], Some(program), 1).await;
    reissue(&test.app, &devices[0]).await;
    let told = assignments(&test, &test.broker.take());
    let said: Vec<_> = told.iter().map(|told| (told.track, told.manifest, told.generation)).collect();
    assert_eq!(said, [(Track::Model, Some(model), MODEL_GENERATION), (Track::Program, Some(program), 1)]);
    assert!(test.app.fleet.is_to_run(&devices[0], &model) && test.app.fleet.is_to_run(&devices[0], &program));
}
