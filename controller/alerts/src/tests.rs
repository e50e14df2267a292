use std::collections::{BTreeMap, BTreeSet};

use muster_shared::alert::{
    AlertEvidence, AlertRule, AlertState, Matcher, RuleOrigin, Severity, Signal, Silence, Told,
};
use muster_shared::ids::RuleName;
use proptest::prelude::*;

use super::*;

const LIMITS: Limits =
    Limits { max_active: 1_000, max_resolved: 100, resolved_kept_ms: 1_000_000, false_discovery_rate: 0.05 };

fn rule(name: &str, for_ms: u64, keep_firing_for_ms: u64) -> AlertRule {
    let mut rule = built_in_rules().into_iter().find(|rule| rule.signal == Signal::ErrorRate).unwrap();
    rule.name = RuleName::new(name).unwrap();
    (rule.for_ms, rule.keep_firing_for_ms, rule.over_ms, rule.min_count) = (for_ms, keep_firing_for_ms, 1_000, 0);
    (rule.fire_at, rule.clear_at) = (0.5, Some(0.2));
    rule
}

fn rules(list: &[AlertRule]) -> BTreeMap<RuleName, AlertRule> {
    list.iter().map(|rule| (rule.name.clone(), rule.clone())).collect()
}

fn seen(thing: &str, value: f64, p_value: Option<f64>) -> Observation {
    let labels = [("bundle".to_owned(), thing.to_owned())].into();
    Observation { labels, value, p_value, evidence: AlertEvidence { n: Some(100), ..AlertEvidence::default() } }
}

fn round(rule: &str, observations: Vec<Observation>) -> Round {
    Round { observations: [(RuleName::new(rule).unwrap(), observations)].into(), unmeasured: BTreeSet::new() }
}

fn silence_all(rule: &str) -> Silence {
    let matchers = vec![Matcher { label: "rule".into(), value: rule.into(), negate: false }];
    Silence { id: "s".into(), matchers, since_ms: 0, until_ms: u64::MAX, by: "ana".into(), reason: "test".into() }
}

/// The states told of, in order.
fn told(step: &Step) -> Vec<AlertState> {
    step.notices.iter().map(|notice| notice.alert.state).collect()
}

fn moves(step: &Step) -> Vec<(Option<AlertState>, Option<AlertState>)> {
    step.changes.iter().map(|change| (change.from, change.to)).collect()
}

#[test]
fn a_value_must_stay_bad_to_fire_and_stay_good_to_end() {
    use AlertState::{Firing, Pending, Resolved};
    let rules = rules(&[rule("r", 100, 200)]);
    let mut book = Book::default();
    let mut at = |value: f64, now_ms: u64| {
        book.evaluate(&rules, &[], &round("r", vec![seen("a", value, None)]), &LIMITS, now_ms)
    };
    assert_eq!(moves(&at(0.5, 0)), [], "at the threshold is not beyond it");
    assert_eq!(moves(&at(0.6, 10)), [(None, Some(Pending))]);
    assert_eq!(moves(&at(0.4, 50)), [(Some(Pending), None)], "in between is no longer bad");
    assert_eq!(moves(&at(0.6, 60)), [(None, Some(Pending))]);
    assert_eq!(moves(&at(0.9, 159)), []);
    let step = at(0.7, 160);
    assert_eq!((moves(&step), told(&step)), (vec![(Some(Pending), Some(Firing))], vec![Firing]));
    assert_eq!(step.notices[0].alert.fired_ms, Some(160));
    // In between, or good for too short a time: it goes on, and nobody hears of it again.
    for (value, now_ms) in
        [(0.3, 200), (0.1, 300), (0.1, 450), (0.3, 460), (0.1, 500), (0.6, 600), (0.1, 700), (0.1, 899)]
    {
        let step = at(value, now_ms);
        assert_eq!((moves(&step), told(&step)), (vec![], vec![]), "{now_ms}");
    }
    let step = at(0.0, 900);
    assert_eq!((moves(&step), told(&step)), (vec![(Some(Firing), Some(Resolved))], vec![Resolved]));
    let step = at(0.9, 1_000);
    assert_eq!(moves(&step), [(Some(Resolved), Some(Pending))], "the next incident");
    assert_eq!(told(&at(0.9, 1_100)), [Firing]);
}

