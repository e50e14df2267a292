//! Analyses: what measurements come to, and what a wave makes of it.

use muster_shared::messages::UpdateState;
use muster_shared::rollout::{
    Analysis, AnalysisUse, Measurement, MetricTemplate, Outcome, RolloutStatus, Rule, Value, Waiting,
};
use proptest::prelude::*;

use super::world::{MAX_MS, SOAK_MS, Served, World, check, last_verdict, spec, statuses, waits_for};
use crate::analysis::outcome;
use crate::{Decision, Due, MetricRun, OperatorAction, Violation, plan, verify};

/// A metric that asks a service, with what `fields` says besides.
pub(super) fn metric(fields: serde_json::Value) -> MetricTemplate {
    let mut metric = serde_json::json!({
        "name": "share", "successCondition": "result >= 0.9",
        "provider": {"web": {"url": "https://example.com/"}},
    });
    metric.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(metric).unwrap()
}

pub(super) fn fleet_metric(condition: &str, fields: serde_json::Value) -> MetricTemplate {
    let mut metric = metric(fields);
    metric.success_condition = Some(condition.to_owned());
    metric.provider = serde_json::from_str(r#"{"fleet": {}}"#).unwrap();
    metric
}

/// Four devices, the first of them a wave of its own, whose waves must stand `metrics`.
fn world_with(metrics: Vec<MetricTemplate>, waves: &[u32]) -> World {
    let mut spec = spec(&["1", "100%"]);
    let asked = AnalysisUse { template: "shares".parse().unwrap(), args: Default::default(), waves: waves.to_vec() };
    spec.analyses = vec![asked];
    let mut world = World::new(spec, &["a", "b", "c", "d"]);
    let analysis = Analysis { template: "shares@1".parse().unwrap(), waves: waves.to_vec(), metrics };
    world.rollout = world.rollout.clone().analysed_by(vec![analysis]).unwrap();
    world
}

/// The same, the first device committed and its soak begun.
pub(super) fn soaking(metrics: Vec<MetricTemplate>) -> (World, Decision) {
    let mut world = world_with(metrics, &[1]);
    world.tick(0);
    world.all_commit();
    let decision = world.tick(1);
    (world, decision)
}

/// Answers the only thing that is due, and plans again.
pub(super) fn answer(world: &mut World, decision: &Decision, answer: Result<f64, &str>) -> Decision {
    let [due] = decision.due.as_slice() else { panic!("one thing is due: {:?}", decision.due) };
    record(world, due, answer);
    world.tick(0)
}

fn record(world: &mut World, due: &Due, answer: Result<f64, &str>) {
    let answer = answer.map(Value::Number).map_err(str::to_owned);
    world.rollout = world.rollout.record(due, answer, world.now_ms).expect("it is asked for");
}

#[test]
fn a_wave_passes_once_its_analysis_has_measured_as_often_as_it_asks() {
    let (mut world, decision) = soaking(vec![metric(serde_json::json!({"interval": "10s", "count": 3}))]);
    let decision = answer(&mut world, &decision, Ok(0.95));
    assert!(decision.due.is_empty());
    // Without it the soak would have been enough.
    let decision = world.tick(SOAK_MS);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 0));
    let next_ms = world.now_ms - SOAK_MS + 10_000;
    let waits = Waiting::Analysing { metric: "shares@1/share".into(), have: 1, of: 3, next_ms };
    assert!(waits_for(&decision, |waiting| *waiting == waits), "{:?}", decision.waiting);
    assert_eq!(decision.wake_at_ms, Some(next_ms));

    let decision = world.tick(9_000);
    let decision = answer(&mut world, &decision, Ok(0.92));
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 0));
    let decision = world.tick(10_000);
    let decision = answer(&mut world, &decision, Ok(0.99));
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1));
    let verdict = last_verdict(&world.rollout);
    let rule = check(verdict, Rule::Analysis);
    assert_eq!((rule.outcome, rule.measured, rule.canary_samples), (Outcome::Successful, Some(0.0), 3));
    let report = &verdict.analyses[0].metrics[0];
    assert_eq!((report.measured, report.measurements.len()), (3, 3));
    assert_eq!(report.measurements[1].value.as_deref(), Some("0.92"));
    // The second wave is not asked about.
    assert_eq!(world.pass_wave().next.status, RolloutStatus::Completed);
}

