//! Rollouts under virtual time, with weighted faults: the real planner, its checker, the operators' actions and the agent's
//! update machine, in a world of their own.
//!
//! Messages are lost, late, doubled and overtaken; devices vanish, crash, lie and go back in time; controllers restart
//! between any two steps, and there are two of them; clocks jump; operators do what they like; several rollouts want the same
//! devices. After every event [`rules`] asserts what rollouts promise, and when the faults cease [`quiet`] asserts that
//! everything ends. A failing run names its seed: `MUSTER_SIM_SEED=<seed> cargo test -p muster-tests --test sim` tells its story.

mod aborted;
mod compared;
mod controller;
mod device;
mod draw;
mod faulty;
mod late;
mod pace;
mod people;
mod quiet;
mod rules;
mod store;
mod tally;
mod together;
mod version;
mod world;

use muster_rollout::plan;

use crate::controller::Planner;
use crate::tally::Tally;
use crate::world::World;

const RUNS: u64 = 10_000;
/// Threads that share the runs.
const THREADS: usize = 2;
/// How much of a story is told.
const TOLD: usize = 60;

/// One run: trouble, then quiet.
fn run(seed: u64, planner: Planner, asks_verify: bool, tells: bool) -> (World, Result<(), String>) {
    let mut world = World::new(seed, planner, asks_verify, tells);
    let result = (|| {
        for _ in 0..40 + seed % 100 {
            world.step()?;
        }
        quiet::finish(&mut world)?;
        world.store.rollouts.values().try_for_each(|stored| rules::replays(&stored.value))
    })();
    world.ledger.tally.runs += 1;
    (world, result)
}

/// What a failing run has to say.
fn account(seed: u64, planner: Planner, asks_verify: bool) -> String {
    let (world, result) = run(seed, planner, asks_verify, true);
    let story = world.story();
    let shown = story[story.len().saturating_sub(TOLD)..].join("\n");
    let why = result.err().unwrap_or_else(|| "it does not fail when it is told".to_owned());
    format!("{shown}\nseed {seed}: {why}\nagain: MUSTER_SIM_SEED={seed} cargo test -p muster-tests --test sim")
}

#[test]
fn rollouts_keep_their_promises_whatever_happens() {
    let asked = std::env::var("MUSTER_SIM_SEED").ok();
    if let Some(seed) = asked.and_then(|seed| seed.parse().ok()) {
        let (_, result) = run(seed, plan, true, false);
        let told = account(seed, plan, true);
        println!("{told}");
        assert_eq!(result, Ok(()), "seed {seed}");
        return;
    }
    let runs = std::env::var("MUSTER_SIM_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    let share = |thread: usize| {
        let mut tally = Tally::default();
        for seed in (0..runs).skip(thread).step_by(THREADS) {
            let (world, result) = run(seed, plan, true, false);
            if result.is_err() {
                return Err(account(seed, plan, true));
            }
            tally.add(&world.ledger.tally);
        }
        Ok(tally)
    };
    let tallies: Vec<Result<Tally, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || share(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
    });
    let mut all = Tally::default();
    for tally in tallies {
        match tally {
            Ok(tally) => all.add(&tally),
            Err(account) => panic!("{account}"),
        }
    }
    println!("{all:#?}");
    // A simulation in which nothing happens proves nothing.
    for (count, what) in [
        (all.promoted, "promoted"),
        (all.completed, "completed"),
        (all.paced, "held by a rate"),
        (all.switched, "switched together"),
        (all.served_after_shadow, "served what they ran as shadow"),
        (all.turned_back, "turned back"),
        (all.rolled_back, "rolled back"),
        (all.paused, "paused"),
        (all.dropped_plans, "overtaken"),
        (all.restarts, "restarted"),
        (all.frozen, "frozen"),
        (all.approved, "approved"),
        (all.measured, "measured"),
        (all.timed_out, "timed out"),
        (all.aborted, "ended by a criterion"),
        (all.compared, "compared"),
        (all.replayed, "replayed"),
        (all.left_out, "left out for their versions"),
        (all.untold, "not sent for what they do not know"),
        (all.reached_old, "brought to earlier versions"),
    ] {
        assert!(count > runs / 100, "in {runs} runs {count} {what}");
    }
    assert!(all.called_back > runs / 200, "in {runs} runs {} called back from a switch", all.called_back);
    assert!(all.unread > runs / 2_000, "in {runs} runs {} sent in vain to who fell back unheard", all.unread);
    assert!(all.overridden > runs / 1_000, "in {runs} runs {} ended for an emergency", all.overridden);
}