#[test]
fn chance_begins_no_alert_and_ends_one() {
    let rules = rules(&[rule("r", 0, 0)]);
    let mut book = Book::default();
    let mut at = |values: &[(f64, f64)], now_ms: u64| {
        let observations = values.iter().enumerate().map(|(n, (v, p))| seen(&n.to_string(), *v, Some(*p))).collect();
        book.evaluate(&rules, &[], &round("r", observations), &LIMITS, now_ms)
    };
    assert!(at(&[(0.9, 0.2), (0.9, 0.06)], 0).changes.is_empty());
    // Alone it would count; among a hundred tests it does not.
    let crowd: Vec<(f64, f64)> = std::iter::once((0.9, 0.01)).chain((0..99).map(|_| (0.9, 0.9))).collect();
    assert!(at(&crowd, 1).changes.is_empty());
    let step = at(&[(0.9, 0.01)], 2);
    assert_eq!(told(&step), [AlertState::Firing]);
    assert_eq!(told(&at(&[(0.9, 0.4)], 3)), [AlertState::Resolved], "large, and no more than chance");
    assert!(at(&[(0.9, f64::NAN)], 4).changes.is_empty());
}

#[test]
fn what_is_not_measured_ends_only_after_a_while() {
    let all = rules(&[rule("r", 0, 500)]);
    let mut book = Book::default();
    book.evaluate(&all, &[], &round("r", vec![seen("a", 0.9, None)]), &LIMITS, 1_000);
    let mut nothing = round("r", vec![]);
    assert!(book.evaluate(&all, &[], &nothing, &LIMITS, 2_499).changes.is_empty());
    nothing.unmeasured.insert(RuleName::new("r").unwrap());
    assert!(book.evaluate(&all, &[], &nothing, &LIMITS, 9_999).changes.is_empty(), "the store could not be read");
    nothing.unmeasured.clear();
    let step = book.evaluate(&all, &[], &nothing, &LIMITS, 2_500);
    assert_eq!(told(&step), [AlertState::Resolved]);
    assert!(step.notices[0].alert.resolution.as_deref().unwrap().contains("not measured"));
    // A rule that is gone ends its alerts at once.
    book.evaluate(&all, &[], &round("r", vec![seen("b", 0.9, None)]), &LIMITS, 3_000);
    assert_eq!(told(&book.evaluate(&BTreeMap::new(), &[], &nothing, &LIMITS, 3_001)), [AlertState::Resolved]);
}

#[test]
fn too_few_values_say_nothing() {
    let mut strict = rule("r", 0, 0);
    strict.min_count = 101;
    let step = Book::default().evaluate(&rules(&[strict]), &[], &round("r", vec![seen("a", 0.9, None)]), &LIMITS, 1);
    assert_eq!(step, Step::default());
}

#[test]
fn a_silenced_alert_changes_state_and_is_told_of_when_the_silence_ends() {
    let rules = rules(&[rule("r", 0, 0)]);
    let mut silence = silence_all("r");
    silence.until_ms = 100;
    let (bad, good) = (round("r", vec![seen("a", 0.9, None)]), round("r", vec![seen("a", 0.0, None)]));
    let mut book = Book::default();
    let step = book.evaluate(&rules, &[silence.clone()], &bad, &LIMITS, 10);
    assert_eq!((step.changes.len(), step.notices.len()), (2, 0));
    assert_eq!(book.alerts().next().unwrap().state, AlertState::Firing);
    let step = book.evaluate(&rules, &[silence.clone()], &bad, &LIMITS, 100);
    assert_eq!((moves(&step), told(&step)), (vec![], vec![AlertState::Firing]));
    // It ends under another silence: receivers hear of the end when that one is over.
    (silence.since_ms, silence.until_ms) = (150, 300);
    assert!(book.evaluate(&rules, &[silence.clone()], &good, &LIMITS, 200).notices.is_empty());
    assert_eq!(told(&book.evaluate(&rules, &[silence.clone()], &good, &LIMITS, 300)), [AlertState::Resolved]);
    assert_eq!(book.evaluate(&rules, &[silence], &good, &LIMITS, 301), Step::default());
}

