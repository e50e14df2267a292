//! Planners with a fault each: proof that the simulation can fail, and how soon it does. The checker of `muster-rollout` is not
//! asked here, so it is the rules of the simulation that find the fault.

use muster_rollout::{Action, Decision, Errand, Fleet, Rollout, plan};
use muster_shared::rollout::{RolloutStatus, WaveSize};

use crate::controller::Planner;
use crate::run;

/// Seeds within which a fault must show.
const SEEDS: u64 = 400;

/// The first seed with which `planner` breaks a rule, and which rule it breaks then.
fn caught(planner: Planner) -> (u64, String) {
    let found = (0..SEEDS).find_map(|seed| run(seed, planner, false, false).1.err().map(|why| (seed, why)));
    found.expect("a planner with this fault must be found out")
}

/// Finds the fault out, and says so in words that are about it.
fn must_be_caught(fault: &str, planner: Planner, words: &[&str]) {
    let (seed, why) = caught(planner);
    eprintln!("{fault}: seed {seed}: {why}");
    assert!(words.iter().any(|words| why.contains(words)), "{fault}: {why}");
}

#[test]
fn a_wave_that_is_larger_than_its_size() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut wider = rollout.clone();
        for wave in &mut wider.spec.waves {
            wave.size = match wave.size {
                WaveSize::Count(count) => WaveSize::Count(count + 1),
                WaveSize::Percent(percent) => WaveSize::Percent((percent + 25).min(100)),
            };
        }
        let mut decision = plan(&wider, fleet, now_ms);
        decision.next.spec = rollout.spec.clone();
        decision
    }
    must_be_caught("cap + 1", planner, &["its size is"]);
}

#[test]
fn a_wave_that_passes_without_reports() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut eased = rollout.clone();
        (eased.spec.limits.min_reports, eased.spec.limits.min_requests) = (0, 0);
        let mut decision = plan(&eased, fleet, now_ms);
        decision.next.spec = rollout.spec.clone();
        decision
    }
    must_be_caught("promotion without reports", planner, &["passed wave"]);
}

#[test]
fn a_wave_that_passes_without_its_analysis() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut eased = rollout.clone();
        (eased.spec.analyses, eased.analyses) = (Vec::new(), Vec::new());
        let mut decision = plan(&eased, fleet, now_ms);
        decision.next.spec = rollout.spec.clone();
        decision.next.analyses = rollout.analyses.clone();
        decision
    }
    must_be_caught("promotion without an analysis", planner, &["on the answers"]);
}

#[test]
fn a_rate_that_is_not_kept() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut going = rollout.clone();
        going.spec.rate = None;
        let mut decision = plan(&going, fleet, now_ms);
        decision.next.spec = rollout.spec.clone();
        decision
    }
    must_be_caught("no rate", planner, &["its rate is"]);
}

#[test]
fn a_deadline_that_is_cut_short() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut hasty = rollout.clone();
        if let Some(deadlines) = &mut hasty.spec.deadlines {
            for within_ms in [&mut deadlines.in_progress_ms, &mut deadlines.offline_ms] {
                *within_ms = within_ms.map(|ms| ms.div_ceil(2));
            }
        }
        let mut decision = plan(&hasty, fleet, now_ms);
        decision.next.spec = rollout.spec.clone();
        decision
    }
    must_be_caught("half the time", planner, &["is late after"]);
}

#[test]
fn a_silence_that_counts_as_success() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut decision = plan(rollout, fleet, now_ms);
        for target in decision.next.targets.values_mut() {
            let is_silent = target.errand == Errand::Forward && target.failure.is_none();
            if let Some(late_ms) = target.deadline.timed_out_at_ms.filter(|_| is_silent) {
                target.done_at_ms.get_or_insert(late_ms);
            }
        }
        decision
    }
    must_be_caught("late and done", planner, &["has not said that it has committed"]);
}

#[test]
fn a_criterion_that_is_not_heeded() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut deaf = rollout.clone();
        deaf.spec.abort_criteria = Vec::new();
        let mut decision = plan(&deaf, fleet, now_ms);
        decision.next.spec = rollout.spec.clone();
        decision
    }
    must_be_caught("no criterion", planner, &["and it goes on"]);
}