#[test]
fn a_failed_analysis_takes_the_wave_back_at_once() {
    let limits = serde_json::json!({"interval": "1s", "count": 5, "failureLimit": 1});
    let (mut world, decision) = soaking(vec![metric(limits)]);
    let decision = answer(&mut world, &decision, Ok(0.5));
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 0), "one may fail");
    let decision = world.tick(1_000);
    let decision = answer(&mut world, &decision, Ok(0.4));
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    let verdict = last_verdict(&world.rollout);
    assert_eq!((verdict.outcome, check(verdict, Rule::Analysis).measured), (Outcome::Failed, Some(2.0)));
    assert!(verdict.summary.contains("shares@1/share: 2 of 2 failed, 1 may; the last is 0.4"), "{}", verdict.summary);
    assert!(decision.due.is_empty(), "nobody is asked any more");
}

#[test]
fn what_shows_neither_pauses_and_is_measured_anew_by_who_resumes() {
    let both = serde_json::json!({"failureCondition": "result < 0.5"});
    let (mut world, decision) = soaking(vec![metric(both)]);
    let first = decision.due[0].clone();
    let decision = answer(&mut world, &decision, Ok(0.7));
    assert_eq!(decision.next.status, RolloutStatus::Paused);
    let verdict = last_verdict(&world.rollout);
    assert_eq!(
        (verdict.outcome, check(verdict, Rule::Analysis).outcome),
        (Outcome::Inconclusive, Outcome::Inconclusive)
    );
    assert!(verdict.summary.contains("1 of 1 inconclusive, 0 may be; the last is 0.7"), "{}", verdict.summary);

    world.now_ms += 5_000;
    world.apply(OperatorAction::Resume);
    let decision = world.tick(0);
    assert_eq!(decision.next.status, RolloutStatus::Running, "it does not pass for being resumed");
    // An answer to the question from before is no answer to this one.
    assert!(world.rollout.record(&first, Ok(Value::Number(1.0)), world.now_ms).is_none());
    let decision = answer(&mut world, &decision, Ok(0.95));
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1));
}

#[test]
fn nobody_who_answers_pauses_too() {
    let (mut world, mut decision) = soaking(vec![metric(serde_json::json!({"consecutiveErrorLimit": 2}))]);
    for error in 1..=3 {
        assert_eq!(statuses(&decision), (RolloutStatus::Running, 0));
        decision = answer(&mut world, &decision, Err("connection refused"));
        if error < 3 {
            // Without an interval, an error is tried again after ten seconds.
            assert_eq!(
                decision.wake_at_ms.map(|at_ms| at_ms - world.now_ms),
                Some(if error == 1 { SOAK_MS } else { 10_000 })
            );
            decision = world.tick(10_000);
        }
    }
    assert_eq!(decision.next.status, RolloutStatus::Paused);
    let summary = &last_verdict(&world.rollout).summary;
    assert!(summary.contains("3 errors in a row, 2 may be; the last is: connection refused"), "{summary}");
}

#[test]
fn silence_never_promotes_however_long_it_lasts() {
    let (mut world, decision) = soaking(vec![metric(serde_json::json!({}))]);
    assert_eq!(decision.due.len(), 1);
    let decision = world.tick(SOAK_MS * 100);
    assert_eq!((statuses(&decision), decision.due.len()), ((RolloutStatus::Running, 0), 1), "it is asked again");
    let decision = world.tick(MAX_MS);
    assert_eq!(decision.next.status, RolloutStatus::Paused);
    assert_eq!(last_verdict(&world.rollout).outcome, Outcome::Inconclusive);
}

