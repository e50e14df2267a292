//! What operators read, word for word.

use std::collections::BTreeMap;

use muster_shared::messages::UpdateState;
use muster_shared::rollout::{Outcome, Verdict};

use super::world::{MAX_MS, SOAK_MS, Served, World, last_verdict, spec};

fn sentences(verdict: &Verdict) -> Vec<&str> {
    verdict.checks.iter().map(|check| check.sentence.as_str()).collect()
}

/// One canary of three that has committed, and what the control measured.
fn watched(canary: Served<'_>, control: Served<'_>) -> World {
    let mut world = World::new(spec(&["1", "100%"]), &["a", "b", "c"]);
    world.tick(0);
    let first = world.first(0);
    world.commits(&first);
    world.tick(1);
    world.serves(&first, canary);
    for name in ["a", "b", "c"] {
        if name != first {
            world.serves(name, control);
        }
    }
    world
}

#[test]
fn a_wave_that_fails_on_its_predictions() {
    // By hand: (410/412 − ½)·ln(2·410/412) + (2/412 − ½)·ln(2·2/412) = 0.341 + 2.295.
    let even = [("0", 401), ("1", 401)];
    let skewed = [("0", 410), ("1", 2)];
    let mut world = watched(
        Served { reports: 6, requests: 412, errors: 1, latency_us: 2_100, classes: &skewed },
        Served { reports: 6, requests: 802, errors: 1, latency_us: 2_000, classes: &even },
    );
    let decision = world.tick(1);
    let verdict = last_verdict(&decision.next);
    assert_eq!(
        sentences(verdict),
        [
            "no device failed, reverted or crashed, 0 allowed",
            "error rate 0.24 % ≤ 5.00 % (canary 1 of 412 requests, control 2 of 1,604)",
            "latency p99 1.08 × ≤ 2.00 × the control's (canary 2.12 ms over 412 requests, control 1.96 ms over 1,604)",
            "prediction PSI 2.64 > 0.25 (canary 412 predictions, control 1,604)",
            "6 reports, 3 needed",
            "412 requests, 100 needed",
        ]
    );
    assert_eq!(verdict.summary, "wave 1 failed: prediction PSI 2.64 > 0.25 (canary 412 predictions, control 1,604)");
    assert_eq!(decision.next.status_reason, verdict.summary);
}

#[test]
fn a_wave_that_fails_on_errors_and_latency_at_once() {
    let mut world = watched(
        Served { requests: 200, errors: 30, latency_us: 9_000, ..Served::default() },
        Served { latency_us: 900, ..Served::default() },
    );
    let verdict = last_verdict(&world.tick(1).next).clone();
    assert_eq!(
        verdict.summary,
        "wave 1 failed: error rate 15.00 % > 5.00 % (canary 30 of 200 requests, control 0 of 200); \
         latency p99 9.78 × > 2.00 × the control's (canary 8.96 ms over 200 requests, control 917 µs over 200)"
    );
}

#[test]
fn a_wave_that_passes_with_a_control() {
    let classes = [("0", 50), ("1", 50)];
    let served = Served { classes: &classes, ..Served::default() };
    let mut world = watched(served, served);
    let verdict = last_verdict(&world.tick(SOAK_MS).next).clone();
    assert_eq!(verdict.outcome, Outcome::Successful);
    assert_eq!(verdict.summary, "wave 1 passed: 100 requests in 3 reports from 1 of 1 device within every limit");
    assert_eq!(sentences(&verdict)[3], "prediction PSI 0.00 ≤ 0.25 (canary 100 predictions, control 200)");
}

#[test]
fn a_wave_that_passes_on_limits_only() {
    let mut world = watched(Served::default(), Served { reports: 0, requests: 0, ..Served::default() });
    let decision = world.tick(SOAK_MS);
    let verdict = last_verdict(&decision.next);
    assert_eq!(
        verdict.summary,
        "wave 1 passed, limits only: 3 devices are too few to compare; \
         100 requests in 3 reports from 1 of 1 device within the limits"
    );
    assert_eq!(
        sentences(verdict)[1..4],
        [
            "error rate 0.00 % ≤ 5.00 % (canary 0 of 100 requests)",
            "latency p99 not compared: the control has 0 of 3 reports",
            "prediction PSI not judged: no class predictions",
        ]
    );
}

#[test]
fn a_prediction_score_without_a_control() {
    let classes = [("0", 90), ("1", 10)];
    let mut world = watched(Served { classes: &classes, ..Served::default() }, Served::default());
    let decision = world.tick(1);
    assert!(decision.next.verdicts.is_empty());
    world.rollout.bundle.reference_predictions =
        BTreeMap::from([("class".to_owned(), BTreeMap::from([("0".to_owned(), 500), ("1".to_owned(), 510)]))]);
    let verdict = last_verdict(&world.tick(1).next).clone();
    assert_eq!(
        verdict.summary,
        "wave 1 failed: prediction PSI 0.90 > 0.25 \
         (canary 100 predictions, no control of that size, the bundle's reference 1,010)"
    );
}

#[test]
fn what_could_not_be_judged_when_time_ran_out() {
    let few = [("0", 40)];
    let mut world =
        watched(Served { reports: 1, requests: 40, errors: 1, classes: &few, ..Served::default() }, Served::default());
    let decision = world.tick(MAX_MS);
    let verdict = last_verdict(&decision.next);
    assert_eq!(verdict.outcome, Outcome::Inconclusive);
    assert_eq!(verdict.summary, "wave 1 had no verdict after 10 min: 1 of 3 reports with requests; 40 of 100 requests");
    assert_eq!(
        sentences(verdict),
        [
            "no device failed, reverted or crashed, 0 allowed",
            "error rate not judged: 40 of 100 requests",
            "latency p99 not judged: 40 of 100 requests",
            "prediction PSI not judged: 40 of 100 predictions",
            "1 of 3 reports",
            "40 of 100 requests",
            "no verdict after 10 min, 10 min allowed",
        ]
    );
}

#[test]
fn many_failures_are_counted_and_a_few_named() {
    let mut world = World::new(spec(&["100%"]), &["a", "b", "c", "d", "e"]);
    world.tick(0);
    for name in ["a", "b", "c", "d", "e"] {
        world.fails(name, UpdateState::Reverted, if name == "b" { "slow" } else { "" });
    }
    let verdict = last_verdict(&world.tick(1).next).clone();
    assert_eq!(
        sentences(&verdict)[0],
        "5 devices failed, reverted or crashed, 0 allowed: a (reverted), b (reverted: slow), c (reverted) and 2 more"
    );
}
