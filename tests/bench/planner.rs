//! What one tick of a rollout costs, by the size of the fleet and by what the rollout is about: `muster_rollout::plan` and the checker
//! of plans, on one core. Facts of devices and their windows lie in memory, as the controller has them.

use std::collections::BTreeMap;

use anyhow::ensure;
use muster_rollout::{
    Action, BundleFacts, Decision, Desired, DeviceFacts, Evidence, Fleet, KnownFacts, OperatorAction, Rollout, plan,
    verify,
};
use muster_shared::bundle::Requirements;
use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::messages::{InstalledBundle, RequestCounts, StateReport, UpdateReport, UpdateState};
use muster_shared::protocol::PROTOCOL;
use muster_shared::rollout::{RolloutSpec, RolloutStatus, WaveSpec};
use muster_shared::selector::Selector;
use muster_shared::sketch::LatencySketch;
use rustix::time::{ClockId, clock_gettime};

use crate::report::{self, Table};

const FLEETS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// The fleet for which the goal holds, and the goal.
const GOAL_DEVICES: usize = 100_000;
const GOAL_MS: f64 = 200.0;
/// Rollouts at once, over how many devices, and the goal for a tick of all of them.
const ROLLOUTS: usize = 100;
const SHARED_DEVICES: usize = 10_000;
const SHARED_GOAL_MS: f64 = 1_000.0;
const START_MS: u64 = 1_000_000;
const SOAK_MS: u64 = 60_000;
/// Devices planned for in all the rounds of one figure.
const ROUNDS_OF_DEVICES: usize = 1_000_000;

fn incumbent() -> Digest {
    Digest::of(b"incumbent")
}

fn device(number: usize) -> anyhow::Result<DeviceId> {
    Ok(DeviceId::new(format!("press-{number:07}"))?)
}