#[test]
fn more_alerts_than_fit_are_an_alert_and_the_worst_get_in() {
    let mut info = rule("a-info", 0, 0);
    info.severity = Severity::Info;
    let mut critical = rule("z-critical", 0, 0);
    critical.severity = Severity::Critical;
    let rules = rules(&[info, critical]);
    let limits = Limits { max_active: 3, ..LIMITS };
    let many =
        |rule: &str, n: usize| round(rule, (0..n).map(|k| seen(&k.to_string(), 0.9, None)).collect()).observations;
    let mut full = Round::default();
    full.observations.extend(many("a-info", 5));
    full.observations.extend(many("z-critical", 2));
    let mut book = Book::default();
    let step = book.evaluate(&rules, &[], &full, &limits, 1);
    let active: Vec<&str> = book.alerts().filter(|a| a.state.is_active()).map(|a| a.rule.as_str()).collect();
    assert_eq!(active.iter().filter(|rule| **rule == "z-critical").count(), 2);
    assert_eq!(active.iter().filter(|rule| **rule == "a-info").count(), 1);
    let overflow = step.notices.iter().find(|n| n.alert.rule.as_str() == OVERFLOW_RULE).unwrap();
    assert!(overflow.alert.annotations["summary"].starts_with("4 alert(s) more"), "{overflow:?}");
    assert_eq!(book.evaluate(&rules, &[], &full, &limits, 1), Step::default());
    let calm = book.evaluate(&rules, &[], &Round::default(), &limits, 10_000);
    assert!(calm.changes.iter().all(|change| change.alert.rule.as_str() != OVERFLOW_RULE));
    let calm = book.evaluate(&rules, &[], &Round::default(), &limits, 310_000);
    assert_eq!(calm.notices.len(), 1, "{calm:?}");
}

#[test]
fn what_is_over_is_kept_for_a_while_and_not_without_bound() {
    let rules = rules(&[rule("r", 0, 0)]);
    let limits = Limits { max_resolved: 3, resolved_kept_ms: 1_000, ..LIMITS };
    let all = |value: f64| round("r", (0..5).map(|n| seen(&n.to_string(), value, None)).collect());
    let mut book = Book::default();
    book.evaluate(&rules, &[], &all(0.9), &limits, 1);
    let step = book.evaluate(&rules, &[], &all(0.0), &limits, 2);
    assert_eq!((step.notices.len(), step.removes.len(), book.alerts().count()), (5, 2, 3));
    let step = book.evaluate(&rules, &[], &all(0.0), &limits, 1_002);
    assert_eq!((step.removes.len(), book.alerts().count()), (3, 0));
}

#[test]
fn built_in_rules_are_valid_and_give_way_to_own_ones() {
    let built_in = built_in_rules();
    assert!(
        built_in.iter().all(|rule| rule.validate().is_ok()),
        "{:?}",
        built_in.iter().find_map(|r| r.validate().err())
    );
    let covered: BTreeSet<Signal> = built_in.iter().map(|rule| rule.signal).collect();
    // How good a model has to be in itself, only its makers can say.
    let expected: BTreeSet<Signal> = Signal::ALL.into_iter().filter(|signal| signal.metric().is_none()).collect();
    assert_eq!(covered, expected);
    let mut own = rule("input-drift", 0, 0);
    own.enabled = false;
    let in_force = rules_in_force([&own], true);
    assert_eq!(in_force.len(), built_in.len());
    let shown = &in_force[&own.name];
    assert_eq!((shown.origin, shown.rule.enabled), (RuleOrigin::Own, false));
    assert_eq!(rules_in_force([&own], false).len(), 1);
}

#[test]
fn words_are_filled_in_once() {
    let mut rule = rule("r", 0, 0);
    rule.annotations = [("summary".to_owned(), "{bundle}: {value} of {n} in {group}, {devices}".to_owned())].into();
    rule.validate().unwrap();
    let mut observation = seen("{value}", 0.123_45, None);
    observation.labels.insert("site".into(), "lyon".into());
    let step = Book::default().evaluate(
        &rules(&[AlertRule { fire_at: 0.1, clear_at: None, ..rule }]),
        &[],
        &round("r", vec![observation]),
        &LIMITS,
        1,
    );
    assert_eq!(step.notices[0].alert.annotations["summary"], "{value}: 0.1235 of 100 in site=lyon, -");
}

#[test]
fn fingerprints_tell_labels_apart_however_they_are_cut() {
    let name = RuleName::new("r").unwrap();
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let all = [labels(&[("a", "bc")]), labels(&[("ab", "c")]), labels(&[("a", "b"), ("c", "")]), labels(&[])];
    let distinct: BTreeSet<String> = all.iter().map(|labels| fingerprint(&name, labels)).collect();
    assert_eq!(distinct.len(), all.len());
    assert!(distinct.iter().all(|f| f.len() == 32 && f.bytes().all(|b| b.is_ascii_hexdigit())));
}