#[test]
fn an_answer_counts_once_and_only_as_long_as_it_is_waited_for() {
    let (mut world, decision) = soaking(vec![metric(serde_json::json!({"interval": "1s", "count": 2}))]);
    let due = decision.due[0].clone();
    let other = World { rollout: world.rollout.clone(), fleet: world.fleet.clone(), now_ms: world.now_ms };
    record(&mut world, &due, Ok(0.95));
    assert!(world.rollout.record(&due, Ok(Value::Number(0.95)), world.now_ms).is_none(), "it has come already");
    for action in [OperatorAction::Pause, OperatorAction::Abort, OperatorAction::Rollback] {
        let held = other.rollout.apply(action, "alice", None, other.now_ms).unwrap();
        assert!(held.record(&due, Ok(Value::Number(0.95)), other.now_ms).is_none(), "{action:?}");
    }
}

#[test]
fn it_begins_with_the_soak_and_after_its_delay() {
    let mut world = world_with(vec![metric(serde_json::json!({"initialDelay": "1m"}))], &[]);
    world.tick(0);
    let first = world.first(0);
    world.works(&first, UpdateState::Fetching);
    assert!(world.tick(120_000).due.is_empty(), "no device has the bundle yet");
    world.all_commit();
    assert!(world.tick(1).due.is_empty());
    assert!(world.tick(59_999).due.is_empty());
    assert_eq!(world.tick(1).due.len(), 1);
}

#[test]
fn a_clock_that_is_set_back_does_not_keep_it_from_being_measured() {
    let (mut world, decision) = soaking(vec![metric(serde_json::json!({"interval": "5s", "count": 2}))]);
    answer(&mut world, &decision, Ok(0.95));
    world.now_ms -= 500_000;
    assert!(world.tick(0).due.is_empty());
    assert_eq!(world.tick(5_000).due.len(), 1);
}

#[test]
fn the_rollout_itself_can_be_asked() {
    let rate = "result.canary.errorRate <= 0.02 && result.successRate == 1 && result.control.errors == 0";
    let (mut world, decision) = soaking(vec![fleet_metric(rate, serde_json::json!({"interval": "2s", "count": 2}))]);
    assert!(decision.due.is_empty(), "nobody else knows");
    let decision = world.tick(SOAK_MS);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 0));
    let decision = world.tick(1_000);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 1));
    let measured = last_verdict(&world.rollout).analyses[0].metrics[0].measurements[0].value.clone().unwrap();
    assert!(measured.contains("\"requests\": 100") && measured.contains("\"targeted\": 1"), "{measured}");
    assert!(!measured.ends_with('…'), "it is kept whole");

    // 4 errors of 100 are within the limit of the wave, and above that of the analysis.
    let mut world = world_with(vec![fleet_metric(rate, serde_json::json!({}))], &[]);
    world.tick(0);
    let first = world.first(0);
    world.commits(&first);
    world.serves(&first, Served { errors: 4, ..Served::default() });
    let decision = world.tick(1);
    assert_eq!(decision.next.status, RolloutStatus::RollingBack);
    let nothing = Served { requests: 0, reports: 0, ..Served::default() };
    let mut silent = world_with(vec![fleet_metric(rate, serde_json::json!({}))], &[]);
    silent.tick(0);
    let first = silent.first(0);
    silent.commits(&first);
    silent.serves(&first, nothing);
    silent.tick(1);
    let report = &silent.rollout.view(&silent.fleet, &[]).waves[0].analyses[0].metrics[0];
    assert_eq!((report.outcome, report.errors), (None, 1), "a rate of nothing is no rate: {}", report.sentence);
}