/// A device that has run the incumbent since generation 1, and what it measured in the last hour.
fn facts(number: usize) -> anyhow::Result<DeviceFacts> {
    let own = InstalledBundle { manifest: incumbent(), bundle: "digits@1.0.0".parse()?, generation: 1 };
    let known = KnownFacts {
        labels: [("site", number % ROLLOUTS), ("line", number % 7)]
            .map(|(key, n)| (key.to_owned(), n.to_string()))
            .into(),
        attributes: [("arch", "aarch64"), ("os", "linux"), ("agent-version", "0.1.0"), ("memory-bytes", "1073741824")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        desired: Some(Desired { manifest: Some(incumbent()), generation: 1, rollout: "r0".parse()? }),
        reported: Some(StateReport {
            generation: 1,
            update: UpdateReport {
                state: UpdateState::Committed,
                generation: 1,
                manifest: Some(incumbent()),
                ..UpdateReport::default()
            },
            running: Some(own.clone()),
            committed: Some(own),
            protocol: PROTOCOL,
            ..StateReport::default()
        }),
        ..KnownFacts::default()
    };
    Ok(DeviceFacts {
        known: known.into(),
        online: !number.is_multiple_of(50),
        last_seen_ms: Some(START_MS),
        evidence: vec![measured(number, incumbent(), 1)].into(),
        ..DeviceFacts::default()
    })
}

fn measured(number: usize, manifest: Digest, generation: u64) -> Evidence {
    let mut latency_us = LatencySketch::default();
    (0..60u64).for_each(|n| latency_us.add(2_000 + n * 37 + number as u64 % 500));
    let classes = (0..10u64).map(|class| (class.to_string(), 6 + (class + number as u64) % 3)).collect();
    Evidence {
        reports: 1,
        requests: RequestCounts { served: 60, ..RequestCounts::default() },
        latency_us,
        predictions: BTreeMap::from([("class".to_owned(), classes)]),
        ..Evidence::of(manifest, generation)
    }
}

fn fleet(devices: usize) -> anyhow::Result<Fleet> {
    let devices = (0..devices).map(|number| Ok((device(number)?, facts(number)?))).collect::<anyhow::Result<_>>()?;
    Ok(Fleet { devices, ..Fleet::default() })
}

fn rollout(number: usize, selector: Selector, waves: &[&str]) -> anyhow::Result<Rollout> {
    let wave = |size: &&str| -> anyhow::Result<WaveSpec> { Ok(WaveSpec::of(size.parse()?, SOAK_MS, 10 * SOAK_MS)) };
    let waves = waves.iter().map(wave).collect::<anyhow::Result<_>>()?;
    let spec = RolloutSpec::of("digits@1.2.0".parse()?, selector, waves);
    let bundle = BundleFacts {
        manifest: Digest::of(format!("candidate {number}").as_bytes()),
        bundle: spec.bundle.clone(),
        requirements: Requirements { architectures: ["aarch64".to_owned()].into(), ..Requirements::default() },
        reference_predictions: BTreeMap::new(),
        track: Default::default(),
        features: Default::default(),
    };
    Ok(Rollout::new(RolloutId::new(format!("r{}", number + 1))?, spec, bundle, START_MS)?)
}

/// The devices have it in the store, and have committed it and measured it.
fn comply(fleet: &mut Fleet, rollout: &Rollout, actions: &[Action], commits: bool) -> anyhow::Result<()> {
    for (number, Action::Assign { device, manifest, generation }) in actions.iter().enumerate() {
        let Some(facts) = fleet.devices.get_mut(device) else { continue };
        facts.desired = Some(Desired { manifest: *manifest, generation: *generation, rollout: rollout.id.clone() });
        let (Some(report), Some(manifest)) = (facts.reported.as_mut().filter(|_| commits), *manifest) else { continue };
        let bundle = InstalledBundle { manifest, bundle: "digits@1.2.0".parse()?, generation: *generation };
        report.generation = *generation;
        report.update.generation = *generation;
        report.update.manifest = Some(manifest);
        report.running = Some(bundle.clone());
        report.committed = Some(bundle);
        facts.evidence.push(measured(number, manifest, *generation));
    }
    Ok(())
}

/// How long this thread has been on a processor, in milliseconds: what others do on the machine meanwhile does not count.
fn on_processor_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// How long planning and checking took.
struct Cost {
    planning_ms: f64,
    checking_ms: f64,
}

/// What planning and checking take at the least, of rounds enough for a fleet of this size, and what was decided. Others can only make a
/// round take longer: they share the processor's caches.
fn timed(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> anyhow::Result<(Cost, Decision)> {
    rounds((ROUNDS_OF_DEVICES / fleet.devices.len().max(1)).clamp(5, 200), rollout, fleet, now_ms)
}

fn rounds(rounds: usize, rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> anyhow::Result<(Cost, Decision)> {
    let (mut least, mut last) = (Cost { planning_ms: f64::INFINITY, checking_ms: f64::INFINITY }, None);
    for _ in 0..rounds {
        let start = on_processor_ms();
        let decision = plan(rollout, fleet, now_ms);
        let planned = on_processor_ms();
        let verdict = verify(rollout, &decision, fleet, now_ms);
        least.planning_ms = least.planning_ms.min(planned - start);
        least.checking_ms = least.checking_ms.min(on_processor_ms() - planned);
        ensure!(verdict.is_ok(), "the checker refuses the plan: {verdict:?}");
        last = Some(decision);
    }
    let decision = last.ok_or_else(|| anyhow::anyhow!("no round"))?;
    Ok((least, decision))
}

/// What a tick costs in one situation, in nanoseconds a device, by the size of the fleet.
type Growth = Vec<(&'static str, Vec<f64>)>;

/// One rollout over `devices`, in each situation.
fn one(devices: usize, table: &mut Table, growth: &mut Growth) -> anyhow::Result<()> {
    let mut fleet = fleet(devices)?;
    let mut rollout = rollout(0, Selector::all(), &["10%", "100%"])?;
    let mut say = |situation: &'static str, cost: &Cost| {
        let what = format!("{devices} devices, {situation}");
        if devices == GOAL_DEVICES {
            table.goal(&what, cost.planning_ms, GOAL_MS, "ms")
        } else {
            table.figure(&what, cost.planning_ms, "ms")
        }
        let each = |ms: f64| ms * 1e6 / devices as f64;
        table.text(
            "  of that a device; the checker a device",
            &format!("{:.0} ns; {:.0} ns", each(cost.planning_ms), each(cost.checking_ms)),
        );
        match growth.iter_mut().find(|(known, _)| *known == situation) {
            Some((_, costs)) => costs.push(each(cost.planning_ms)),
            None => growth.push((situation, vec![each(cost.planning_ms)])),
        }
    };
    rollout.spec.start_at_ms = Some(START_MS + 1);
    let (cost, waits) = timed(&rollout, &fleet, START_MS)?;
    ensure!(waits.next.status == RolloutStatus::Ready, "it begins before its time");
    say("before it begins", &cost);
    rollout.spec.start_at_ms = None;
    let (cost, begun) = timed(&rollout, &fleet, START_MS)?;
    say("a wave of 10 % begins", &cost);
    ensure!(begun.actions.len() == devices / 10, "the wave has another size");
    comply(&mut fleet, &rollout, &begun.actions, false)?;
    rollout = begun.next;
    say("its devices are told again", &timed(&rollout, &fleet, START_MS + 1)?.0);
    comply(&mut fleet, &rollout, &begun.actions, true)?;
    let (_, soaking) = timed(&rollout, &fleet, START_MS + 2)?;
    ensure!(soaking.next.status == RolloutStatus::Running, "the wave is over");
    rollout = soaking.next;
    say("mid-wave, with reports of all devices", &timed(&rollout, &fleet, START_MS + 3)?.0);
    let (cost, passed) = timed(&rollout, &fleet, START_MS + 3 + SOAK_MS)?;
    ensure!(passed.next.current_wave == 1, "the wave has not passed");
    say("it passes and 90 % begin", &cost);
    comply(&mut fleet, &passed.next, &passed.actions, true)?;
    let arrived_ms = START_MS + 4 + SOAK_MS;
    let (cost, last) = timed(&passed.next, &fleet, arrived_ms)?;
    say("all have it, and are noted", &cost);
    let (_, ended) = timed(&last.next, &fleet, arrived_ms + SOAK_MS)?;
    ensure!(ended.next.status == RolloutStatus::Completed, "it has not completed");
    say("completed", &timed(&ended.next, &fleet, arrived_ms + SOAK_MS + 1)?.0);
    let back = passed.next.apply(OperatorAction::Rollback, "alice", None, START_MS + SOAK_MS)?;
    let (cost, turning) = timed(&back, &fleet, START_MS + 2 * SOAK_MS)?;
    ensure!(turning.next.status == RolloutStatus::RollingBack, "nobody goes back");
    say("all go back", &cost);
    say("all are on their way back", &timed(&turning.next, &fleet, START_MS + 3 * SOAK_MS)?.0);
    Ok(())
}

/// Many rollouts, each over its part of the fleet and each looking at those devices it means, as the controller shows them.
fn many(table: &mut Table) -> anyhow::Result<()> {
    let whole = fleet(SHARED_DEVICES)?;
    for (what, narrow) in [("each over its own site", true), ("all over the whole fleet", false)] {
        let (mut planning, mut checking) = (0.0, 0.0);
        let mut held_by: BTreeMap<DeviceId, RolloutId> = BTreeMap::new();
        for number in 0..ROLLOUTS {
            let selector = if narrow { format!("site={number}").parse()? } else { Selector::all() };
            let rollout = rollout(number, selector, &["1%", "100%"])?;
            let mut seen = Fleet::default();
            for (id, facts) in &whole.devices {
                if rollout.spec.selector.matches(id.as_str(), &facts.labels, &facts.attributes) {
                    let facts = DeviceFacts { held_by: held_by.get(id).cloned(), ..facts.clone() };
                    seen.devices.insert(id.clone(), facts);
                }
            }
            let begun = plan(&rollout, &seen, START_MS);
            held_by.extend(begun.next.targets.keys().map(|id| (id.clone(), rollout.id.clone())));
            comply(&mut seen, &rollout, &begun.actions, true)?;
            let (cost, _) = rounds(5, &begun.next, &seen, START_MS + 1)?;
            planning += cost.planning_ms;
            checking += cost.checking_ms;
        }
        table.goal(&format!("{ROLLOUTS} rollouts, {SHARED_DEVICES} devices, {what}"), planning, SHARED_GOAL_MS, "ms");
        table.figure("  the checker", checking, "ms");
    }
    Ok(())
}

/// The curve, and many rollouts at once.
pub(crate) fn measure() -> anyhow::Result<Vec<Table>> {
    let (mut curve, mut growth) = (Table::new("Planning one tick of a rollout, one core"), Growth::new());
    for devices in FLEETS {
        one(devices, &mut curve, &mut growth)?;
        report::line(&format!("{devices} devices: done"));
    }
    let steps: Vec<String> = FLEETS.windows(2).map(|of| format!("{} to {}", of[0], of[1])).collect();
    let mut linear =
        Table::new("What a device costs, as a multiple of one in a fleet a tenth as large: 1 where growth is linear");
    linear.text("", &steps.join(" / "));
    for (situation, costs) in &growth {
        let ratios: Vec<String> = costs.windows(2).map(|of| format!("{:.2}", of[1] / of[0])).collect();
        linear.text(situation, &ratios.join(" / "));
    }
    let mut crowd = Table::new("Planning one tick of many rollouts, one core");
    many(&mut crowd)?;
    Ok(vec![curve, linear, crowd])
}