/// splitmix64 (Steele, Lea and Flood, OOPSLA 2014), as a number between 0 and 1.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[test]
fn the_share_of_false_discoveries_keeps_its_bound() {
    const ROUNDS: u32 = 4_000;
    const TESTS: usize = 64;
    let mut state = 20_261_121;
    // How many of the 64 columns have really moved; their p-values are tiny or, where the effect is weak, merely small.
    for (moved, strength) in [(0, 1.0), (4, 1e-6), (4, 0.02), (32, 1e-6), (32, 0.02)] {
        let (mut sum, mut sum_of_squares) = (0.0, 0.0);
        for _ in 0..ROUNDS {
            let p_values: Vec<f64> =
                (0..TESTS).map(|n| uniform(&mut state) * if n < moved { strength } else { 1.0 }).collect();
            let found = discoveries(&p_values, 0.05);
            let (all, wrong) = (found.iter().filter(|f| **f).count(), found[moved..].iter().filter(|f| **f).count());
            let share = wrong as f64 / all.max(1) as f64;
            sum += share;
            sum_of_squares += share * share;
        }
        let rounds = f64::from(ROUNDS);
        let mean = sum / rounds;
        let error = ((sum_of_squares / rounds - mean * mean) / rounds).sqrt();
        assert!(mean <= 0.05 + 3.0 * error, "{moved} moved: {mean} ± {error}");
        // For independent tests it is exactly the nominal rate times the share of columns that have not moved.
        let exact = 0.05 * (TESTS - moved) as f64 / TESTS as f64;
        assert!((mean - exact).abs() <= 4.0 * error, "{moved} moved: {mean} ± {error}, {exact} expected");
    }
}

#[test]
fn discoveries_are_those_of_the_published_example() {
    // Benjamini and Hochberg 1995, section 4.1: fifteen hypotheses, four rejected at 0.05.
    let p = [
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590,
        1.0,
    ];
    let found = discoveries(&p, 0.05);
    assert_eq!(found.iter().filter(|found| **found).count(), 4);
    assert!(found[..4].iter().all(|found| *found));
    assert_eq!(discoveries(&[], 0.05), Vec::<bool>::new());
    assert_eq!(discoveries(&[f64::NAN, -1.0, 2.0], 0.05), [false; 3]);
}

#[derive(Debug, Clone)]
struct Moment {
    values: Vec<Option<f64>>,
    after_ms: u64,
    silenced: bool,
}

fn moments() -> impl Strategy<Value = Vec<Moment>> {
    let value = prop_oneof![Just(None), Just(Some(0.0)), Just(Some(0.3)), Just(Some(0.9)), Just(Some(f64::NAN))];
    let moment = (prop::collection::vec(value, 3), 0..400_u64, any::<bool>())
        .prop_map(|(values, after_ms, silenced)| Moment { values, after_ms, silenced });
    prop::collection::vec(moment, 1..40)
}

fn round_of(moment: &Moment) -> Round {
    let things = moment.values.iter().enumerate().filter_map(|(n, v)| v.map(|v| seen(&n.to_string(), v, None)));
    round("r", things.collect())
}

