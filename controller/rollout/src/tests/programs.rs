//! Rollouts of agent programs: what may be asked for, who takes part, and who they are compared with.

use muster_shared::messages::TrackReport;
use muster_shared::rollout::{BlueGreen, GateSpec, Guardrail, Limits, Metric, RolloutSpec, SpecError};
use muster_shared::trust::{Stage, Track};

use super::world::{World, spec, told};
use crate::{BundleFacts, RollbackError, Rollout, packaged_program};

/// The rollout of `world` as one of a program.
fn of_programs(world: &World, spec: RolloutSpec) -> Result<Rollout, SpecError> {
    let bundle = BundleFacts { track: Track::Program, ..world.rollout.bundle.clone() };
    Rollout::new(world.rollout.id.clone(), spec, bundle, world.now_ms)
}

/// A fleet on the programs of their packages, shown as the controller shows it.
fn packaged(waves: &[&str], devices: &[&str]) -> World {
    let mut world = World::new(spec(waves), devices);
    world.rollout = of_programs(&world, spec(waves)).unwrap();
    for name in devices {
        let report = world.facts(name).reported.as_mut().unwrap();
        report.program = Some(TrackReport::default());
        (report.generation, report.update) = Default::default();
        (report.running, report.committed) = (None, None);
    }
    world
}

#[test]
fn a_program_runs_beside_none_and_switches_with_nobody() {
    let world = World::new(spec(&["100%"]), &[]);
    let shadow = RolloutSpec { stage: Stage::Shadow { share_bp: 100 }, ..spec(&["100%"]) };
    let refused = of_programs(&world, shadow).unwrap_err().to_string();
    assert!(refused.contains("stage") && refused.contains("agent program"), "{refused}");
    let together = RolloutSpec { blue_green: Some(BlueGreen::default()), ..spec(&["100%"]) };
    let refused = of_programs(&world, together).unwrap_err();
    assert!(refused.to_string().contains("blue_green"), "{refused}");
    assert!(of_programs(&world, spec(&["100%"])).is_ok());
}

#[test]
fn what_models_answer_is_no_measure_of_a_program() {
    let world = World::new(spec(&["1", "100%"]), &[]);
    let asked = |change: &dyn Fn(&mut RolloutSpec)| {
        let mut wish = spec(&["1", "100%"]);
        change(&mut wish);
        of_programs(&world, wish).map(drop).map_err(|error| error.to_string())
    };
    let with = |limits: Limits| asked(&|wish| wish.limits = limits);
    let psi = with(Limits { max_prediction_psi: 0.1, ..Limits::default() }).unwrap_err();
    assert!(psi.contains("limits.max_prediction_psi") && psi.contains("agent program"), "{psi}");
    let disagreement = with(Limits { max_disagreement: Some(0.1), ..Limits::default() }).unwrap_err();
    assert!(disagreement.contains("max_disagreement"), "{disagreement}");
    assert_eq!(with(Limits { max_failures: 3, max_error_rate: 0.5, ..Limits::default() }), Ok(()));
    let by = |metric: Metric, margin| {
        let mut guardrails = vec![Guardrail::of(Metric::ErrorRate, Some(0.05))];
        guardrails.push(Guardrail::of(metric, margin));
        asked(&|wish| wish.gate = Some(GateSpec::of(guardrails.clone())))
    };
    for metric in [Metric::PredictionDrift, Metric::LabelError, Metric::Confidence] {
        let margin = (metric != Metric::PredictionDrift).then_some(0.05);
        let refused = by(metric, margin).unwrap_err();
        assert!(refused.contains(metric.as_str()) && refused.contains("gate.guardrails"), "{refused}");
        assert!(refused.contains("agent program"), "{refused}");
    }
    assert_eq!(by(Metric::Failures, None), Ok(()));
}

#[test]
fn who_cannot_exchange_its_program_is_left_out_and_those_that_can_are_told() {
    let mut world = packaged(&["100%"], &["new", "old"]);
    world.facts("old").reported.as_mut().unwrap().program = None;
    assert_eq!(told(&world.tick(0)), ["new"]);
}

#[test]
fn a_program_goes_back_to_programs_alone() {
    let mut world = packaged(&["100%"], &["a"]);
    world.tick(0);
    let model = BundleFacts { manifest: packaged_program(), track: Track::Model, ..world.rollout.bundle.clone() };
    let refused = world.rollout.roll_back_to(model, "alice", None, world.now_ms).unwrap_err();
    assert!(matches!(refused, RollbackError::Track { track: Track::Program, .. }), "{refused}");
}

#[test]
fn a_gate_deals_devices_that_run_the_packages_program() {
    let mut world = packaged(&["1", "100%"], &["a", "b", "c"]);
    world.rollout.spec.gate = Some(GateSpec {
        alpha: 0.05,
        controls: 1,
        match_on: Vec::new(),
        guardrails: vec![Guardrail::of(Metric::ErrorRate, Some(0.03))],
    });
    // Each tick is held against the checker's rules.
    world.tick(0);
    let gate = world.rollout.waves[0].gate.as_ref().expect("the wave is complete");
    assert_eq!(gate.blocks.len(), 1);
}

#[test]
fn the_packages_program_is_what_others_are_compared_with() {
    let mut world = packaged(&["1", "100%"], &["a", "b", "c"]);
    world.tick(0);
    let canary = world.first(0);
    for name in ["a", "b", "c"].into_iter().filter(|name| *name != canary) {
        let mut seen = crate::Evidence::of(packaged_program(), 0);
        (seen.reports, seen.requests.served) = (3, 100);
        world.facts(name).evidence.push(seen);
    }
    let verdict = world.pass_wave().next.verdicts.last().cloned().unwrap();
    assert_eq!((verdict.control.devices, verdict.control.requests), (2, 200));
}
