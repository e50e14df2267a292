//! What a shadow runs on, and what becomes of requests it cannot keep up with.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::time::Duration;

use muster_inference::{Images, RunError};
use muster_shared::bundle::DataType;
use muster_shared::messages::Pressure;
use muster_shared::sketch::Comparison;

use super::*;
use crate::feedback::Feedback;
use crate::host::fixtures::{column_of, digits, doubling, scripted};
use crate::host::{HostLimits, ModelHost};
use crate::monitor::{ClosedWindow, Monitor};

const ALL: Stage = Stage::Shadow { share_bp: 10_000 };

fn host(limits: BesideLimits) -> ModelHost {
    // No window ends by itself.
    let monitor = Monitor::new(1 << 50);
    let feedback = Feedback::for_tests();
    let host = ModelHost::with_beside(HostLimits { max_concurrency: 1, max_queue: 1 }, limits, monitor, feedback);
    host.activate(doubling("1.0.0", 1), 1);
    host
}

fn answered(values: &[f64]) -> Answered {
    let doubled: Vec<f64> = values.iter().map(|x| 2.0 * x).collect();
    let (inputs, outputs) = (vec![column_of("x", values)], vec![column_of("y", &doubled)]);
    let run = Duration::from_micros(10);
    Answered { id: "i".into(), at_ms: 1, place: None, inputs, images: Images::NONE, outputs, run }
}

fn close(host: &ModelHost) -> ClosedWindow {
    let mut windows = host.beside_monitor().close_all(1 << 40, Default::default());
    assert_eq!(windows.len(), 1, "{windows:?}");
    windows.remove(0)
}

fn comparison(window: &ClosedWindow) -> Comparison {
    window.telemetry.comparison.clone().unwrap()
}

/// A shadow that waits for leave to answer each request, and says when it has begun one.
fn waiting_for_leave() -> (ServedModel, Receiver<()>, SyncSender<()>) {
    let (begin, begun) = channel();
    let (leave, given) = sync_channel(1_000);
    let given = Mutex::new(given);
    let model = scripted(DataType::Fp64, "1.1.0", 2, move |inputs| {
        begin.send(()).unwrap();
        // Leave that nobody can give any more is leave to go.
        let _ = given.lock().unwrap().recv();
        Ok(vec![column_of("y", &inputs[0].values().map(|x| x + 1.0).collect::<Vec<_>>())])
    });
    (model, begun, leave)
}

#[test]
fn a_queue_that_is_full_skips_and_never_waits() {
    let host = host(BesideLimits { max_cpu_percent: 100, max_queue: 2, ..BesideLimits::default() });
    let (model, begun, leave) = waiting_for_leave();
    host.run_beside(model, ALL, 2).unwrap();
    let beside = host.beside().unwrap();
    beside.run_again(answered(&[1.0]));
    begun.recv().unwrap();
    // One is being run and two wait: there is no room for seven more.
    (0..9).for_each(|_| beside.run_again(answered(&[1.0])));
    (0..3).for_each(|_| leave.send(()).unwrap());
    begun.recv().unwrap();
    begun.recv().unwrap();
    drop(leave);
    let window = loop {
        // The last one is counted after it was run.
        let counts = host.beside_monitor().counts_since_watch();
        if counts.served == 3 {
            break close(&host);
        }
        std::thread::yield_now();
    };
    assert_eq!((window.telemetry.key.generation, window.telemetry.requests.served), (2, 3));
    let comparison = comparison(&window);
    assert_eq!((comparison.skipped, comparison.failed), (7, 0));
    assert_eq!(comparison.against, host.current().unwrap().manifest);
}

#[test]
fn while_the_device_is_pressed_nothing_runs_beside_and_afterwards_it_goes_on() {
    let host = host(BesideLimits { max_cpu_percent: 100, ..BesideLimits::default() });
    let (model, begun, leave) = waiting_for_leave();
    host.run_beside(model, ALL, 2).unwrap();
    let beside = host.beside().unwrap();
    // One is being run and two wait when the pressure comes.
    (0..3).for_each(|_| beside.run_again(answered(&[1.0])));
    begun.recv().unwrap();
    host.pressed().set(Pressure { level: PressureLevel::Some, reason: "hot: 85 °C".into() });
    (0..4).for_each(|_| beside.run_again(answered(&[1.0])));
    leave.send(()).unwrap();
    while beside.active().watch.skipped() < 6 {
        std::thread::yield_now();
    }
    assert!(begun.try_recv().is_err());
    host.pressed().set(Pressure::default());
    drop(leave);
    beside.run_again(answered(&[1.0]));
    begun.recv().unwrap();
    while host.beside_monitor().counts_since_watch().served < 2 {
        std::thread::yield_now();
    }
    let comparison = comparison(&close(&host));
    assert_eq!((comparison.compared, comparison.skipped, comparison.paused), (2, 6, 6));
}

