//! The scenarios of docs/scenarios.md, played by the planner and held against the reports written there.
//!
//! A scenario is a list of lines. `fleet a b c` or `fleet press-1..40` names devices, `rollout waves=1,100% soak=10m longest=1h`
//! says what is asked for. Every other line is a time and what happens then: `00:12 press-2 fails wrong answers`. The planner looks
//! after each of them, and whenever it said that it would; its report is what changed.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use muster_shared::ids::DeviceId;
use muster_shared::messages::UpdateState;
use muster_shared::rollout::{
    AbortAction, AbortCriterion, Deadlines, ExponentialRate, GateSpec, Guardrail, Metric, Rate, RateIncreaseCriteria,
    RolloutSpec, Waiting, WaveSpec,
};
use muster_shared::trust::Stage as Part;

use super::world::{START_MS, Served, World, new, spec};
use crate::{Action, Decision, OperatorAction};

const DOCUMENT: &str = include_str!("../../../../docs/scenarios.md");
const MINUTE_MS: u64 = 60_000;

#[test]
fn every_scenario_comes_out_as_it_is_written() {
    let mut parts = DOCUMENT.split("```scenario\n");
    let (mut rest, mut played) = (parts.next().unwrap().to_owned(), 0);
    for part in parts {
        let (script, after) = part.split_once("```\n").unwrap();
        let (between, report) = after.split_once("```report\n").unwrap();
        assert_eq!(between.trim(), "", "a scenario's report follows it");
        let (_, after) = report.split_once("```\n").unwrap();
        write!(rest, "```scenario\n{script}```\n\n```report\n{}```\n{after}", play(script)).unwrap();
        played += 1;
    }
    assert!(played > 8, "{played} scenarios");
    assert!(rest == DOCUMENT, "docs/scenarios.md should read\n{rest}");
}

fn play(script: &str) -> String {
    let mut lines = script.lines().filter(|line| !line.is_empty());
    let fleet = lines.next().and_then(|line| line.strip_prefix("fleet ")).unwrap();
    let wish = lines.next().and_then(|line| line.strip_prefix("rollout ")).unwrap();
    let devices = named(fleet);
    let names: Vec<&str> = devices.iter().map(String::as_str).collect();
    let world = World::new(asked(wish), &names);
    let mut stage = Stage { world, report: String::new(), said: None, wake_at_ms: None, told: BTreeSet::new() };
    stage.look(0);
    for line in lines {
        let (at, what) = line.split_once("  ").unwrap();
        let at_ms = START_MS + minutes(at) * MINUTE_MS;
        while let Some(wake_at_ms) = stage.wake_at_ms.filter(|wake_at_ms| *wake_at_ms < at_ms) {
            let ms = wake_at_ms - stage.world.now_ms;
            stage.look(ms);
        }
        let ms = at_ms - stage.world.now_ms;
        what.split(", ").for_each(|what| stage.happens(what.trim(), at_ms));
        stage.look(ms);
    }
    stage.report
}

/// `a b press-1..3` as names.
fn named(text: &str) -> Vec<String> {
    let each = |word: &str| match word.split_once("..") {
        Some((first, last)) => {
            let (stem, first) = first.rsplit_once('-').unwrap();
            let numbers = first.parse::<u32>().unwrap()..=last.parse().unwrap();
            numbers.map(|n| format!("{stem}-{n}")).collect::<Vec<_>>()
        }
        None => vec![word.to_owned()],
    };
    text.split_whitespace().flat_map(each).collect()
}

/// `01:05` as 65.
fn minutes(text: &str) -> u64 {
    let (hours, minutes) = text.split_once(':').unwrap();
    hours.parse::<u64>().unwrap() * 60 + minutes.parse::<u64>().unwrap()
}

