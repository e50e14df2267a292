//! What the rollout itself answers: its own counts, with two denominators. Errors are counted over the devices that reported, success over
//! those that were targeted, so that devices which never got there cannot make a rollout look well.

use muster_shared::rollout::{ArmSummary, Value};

use crate::fleet::Fleet;
use crate::judgement::Judgement;
use crate::rollout::Rollout;
use crate::standing::has_arrived;

fn share(part: f64, of: f64) -> Value {
    Value::from((of > 0.0).then(|| part / of))
}

fn arm(arm: &ArmSummary) -> Value {
    let number = |n: u32| Value::Number(f64::from(n));
    let (requests, errors) = (arm.requests as f64, arm.errors as f64);
    Value::map([
        ("devices", number(arm.devices)),
        ("reporting", number(arm.reporting)),
        ("reports", number(arm.reports)),
        ("requests", Value::Number(requests)),
        ("errors", Value::Number(errors)),
        ("errorRate", share(errors, requests)),
        ("failures", number(arm.failures)),
        ("latencyP99Us", Value::from(arm.latency_p99_us)),
    ])
}

/// The counts of the wave that `judgement` is about.
pub(super) fn answer(rollout: &Rollout, fleet: &Fleet, judgement: &Judgement) -> Value {
    let (mut targeted, mut succeeded) = (0u32, 0u32);
    for (_, target, facts) in rollout.governed_targets(fleet).filter(|(_, target, _)| rollout.is_watched(target)) {
        targeted += 1;
        succeeded += u32::from(has_arrived(target, facts));
    }
    let (all, done) = (f64::from(targeted), f64::from(succeeded));
    Value::map([
        ("targeted", Value::Number(all)),
        ("succeeded", Value::Number(done)),
        ("successRate", share(done, all)),
        ("canary", arm(judgement.canary())),
        ("control", arm(judgement.control())),
    ])
}