proptest! {
    #[test]
    fn notices_follow_changes_of_state_each_once(moments in moments(), for_ms in 0..300_u64, keep_ms in 0..300_u64) {
        let rules = rules(&[rule("r", for_ms, keep_ms)]);
        let silence = [silence_all("r")];
        let (mut book, mut loud_book, mut now_ms) = (Book::default(), Book::default(), 1_000);
        let mut changed: BTreeSet<(String, u64, AlertState)> = BTreeSet::new();
        let mut noticed = changed.clone();
        for moment in &moments {
            now_ms += moment.after_ms;
            let silences = if moment.silenced { &silence[..] } else { &[] };
            let round = round_of(moment);
            let before = book.clone();
            let step = book.evaluate(&rules, silences, &round, &LIMITS, now_ms);
            for change in step.changes.iter().filter(|change| change.to.is_some()) {
                changed.insert((change.alert.fingerprint.clone(), change.alert.fired_ms.unwrap_or(0), change.to.unwrap()));
            }
            prop_assert!(!moment.silenced || step.notices.is_empty());
            for notice in &step.notices {
                let key = (notice.alert.fingerprint.clone(), notice.alert.fired_ms.unwrap_or(0), notice.alert.state);
                // The end of an incident that another began to follow under a silence goes by that one's name.
                prop_assert!(changed.contains(&key) || notice.alert.state == AlertState::Resolved, "{:?}", key);
                prop_assert!(noticed.insert(key.clone()), "twice: {:?}", key);
            }
            // Silences change what is told, never how things stand.
            loud_book.evaluate(&rules, &[], &round, &LIMITS, now_ms);
            let states = |book: &Book| -> Vec<(String, AlertState)> {
                book.alerts().filter(|a| a.state.is_active()).map(|a| (a.fingerprint.clone(), a.state)).collect()
            };
            prop_assert_eq!(states(&book), states(&loud_book));
            // What is stored is what is kept in memory but for the values measured last.
            for alert in book.alerts() {
                let stored = step.puts.iter().find(|put| put.fingerprint == alert.fingerprint).or_else(|| before.get(&alert.fingerprint));
                let stored = stored.expect("an alert that was never stored");
                prop_assert_eq!((stored.state, stored.calm_since_ms, stored.told), (alert.state, alert.calm_since_ms, alert.told));
            }
            // Once more at the same time: nothing.
            let after = book.clone();
            prop_assert_eq!(book.evaluate(&rules, silences, &round, &LIMITS, now_ms), Step::default());
            prop_assert_eq!(&book, &after);
        }
    }

    #[test]
    fn a_value_that_flaps_is_told_of_once(gaps in prop::collection::vec(1..100_u64, 2..40)) {
        let rules = rules(&[rule("r", 0, 100)]);
        let (mut book, mut now_ms, mut notices) = (Book::default(), 0, 0);
        for (n, gap) in gaps.iter().enumerate() {
            now_ms += gap;
            let value = if n % 2 == 0 { 0.9 } else { 0.0 };
            notices += book.evaluate(&rules, &[], &round("r", vec![seen("a", value, None)]), &LIMITS, now_ms).notices.len();
        }
        prop_assert_eq!(notices, 1);
    }

    #[test]
    fn a_restart_changes_nothing(moments in moments(), for_ms in 0..300_u64, keep_ms in 0..300_u64) {
        let rules = rules(&[rule("r", for_ms, keep_ms)]);
        let (mut book, mut stored, mut now_ms) = (Book::default(), BTreeMap::new(), 1_000);
        for moment in &moments {
            now_ms += moment.after_ms;
            // The controller starts anew before every round.
            let mut reopened = Book::reopened(stored.values().cloned(), now_ms);
            // How long something was not measured is the one thing that is not stored.
            let always = |v: &Option<f64>| v.filter(|v| v.is_finite()).or(Some(0.3));
            let always = Moment { values: moment.values.iter().map(always).collect(), ..moment.clone() };
            let round = round_of(&always);
            let step = book.evaluate(&rules, &[], &round, &LIMITS, now_ms);
            let again = reopened.evaluate(&rules, &[], &round, &LIMITS, now_ms);
            prop_assert_eq!(moves(&step), moves(&again));
            prop_assert_eq!(told(&step), told(&again));
            for alert in step.puts {
                stored.insert(alert.fingerprint.clone(), alert);
            }
            for name in &step.removes {
                stored.remove(name);
            }
        }
    }

    #[test]
    fn any_p_values_give_an_answer_each_and_lower_ones_count_first(p in prop::collection::vec(0.0..1.0f64, 0..50), rate in 0.001..0.5f64) {
        let found = discoveries(&p, rate);
        prop_assert_eq!(found.len(), p.len());
        for (a, found_a) in p.iter().zip(&found) {
            for (b, found_b) in p.iter().zip(&found) {
                prop_assert!(!(a < b && *found_b && !*found_a));
            }
        }
        // What counts alone at rate/m counts here (Bonferroni is stricter).
        let m = p.len() as f64;
        prop_assert!(p.iter().zip(&found).all(|(p, found)| *p > rate / m || *found));
    }
}

#[test]
fn an_owed_end_is_told_even_where_the_next_incident_came_to_nothing() {
    let all = rules(&[rule("r", 100, 0)]);
    let (bad, good) = (round("r", vec![seen("a", 0.9, None)]), round("r", vec![seen("a", 0.0, None)]));
    let mut book = Book::default();
    book.evaluate(&all, &[], &bad, &LIMITS, 0);
    assert_eq!(told(&book.evaluate(&all, &[], &bad, &LIMITS, 100)), [AlertState::Firing]);
    let silence = [silence_all("r")];
    for (round, now_ms) in [(&good, 200), (&bad, 210), (&good, 220)] {
        assert!(book.evaluate(&all, &silence, round, &LIMITS, now_ms).notices.is_empty());
    }
    let step = book.evaluate(&all, &[], &good, &LIMITS, 230);
    assert_eq!(told(&step), [AlertState::Resolved]);
    assert_eq!(book.alerts().next().unwrap().told, Told::Resolved);
}