#[test]
fn what_is_asked_for_and_not_there_keeps_the_wave() {
    let mut world = world_with(vec![metric(serde_json::json!({}))], &[]);
    world.rollout.analyses.clear();
    world.tick(0);
    world.all_commit();
    world.tick(1);
    let decision = world.tick(SOAK_MS);
    assert_eq!(statuses(&decision), (RolloutStatus::Running, 0));
    assert!(waits_for(&decision, |waiting| matches!(waiting, Waiting::Analysing { .. })));
    let many = Analysis {
        template: "shares@1".parse().unwrap(),
        waves: Vec::new(),
        metrics: vec![metric(serde_json::json!({"interval": "1s", "count": 200})); 2],
    };
    let error = world.rollout.clone().analysed_by(vec![many]).unwrap_err().to_string();
    assert!(error.contains("400 measurements"), "{error}");
    assert!(world.rollout.analysed_by(Vec::new()).unwrap_err().to_string().contains("shares"));
}

#[test]
fn the_checker_finds_plans_that_go_against_analyses() {
    let spoilt = |world: &World, spoil: &dyn Fn(&mut Decision), part: &str| {
        let mut decision = plan(&world.rollout, &world.fleet, world.now_ms);
        assert_eq!(verify(&world.rollout, &decision, &world.fleet, world.now_ms), Ok(()));
        spoil(&mut decision);
        let found = verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err();
        let ours = |v: &Violation| matches!(v, Violation::Analysis { .. }) && v.to_string().contains(part);
        assert!(found.iter().any(ours), "{part}: {found:?}");
    };
    let (world, _) = soaking(vec![metric(serde_json::json!({"interval": "1s", "count": 2}))]);
    let run = |decision: &mut Decision, change: &dyn Fn(&mut MetricRun)| {
        change(&mut decision.next.waves[0].analyses.get_mut(&0).unwrap().metrics[0]);
    };
    let good = Measurement { at_ms: world.now_ms, outcome: Outcome::Successful, value: None, message: None };
    spoilt(&world, &|decision| run(decision, &|run| run.measurements.push(good.clone())), "nobody answered");
    spoilt(&world, &|decision| decision.next.waves[0].analyses.clear(), "forgotten");
    spoilt(&world, &|decision| decision.due.clear(), "others are asked");
    spoilt(&world, &|decision| decision.due.push(decision.due[0].clone()), "others are asked");

    // As if the analysis had not been asked for.
    let eased = |world: &World| {
        let mut eased = world.rollout.clone();
        (eased.spec.analyses, eased.analyses) = (Vec::new(), Vec::new());
        eased.waves.iter_mut().for_each(|wave| wave.analyses.clear());
        let mut decision = plan(&eased, &world.fleet, world.now_ms);
        decision.next.spec.analyses = world.rollout.spec.analyses.clone();
        decision.next.analyses = world.rollout.analyses.clone();
        for (wave, known) in decision.next.waves.iter_mut().zip(&world.rollout.waves) {
            wave.analyses = known.analyses.clone();
        }
        verify(&world.rollout, &decision, &world.fleet, world.now_ms).unwrap_err()
    };
    let (mut world, decision) = soaking(vec![metric(serde_json::json!({"interval": "1s", "count": 2}))]);
    record(&mut world, &decision.due[0], Ok(0.95));
    world.now_ms += SOAK_MS;
    let found = eased(&world);
    assert!(found.iter().any(|v| v.to_string().contains("was not stood, and it passed")), "{found:?}");
    let (mut world, decision) = soaking(vec![metric(serde_json::json!({}))]);
    record(&mut world, &decision.due[0], Ok(0.1));
    let found = eased(&world);
    assert!(found.iter().any(|v| v.to_string().contains("failed, and it goes on")), "{found:?}");
    let (mut world, decision) = soaking(vec![metric(serde_json::json!({"failureCondition": "result < 0.1"}))]);
    record(&mut world, &decision.due[0], Ok(0.5));
    let found = eased(&world);
    assert!(found.iter().any(|v| v.to_string().contains("shows nothing, and it goes on")), "{found:?}");
    // A share that nobody reported.
    let (world, _) =
        soaking(vec![fleet_metric("result.targeted > 0", serde_json::json!({"interval": "1s", "count": 9}))]);
    let mut later = world;
    later.now_ms += 1_000;
    let lie = |run: &mut MetricRun| {
        let last = run.measurements.last_mut().unwrap();
        last.value = last.value.as_ref().map(|value| value.replace("\"requests\": 100", "\"requests\": 900"));
    };
    spoilt(&later, &|decision| run(decision, &lie), "not those that were reported");
}