#[test]
fn what_waits_is_bounded_in_bytes() {
    let host = host(BesideLimits { max_cpu_percent: 100, max_queue: 100, max_queue_bytes: 40 });
    let (model, begun, leave) = waiting_for_leave();
    host.run_beside(model, ALL, 2).unwrap();
    let beside = host.beside().unwrap();
    // Sixteen bytes of inputs and outputs a row.
    beside.run_again(answered(&[1.0, 2.0, 3.0]));
    beside.run_again(answered(&[1.0]));
    begun.recv().unwrap();
    beside.run_again(answered(&[1.0, 2.0]));
    beside.run_again(answered(&[1.0]));
    drop(leave);
    begun.recv().unwrap();
    while host.beside_monitor().counts_since_watch().served < 2 {
        std::thread::yield_now();
    }
    assert_eq!(comparison(&close(&host)).skipped, 2);
}

#[test]
fn a_shadow_that_fails_or_panics_is_counted_and_goes_on() {
    let host = host(BesideLimits { max_cpu_percent: 100, ..BesideLimits::default() });
    let model = scripted(DataType::Fp64, "1.1.0", 2, |inputs| match inputs[0].value(0) {
        Some(1.0) => Err(RunError::Failed { reason: "it hurts".into() }),
        Some(2.0) => panic!("it hurts more"),
        Some(_) | None => Ok(vec![column_of("y", &[9.0])]),
    });
    host.run_beside(model, ALL, 2).unwrap();
    let beside = host.beside().unwrap();
    for value in [1.0, 2.0, 3.0] {
        beside.run_again(answered(&[value]));
    }
    while host.beside_monitor().counts_since_watch().served < 3 {
        std::thread::yield_now();
    }
    let comparison = comparison(&close(&host));
    assert_eq!((comparison.compared, comparison.failed), (1, 2));
}

#[test]
fn only_what_falls_to_it_and_its_own_incumbent_answered_is_run_again() {
    let host = host(BesideLimits::default());
    let half = Stage::Shadow { share_bp: 5_000 };
    host.run_beside(doubling("1.1.0", 2), half.clone(), 2).unwrap();
    let (beside, incumbent) = (host.beside().unwrap(), host.current().unwrap().manifest);
    let candidate = beside.active().served.manifest;
    for key in 0..200 {
        let key = key.to_string();
        assert_eq!(beside.shadows(&key, &incumbent), half.falls_to(&candidate, &key));
        assert!(!beside.shadows(&key, &candidate), "another model answered it");
        assert!(beside.answers(&key, &incumbent).is_none(), "nobody gets a shadow's answer");
    }
}

#[test]
fn models_that_cannot_have_the_same_requests_are_refused() {
    let monitor = Monitor::new(1 << 50);
    let feedback = Feedback::for_tests();
    let host = ModelHost::new(HostLimits { max_concurrency: 1, max_queue: 1 }, monitor, feedback);
    assert!(matches!(host.run_beside(doubling("1.1.0", 2), ALL, 1), Err(BesideError::Alone)));
    host.activate(doubling("1.0.0", 1), 1);
    let refused = |model, stage| host.run_beside(model, stage, 2).unwrap_err().to_string();
    assert!(refused(digits("1.0.0", 2), ALL).contains("input \"image\""));
    let floats = scripted(DataType::Fp32, "1.1.0", 2, |_| Ok(Vec::new()));
    assert!(refused(floats, ALL).contains("input \"x\""));
    let split = Stage::Split { share_bp: 5_000, experiment: "e".into() };
    let mut renamed = doubling("1.1.0", 2);
    renamed.bundle = "tripled@1.1.0".parse().unwrap();
    assert!(refused(renamed, split.clone()).contains("it is called \"tripled\""));
    let mut silent = doubling("1.1.0", 2);
    silent.signature.outputs.clear();
    assert!(refused(silent, split).contains("output \"y\""));
    assert!(host.beside().is_none());
}

#[test]
fn one_takes_the_place_of_another_and_each_has_its_windows() {
    let host = host(BesideLimits::default());
    host.run_beside(doubling("1.1.0", 2), ALL, 2).unwrap();
    let first = host.beside().unwrap();
    host.run_beside(doubling("1.1.0", 3), Stage::Shadow { share_bp: 1 }, 5).unwrap();
    let second = host.beside().unwrap();
    assert_eq!((second.active().served.generation, second.stage()), (3, &Stage::Shadow { share_bp: 1 }));
    first.active().watch.skip(false);
    host.end_beside(9);
    assert!(host.beside().is_none());
    let windows = host.beside_monitor().close_all(1 << 40, Default::default());
    let generations: Vec<u64> = windows.iter().map(|window| window.telemetry.key.generation).collect();
    assert!(generations.contains(&2) && generations.contains(&3), "{windows:?}");
}