fn asked(text: &str) -> RolloutSpec {
    let option = |name: &str| {
        text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let asked_ms = |name: &str| {
        let text = option(name)?;
        Some(match (text.strip_suffix('m'), text.strip_suffix('h')) {
            (Some(n), _) => n.parse::<u64>().unwrap() * MINUTE_MS,
            (_, Some(n)) => n.parse::<u64>().unwrap() * 60 * MINUTE_MS,
            (None, None) => unreachable!("{text}: minutes or hours"),
        })
    };
    let (soak_ms, longest_ms) = (asked_ms("soak").unwrap(), asked_ms("longest").unwrap());
    let first = option("shadow-first").map_or_else(String::new, |size| format!("{size},"));
    let sizes = first + &option("waves").unwrap();
    let mut waves: Vec<WaveSpec> =
        sizes.split(',').map(|size| WaveSpec::of(size.parse().unwrap(), soak_ms, longest_ms)).collect();
    if option("shadow-first").is_some() {
        waves[0].stage = Some(Part::Shadow { share_bp: 10_000 });
    }
    let mut wish = RolloutSpec { waves, ..spec(&["100%"]) };
    wish.limits.max_disagreement =
        option("disagreement").map(|most| most.strip_suffix('%').unwrap().parse::<f64>().unwrap() / 100.0);
    if let Some(failures) = option("failures") {
        wish.limits.max_failures = failures.parse().unwrap();
    }
    let deadlines = Deadlines { in_progress_ms: asked_ms("in-progress"), offline_ms: asked_ms("offline") };
    wish.deadlines = Some(deadlines).filter(|deadlines| *deadlines != Deadlines::default());
    wish.abort_criteria.extend(option("abort").map(|text| criterion(&text)));
    wish.gate = option("error-rate").map(|margin| {
        let margin = Some(margin.strip_suffix('%').unwrap().parse::<f64>().unwrap() / 100.0);
        // Absolute limits must not see it first.
        wish.limits.max_error_rate = 1.0;
        let errors = Guardrail::of(Metric::ErrorRate, margin);
        // Waves after an experiment have something to keep, too.
        let slow = Guardrail { above_us: Some(1_000_000), ..Guardrail::of(Metric::LatencyShare, Some(0.05)) };
        let slow = errors.asks_for_gain().then_some(slow);
        GateSpec::of([errors].into_iter().chain(slow).collect())
    });
    wish.rate = option("rate").map(|base| {
        let (base_rate_per_minute, increment_factor) =
            (base.parse().unwrap(), option("times").unwrap().parse().unwrap());
        let number_of_succeeded_things = Some(option("after").unwrap().parse().unwrap());
        let rate_increase_criteria =
            RateIncreaseCriteria { number_of_notified_things: None, number_of_succeeded_things };
        let growing = ExponentialRate { base_rate_per_minute, increment_factor, rate_increase_criteria };
        Rate { maximum_per_minute: 1_000, exponential_rate: Some(growing) }
    });
    wish
}

/// `timed_out:20%:5`.
fn criterion(text: &str) -> AbortCriterion {
    let parts: Vec<&str> = text.split(':').collect();
    let [failure_type, share, least] = parts[..] else { unreachable!("{text}: type, share and least number") };
    AbortCriterion {
        failure_type: serde_json::from_value(failure_type.into()).unwrap(),
        action: AbortAction::RollBack,
        threshold_percentage: share.strip_suffix('%').unwrap().parse().unwrap(),
        min_number_of_executed_things: least.parse().unwrap(),
    }
}

struct Stage {
    world: World,
    report: String,
    /// What was said last, to say only what changes.
    said: Option<(String, Vec<String>)>,
    wake_at_ms: Option<u64>,
    /// Who was told under which generation, to say each only once.
    told: BTreeSet<(DeviceId, u64)>,
}

impl Stage {
    fn who(&self, word: &str) -> Vec<String> {
        let wave = self.world.cohort(self.world.rollout.current_wave);
        if let Some(at) = ["first", "second", "third"].iter().position(|ordinal| *ordinal == word) {
            return vec![wave[at].to_owned()];
        }
        let fleet = self.world.fleet.devices.iter();
        let is_in = |id: &_| self.world.rollout.takes_part(id);
        let chosen = fleet.filter(|(id, facts)| match word {
            "all" => is_in(id) && facts.online,
            "others" => !is_in(id),
            name => id.as_str() == name,
        });
        chosen.map(|(id, _)| id.to_string()).collect()
    }

    fn happens(&mut self, what: &str, at_ms: u64) {
        let (subject, what) = what.split_once(' ').unwrap();
        let (verb, rest) = what.split_once(' ').unwrap_or((what, ""));
        if subject == "operator" {
            let action = match verb {
                "pauses" => OperatorAction::Pause,
                "resumes" => OperatorAction::Resume,
                "aborts" => OperatorAction::Abort,
                "rolls" => OperatorAction::Rollback,
                other => unreachable!("operator {other}"),
            };
            match self.world.rollout.apply(action, "operator", None, self.world.now_ms) {
                Ok(next) => self.world.rollout = next,
                Err(error) => writeln!(self.report, "       the operator is told: {error}").unwrap(),
            }
            return;
        }
        for (at, name) in self.who(subject).iter().enumerate() {
            match verb {
                "commit" | "commits" => self.world.commits(name),
                "shadow" | "shadows" => {
                    let (rows, disagreed) = rest.split_once(" disagree ").unwrap();
                    self.world.works(name, UpdateState::Beside);
                    self.world.shadows(name, rows.parse().unwrap(), disagreed.parse().unwrap());
                }
                "serve" | "serves" => {
                    self.world.serves(name, served(rest, at as u64));
                    self.world.facts(name).last_seen_ms = Some(at_ms);
                }
                "fails" => self.world.fails(name, UpdateState::Failed, rest),
                "reverts" => self.world.fails(name, UpdateState::Reverted, rest),
                "leave" | "leaves" => self.world.facts(name).online = false,
                "returns" => {
                    self.world.facts(name).online = true;
                    self.told.retain(|(told, _)| told.as_str() != name);
                }
                other => unreachable!("{subject} {other}"),
            }
        }
    }

    /// The planner looks after `ms`, and what it changes is written down.
    fn look(&mut self, ms: u64) {
        let before = self.world.rollout.clone();
        let decision = self.world.tick(ms);
        self.wake_at_ms = decision.wake_at_ms;
        let next = &decision.next;
        let mut stands = next.status.as_str().replace('_', " ");
        if !next.status.is_terminal() {
            write!(stands, ", wave {} of {}", next.current_wave + 1, next.waves.len()).unwrap();
        }
        let mut lines = Vec::new();
        let known = before.verdicts.len();
        lines.extend(next.verdicts.iter().skip(known).map(|v| format!("{}: {}", v.outcome, v.summary)));
        lines.extend(self.told(&decision));
        let waits: Vec<String> =
            decision.waiting.iter().map(|reason| format!("waits: {}", self.words(reason))).collect();
        let says = lines.len();
        lines.extend(waits.iter().cloned());
        let said = Some((stands.clone(), waits));
        if says == 0 && self.said == said {
            return;
        }
        self.said = said;
        let minutes = (self.world.now_ms - START_MS) / MINUTE_MS;
        writeln!(self.report, "{:02}:{:02}  {stands}", minutes / 60, minutes % 60).unwrap();
        lines.iter().for_each(|line| writeln!(self.report, "       {line}").unwrap());
    }

    /// Who is told what, in a line for each bundle.
    fn told(&mut self, decision: &Decision) -> Vec<String> {
        let (mut shadow, mut forward, mut back) = (Vec::new(), Vec::new(), Vec::new());
        for Action::Assign { device, manifest, generation } in &decision.actions {
            if self.told.insert((device.clone(), *generation)) {
                let serves = decision.next.stage(device).is_serve();
                let list = match (*manifest == Some(new()), serves) {
                    (true, true) => &mut forward,
                    (true, false) => &mut shadow,
                    (false, _) => &mut back,
                };
                list.push(device.to_string());
            }
        }
        let said = |devices: Vec<String>, what| match devices.len() {
            0 => None,
            1..=6 => Some(format!("told to run {what}: {}", devices.join(", "))),
            many => Some(format!("{many} devices are told to run {what}")),
        };
        let lists = [(shadow, "the bundle as shadow"), (forward, "the bundle"), (back, "what they ran before")];
        lists.into_iter().filter_map(|(devices, what)| said(devices, what)).collect()
    }

    fn words(&self, reason: &Waiting) -> String {
        if let Waiting::Rate { per_minute, left, next_ms } = reason {
            let minutes = (next_ms - START_MS) / MINUTE_MS;
            return format!("{per_minute} devices a minute: {left} still to come in, the next at 00:{minutes:02}");
        }
        if let Waiting::Soaking { until_ms } = reason {
            let minutes = (until_ms - START_MS) / MINUTE_MS;
            return format!("soaking until {:02}:{:02}", minutes / 60, minutes % 60);
        }
        reason.to_string()
    }
}

/// `200 errors 8..12`: the first device has 8 errors, the next 9, and so on again and again.
fn served(text: &str, at: u64) -> Served<'static> {
    let (requests, errors) = text.split_once(" errors ").unwrap_or((text, "0..0"));
    let (least, most) = errors.split_once("..").unwrap_or((errors, errors));
    let (least, most): (u64, u64) = (least.parse().unwrap(), most.parse().unwrap());
    Served { requests: requests.parse().unwrap(), errors: least + at % (most - least + 1), ..Served::default() }
}