/// What measurements come to, by the documentation of Argo Rollouts: `F` failed, `I` inconclusive, `E` error, `S` successful; with count 5,
/// failureLimit 1, inconclusiveLimit 1, consecutiveErrorLimit 2.
#[test]
fn metrics_end_as_argo_documents() {
    let metric = metric(serde_json::json!({
        "interval": "1s", "count": 5, "failureLimit": 1, "inconclusiveLimit": 1, "consecutiveErrorLimit": 2,
    }));
    for (story, expected) in [
        ("", None),
        ("SSSS", None),
        ("SSSSS", Some(Outcome::Successful)),
        ("F", None),
        ("FSSSS", Some(Outcome::Successful)),
        ("FF", Some(Outcome::Failed)),
        ("I", None),
        ("II", Some(Outcome::Inconclusive)),
        ("IFSSS", Some(Outcome::Successful)),
        ("EE", None),
        ("EEE", Some(Outcome::Error)),
        ("EESEESEES", None),
        ("EESEESEESEESEES", Some(Outcome::Successful)),
        ("SSSSEE", None),
        ("IFI", Some(Outcome::Inconclusive)),
        ("FIF", Some(Outcome::Failed)),
    ] {
        let mut run = MetricRun { next_ms: 0, errors: 0, measurements: Vec::new() };
        let told: Vec<Option<Outcome>> = story
            .chars()
            .map(|letter| {
                let of = match letter {
                    'S' => Outcome::Successful,
                    'F' => Outcome::Failed,
                    'I' => Outcome::Inconclusive,
                    _ => Outcome::Error,
                };
                run.take(&metric, Measurement { at_ms: 7, outcome: of, value: None, message: None });
                outcome(&metric, &run.measurements)
            })
            .collect();
        assert_eq!(told.last().copied().flatten(), expected, "{story}");
        let ended_early = told.iter().rev().skip(1).any(Option::is_some);
        assert!(!ended_early, "{story}: {told:?}");
    }
}

proptest! {
    /// However answers come, a wave passes only on as many good ones as were asked for, and a rollout keeps no more than it must.
    #[test]
    fn no_answers_but_good_ones_promote(answers in prop::collection::vec((0u8..10, 0u64..3_000), 1..40)) {
        let wish = serde_json::json!({
            "interval": "1s", "count": 3, "failureLimit": 1, "failureCondition": "result < 0.3", "consecutiveErrorLimit": 3,
        });
        let (mut world, mut decision) = soaking(vec![metric(wish)]);
        let (mut good, mut failed) = (0, 0);
        for (kind, after_ms) in answers {
            if decision.next.status != RolloutStatus::Running || decision.next.current_wave > 0 {
                break;
            }
            if let [due] = decision.due.as_slice() {
                let answer = match kind {
                    0 | 1 => Err("lost"),
                    2 => Ok(0.1),
                    3 => Ok(0.5),
                    _ => Ok(1.0),
                };
                record(&mut world, due, answer);
                good += u32::from(kind > 3);
                failed += u32::from(kind == 2);
            }
            let kept = &world.rollout.waves[0].analyses[&0].metrics[0].measurements;
            prop_assert!(kept.len() <= 3 + 4, "{}", kept.len());
            decision = world.tick(after_ms);
            if decision.next.current_wave > 0 {
                prop_assert!(good + failed == 3 && failed <= 1);
            }
            prop_assert_eq!(decision.next.status == RolloutStatus::RollingBack, failed > 1);
        }
    }
}
