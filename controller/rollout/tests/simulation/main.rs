//! Rollouts over simulated fleets in virtual time: messages are lost, late, repeated and out of order, devices go, come
//! back, fail, crash and are taken away, the controller dies between any two steps, its clock jumps, and operators do
//! what they like. At every tick the decision must stand before the checker and planning must be settled; and once the
//! faults cease, every rollout must come to an end.

mod chance;
mod device;
mod scenario;
mod world;

use muster_shared::rollout::RolloutStatus;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use scenario::Scenario;
use world::World;

/// Ticks within which a rollout must end once the faults have ceased: three waves with their longest duration each, and the
/// way back.
const PEACE_TICKS: u64 = 70;

fn run(scenario: &Scenario) -> RolloutStatus {
    let mut world = World::new(scenario);
    (0..scenario.ticks).for_each(|_| world.step());
    world.make_peace();
    // Late messages arrive, and a rollout that ended early still tells those who return.
    for tick in 0..PEACE_TICKS {
        world.step();
        if tick > 12 && (world.rollout.status().is_terminal() || world.rollout.status() == RolloutStatus::Paused) {
            break;
        }
    }
    world.examine_end();
    world.rollout.status()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_rules_hold_and_it_ends(scenario in Scenario::any()) {
        run(&scenario);
    }
}

/// The simulation is worth something only if its rollouts end in every way there is.
#[test]
fn runs_end_in_every_way() {
    let mut ends = std::collections::BTreeMap::new();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..300 {
        let scenario = Scenario::any().new_tree(&mut runner).expect("a scenario").current();
        *ends.entry(run(&scenario)).or_insert(0) += 1;
    }
    for status in [RolloutStatus::Completed, RolloutStatus::RolledBack, RolloutStatus::Stopped, RolloutStatus::Paused] {
        assert!(ends.get(&status).is_some_and(|n| *n >= 5), "{status}: {ends:?}");
    }
}