#[test]
fn a_comparison_that_is_left_out() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut eased = rollout.clone();
        let undecided = eased.waves.get_mut(eased.current_wave as usize).and_then(|wave| wave.gate.as_mut());
        if let Some(gate) = undecided {
            gate.waived_by = Some("nobody".to_owned());
        }
        let mut decision = plan(&eased, fleet, now_ms);
        for (state, known) in decision.next.waves.iter_mut().zip(&rollout.waves) {
            if let Some((gate, known)) = state.gate.as_mut().zip(known.gate.as_ref()) {
                gate.waived_by.clone_from(&known.waived_by);
            }
        }
        decision
    }
    must_be_caught("a comparison that nobody heeds", planner, &["against its comparison"]);
}

#[test]
fn a_stop_that_is_forgotten() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut going = rollout.clone();
        if going.status == RolloutStatus::Stopped {
            going.status = RolloutStatus::Running;
        }
        plan(&going, fleet, now_ms)
    }
    must_be_caught("a forgotten abort", planner, &["was stopped and goes on", "replanning is not idempotent"]);
}

#[test]
fn a_switch_that_is_not_called_off() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut kept = rollout.clone();
        if kept.status == RolloutStatus::Stopped {
            kept.outstanding = false;
        }
        let mut decision = plan(&kept, fleet, now_ms);
        decision.next.outstanding = rollout.outstanding;
        decision
    }
    must_be_caught("no recall", planner, &["waits to switch"]);
}

#[test]
fn a_way_back_that_is_left() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut going = rollout.clone();
        if going.status == RolloutStatus::RollingBack {
            going.status = RolloutStatus::Running;
        }
        plan(&going, fleet, now_ms)
    }
    // It also fails again at every look, which is another verdict each time.
    let words = ["by itself", "was on its way back", "replanning is not idempotent"];
    must_be_caught("a rollback that is left", planner, &words);
}

#[test]
fn a_generation_that_is_given_twice() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut decision = plan(rollout, fleet, now_ms);
        for Action::Assign { device, generation, .. } in &mut decision.actions {
            let is_new = !rollout.targets.contains_key(device);
            if let Some(target) = decision.next.targets.get_mut(device).filter(|_| is_new && *generation > 1) {
                target.generation -= 1;
                *generation = target.generation;
            }
        }
        decision
    }
    must_be_caught("a generation used again", planner, &["the store has a newer one", "was given generation"]);
}

#[test]
fn a_device_of_another_rollout() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut free = fleet.clone();
        for (id, facts) in &mut free.devices {
            if !rollout.targets.contains_key(id) {
                facts.held_by = None;
            }
        }
        plan(rollout, &free, now_ms)
    }
    must_be_caught("a held device taken", planner, &["another rollout", "the control of a verdict"]);
}

#[test]
fn a_device_that_is_dropped() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut decision = plan(rollout, fleet, now_ms);
        if decision.next.status == RolloutStatus::Paused {
            decision.next.targets.retain(|_, target| target.failure.is_none());
        }
        decision
    }
    must_be_caught("a failed device dropped", planner, &["dropped"]);
}

#[test]
fn a_control_that_is_no_control() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut decision = plan(rollout, fleet, now_ms);
        let is_new = decision.next.verdicts.len() > rollout.verdicts.len();
        if let Some(verdict) = decision.next.verdicts.last_mut().filter(|_| is_new) {
            verdict.control.devices += u32::try_from(rollout.targets.len()).unwrap_or_default();
        }
        decision
    }
    must_be_caught("devices of the rollout as control", planner, &["the control of a verdict"]);
}

#[test]
fn a_wave_that_is_never_looked_at_again() {
    fn planner(rollout: &Rollout, fleet: &Fleet, now_ms: u64) -> Decision {
        let mut decision = plan(rollout, fleet, now_ms);
        let running = decision.next.status == RolloutStatus::Running;
        if running {
            decision.next.waves.iter_mut().for_each(|wave| wave.soak_from_ms = None);
        }
        decision
    }
    must_be_caught("a soak that never ends", planner, &["no end in sight"]);
}
