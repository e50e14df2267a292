//! What a run is about: devices, bundles, wishes, and how much goes wrong. Everything comes from the seed.

use std::sync::OnceLock;

use muster_agent_core::record::Record;
use muster_rollout::{BundleFacts, Rollout};
use muster_shared::bundle::Requirements;
use muster_shared::ids::{DeviceId, RolloutId};
use muster_shared::protocol::PROTOCOL;
use muster_shared::rollout::{
    AbortAction, AbortCriterion, Analysis, AnalysisUse, ApprovalSpec, BlueGreen, Conflict, Deadlines, ExponentialRate,
    FailureType, FleetQuestion, Freeze, GateSpec, Guardrail, Joining, Limits, MaintenanceWindow, Metric,
    MetricTemplate, PrometheusQuestion, Provider, Rate, RateIncreaseCriteria, RolloutSpec, Span, WaveSize, WaveSpec,
};
use muster_shared::selector::Selector;
use muster_shared::trust::{Activation, DeliveryPolicy, Stage, WatchPolicy};
use muster_tests::random::Random;

use crate::device::{Bundle, Device, Nature};
use crate::store::Told;

/// Which kinds of trouble a run has, in percent of the events that could be trouble; 0 where a run has none of the kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    /// Messages lost, and brought twice, in percent.
    pub(crate) lost: usize,
    pub(crate) twice: usize,
    /// Messages that overtake others, in percent.
    pub(crate) reordered: usize,
    /// Weights of events.
    pub(crate) vanish: usize,
    pub(crate) crash: usize,
    pub(crate) restore: usize,
    pub(crate) lie: usize,
    pub(crate) restart: usize,
    pub(crate) clock: usize,
    pub(crate) operator: usize,
    pub(crate) relabel: usize,
    pub(crate) revoke: usize,
    pub(crate) freeze: usize,
    /// Two controllers instead of one.
    pub(crate) two_controllers: bool,
    /// Bundles that do harm, in percent of devices.
    pub(crate) bad_bundles: usize,
    /// Answers to analyses that are not good, in percent.
    pub(crate) bad_answers: usize,
    /// Agents of several versions.
    pub(crate) mixed: bool,
    /// Agents that another version takes the place of.
    pub(crate) other_version: usize,
}

impl Trouble {
    /// Some runs have none of a kind and some have much of it: what hides behind one kind of trouble shows without it.
    pub(crate) fn draw(random: &mut Random) -> Self {
        let mut weight = |most: usize| if random.chance(50) { random.below(most + 1) } else { 0 };
        Self {
            lost: weight(40),
            twice: weight(30),
            reordered: weight(60),
            vanish: weight(6),
            crash: weight(6),
            restore: weight(3),
            lie: weight(4),
            restart: weight(8),
            clock: weight(3),
            operator: weight(4),
            relabel: weight(3),
            revoke: weight(2),
            freeze: weight(2),
            two_controllers: random.chance(30),
            bad_bundles: *random.pick(&[0, 0, 10, 30, 60]),
            bad_answers: *random.pick(&[0, 10, 40]),
            mixed: random.chance(40),
            other_version: if random.chance(30) { 1 + random.below(3) } else { 0 },
        }
    }
}

/// The bundle that devices have from the beginning.
pub(crate) fn incumbent() -> Bundle {
    Bundle::named("incumbent", 1, 0)
}

/// Bundles that rollouts bring. The last one bars the way back to what is older.
pub(crate) fn candidates() -> [Bundle; 3] {
    [Bundle::named("candidate", 2, 0), Bundle::named("another", 3, 0), Bundle::named("barring", 4, 4)]
}

/// What devices were told before the rollouts came.
pub(crate) fn first_told() -> Told {
    Told {
        manifest: Some(incumbent().digest()),
        generation: 1,
        rollout: RolloutId::new("r0").expect("an id"),
        watch: WatchPolicy { probation_ms: 0, max_error_rate: 1.0, min_requests: 0 },
        delivery: DeliveryPolicy::default(),
        stage: Stage::Serve,
        activation: Activation::AtOnce,
    }
}

/// A device that runs the incumbent for good.
pub(crate) fn installed(id: DeviceId, arch: &'static str) -> Device {
    static AFTER: OnceLock<Record> = OnceLock::new();
    let record = AFTER.get_or_init(|| {
        let mut device = Device::new(DeviceId::new("first").expect("an id"), "x86_64");
        device.receive(first_told().assignment(&device.id, 0), Some(&incumbent()), 0);
        (0..32).for_each(|_| device.turn(0));
        device.record().clone()
    });
    Device::with_record(id, arch, record.clone())
}

/// The protocol number of an agent in a fleet of several versions.
pub(crate) fn protocol(random: &mut Random) -> u32 {
    *random.pick(&[0, 1, 2, PROTOCOL])
}

/// What `bundle` does on a device.
pub(crate) fn nature(random: &mut Random, bad_percent: usize) -> Nature {
    if !random.chance(bad_percent) {
        return Nature::Good;
    }
    *random.pick(&[Nature::FailsTest, Nature::FailsTrial, Nature::Errs, Nature::Crashes, Nature::Slow])
}

/// Metrics that somebody must be asked for and that the rollout itself knows.
fn metrics(random: &mut Random) -> Vec<MetricTemplate> {
    let number = |n: usize| u32::try_from(n).unwrap_or_default();
    let count = 1 + number(random.below(3));
    let asks = MetricTemplate {
        name: "asks".to_owned(),
        initial_delay: random.chance(30).then(|| Span::of_ms(random.below(500) as u64)),
        interval: (count > 1 || random.chance(50)).then(|| Span::of_ms(100 + random.below(400) as u64)),
        count: Some(count),
        success_condition: Some("result > 0.9".to_owned()),
        failure_condition: Some("result < 0.1".to_owned()),
        failure_limit: number(random.below(count as usize)),
        inconclusive_limit: number(random.below(count as usize)),
        consecutive_error_limit: number(random.below(4)),
        provider: Provider::Prometheus(PrometheusQuestion { address: None, query: "up".to_owned() }),
    };
    let own = MetricTemplate {
        name: "own".to_owned(),
        initial_delay: None,
        failure_condition: None,
        success_condition: Some("default(result.canary.errorRate, 0) <= 0.05 && result.targeted > 0".to_owned()),
        provider: Provider::Fleet(FleetQuestion {}),
        ..asks.clone()
    };
    if random.chance(40) { vec![asks, own] } else { vec![asks] }
}

/// What the waves of some rollouts must stand.
fn analyses(random: &mut Random, waves: usize) -> Vec<AnalysisUse> {
    if !random.chance(25) {
        return Vec::new();
    }
    let one = u32::try_from(1 + random.below(waves)).unwrap_or(1);
    let waves = if random.chance(50) { vec![one] } else { Vec::new() };
    vec![AnalysisUse { template: "drawn@1".parse().expect("a template"), args: Default::default(), waves }]
}

/// How fast devices of some rollouts come in.
fn rate(random: &mut Random) -> Option<Rate> {
    if !random.chance(25) {
        return None;
    }
    let number = |n: usize| u32::try_from(n).unwrap_or_default();
    let every = Some(1 + number(random.below(3)));
    let by_telling = random.chance(50);
    let exponential_rate = random.chance(60).then(|| ExponentialRate {
        base_rate_per_minute: 1 + number(random.below(2)),
        increment_factor: *random.pick(&[1.1, 1.5, 2.0, 5.0]),
        rate_increase_criteria: RateIncreaseCriteria {
            number_of_notified_things: every.filter(|_| by_telling),
            number_of_succeeded_things: every.filter(|_| !by_telling),
        },
    });
    Some(Rate { maximum_per_minute: 2 + number(random.below(3)), exponential_rate })
}

/// When devices of some rollouts come in; runs begin at 13:46:40 UTC.
fn windows(random: &mut Random) -> Vec<MaintenanceWindow> {
    let windows = ["13:40-13:50", "13:00-13:47", "13:47-13:48", "15:00-16:00", "02:00-03:00"];
    let window = random.pick(&windows).parse().expect("a window");
    if random.chance(15) { vec![window] } else { Vec::new() }
}

/// Whom some rollouts wait for. Who makes them is one of those.
fn approval(random: &mut Random) -> Option<ApprovalSpec> {
    let asked: [&[&str]; 4] = [&[], &["maker", "second"], &["second", "third"], &["maker", "second", "third"]];
    let approvers = *random.pick(&asked);
    let needed = 1 + u32::try_from(random.below(2)).unwrap_or_default();
    let within_ms = random.chance(30).then(|| 1 + random.below(3_000) as u64);
    let approvers = approvers.iter().map(|name| (*name).to_owned()).collect();
    random.chance(15).then_some(ApprovalSpec { needed, approvers, within_ms })
}

/// A freeze that begins about now and covers some or all.
pub(crate) fn freeze(random: &mut Random, number: usize, now_ms: u64) -> Freeze {
    let selector = if random.chance(50) { Selector::all() } else { "site=a".parse().expect("a selector") };
    let from_ms = now_ms.saturating_add_signed(*random.pick(&[0, 0, 500, -1_000]));
    let to_ms = from_ms + *random.pick(&[300, 2_000, 3_600_000]);
    let (id, reason, by) = (format!("f{number}"), "a drill".to_owned(), "second".to_owned());
    Freeze { id, from_ms, to_ms, reason, selector, by, created_at_ms: now_ms }
}

/// By what canaries of some rollouts are compared with others; some must be better.
fn gate(random: &mut Random) -> Option<GateSpec> {
    let margin = *random.pick(&[0.3, 0.9, 0.0, -0.1]);
    let slow = Guardrail { above_us: Some(1_000_000), ..Guardrail::of(Metric::LatencyShare, Some(0.5)) };
    let guardrails = vec![Guardrail::of(Metric::ErrorRate, Some(margin)), slow, Guardrail::of(Metric::Failures, None)];
    let controls = 1 + u32::try_from(random.below(2)).unwrap_or_default();
    random.chance(25).then(|| GateSpec { controls, ..GateSpec::of(guardrails) })
}

/// When some rollouts end by themselves.
fn abort_criteria(random: &mut Random, max_failures: u32, may_be_late: bool) -> Vec<AbortCriterion> {
    let mut types = Vec::new();
    if max_failures > 0 {
        types.extend([FailureType::Failed, FailureType::Rejected, FailureType::All]);
    }
    if may_be_late {
        types.extend([FailureType::TimedOut, FailureType::All]);
    }
    if types.is_empty() || !random.chance(40) {
        return Vec::new();
    }
    let one = |random: &mut Random| AbortCriterion {
        failure_type: *random.pick(&types),
        action: if random.chance(40) { AbortAction::Cancel } else { AbortAction::RollBack },
        threshold_percentage: *random.pick(&[10.0, 34.0, 50.0, 100.0]),
        min_number_of_executed_things: u32::try_from(1 + random.below(3)).unwrap_or(1),
    };
    (0..1 + random.below(2)).map(|_| one(random)).collect()
}

/// A wish: sometimes an emergency.
pub(crate) fn spec(random: &mut Random, bundle: &Bundle) -> RolloutSpec {
    if random.chance(8) {
        let waves = vec![WaveSpec::of(WaveSize::Percent(100), 0, 500 + random.below(15_000) as u64)];
        let watch = WatchPolicy { probation_ms: random.below(300) as u64, max_error_rate: 0.2, min_requests: 3 };
        let selector = if random.chance(50) { Selector::all() } else { "site=a".parse().expect("a selector") };
        let spec = RolloutSpec::of(bundle.manifest.bundle.clone(), selector, waves);
        return RolloutSpec { watch, emergency: true, ..spec };
    }
    let shapes: [&[&str]; 6] =
        [&["1", "100%"], &["1", "50%", "100%"], &["25%", "100%"], &["100%"], &["2", "100%"], &["1", "2", "3", "100%"]];
    let sizes = *random.pick(&shapes);
    let last = sizes.len() - 1;
    let mut waves: Vec<WaveSpec> = Vec::new();
    for (at, size) in sizes.iter().enumerate() {
        let soak_ms = 50 + random.below(800) as u64;
        let narrowed = at < last && random.chance(15);
        let longest_ms = soak_ms + 500 + random.below(15_000) as u64;
        let wave = WaveSpec::of(size.parse().expect("a size"), soak_ms, longest_ms);
        waves.push(WaveSpec { selector: narrowed.then(|| "site=a".parse().expect("a selector")), ..wave });
    }
    let blue_green =
        random.chance(20).then(|| BlueGreen { group_by: "site".to_owned(), lead_ms: random.below(400) as u64 });
    let is_shadow = blue_green.is_none() && random.chance(20);
    // Or some waves run as shadow first, of any size beside those that serve.
    let shadows = if blue_green.is_none() && !is_shadow && random.chance(30) { 1 + random.below(2) } else { 0 };
    for _ in 0..shadows {
        let soak_ms = 50 + random.below(800) as u64;
        let size = random.pick(&["1", "2", "25%", "50%", "100%"]).parse().expect("a size");
        let wave = WaveSpec::of(size, soak_ms, soak_ms + 500 + random.below(15_000) as u64);
        waves.insert(0, WaveSpec { stage: Some(Stage::Shadow { share_bp: 5_000 }), ..wave });
    }
    let analyses = analyses(random, waves.len());
    let selector = match random.below(6) {
        0 => "site=a".parse().expect("a selector"),
        1 => "site!=b".parse().expect("a selector"),
        _ => Selector::all(),
    };
    let rate = if blue_green.is_some() || shadows > 0 { None } else { rate(random) };
    let max_disagreement = ((is_shadow || shadows > 0) && random.chance(50)).then_some(0.3);
    let probation_ms = random.below(300) as u64;
    let deadlines = (blue_green.is_none() && shadows == 0 && random.chance(30)).then(|| Deadlines {
        in_progress_ms: Some(probation_ms + 1 + random.below(2_000) as u64),
        offline_ms: random.chance(70).then(|| 1 + random.below(3_000) as u64),
    });
    let max_failures = if blue_green.is_some() { 0 } else { u32::try_from(random.below(3)).unwrap_or_default() };
    let spec = RolloutSpec {
        analyses,
        gate: if blue_green.is_some() { None } else { gate(random) },
        limits: Limits {
            max_error_rate: 0.1,
            max_failures,
            max_disagreement,
            min_reports: u32::try_from(1 + random.below(3)).unwrap_or_default(),
            min_requests: 5 + random.below(40) as u64,
            ..Limits::default()
        },
        watch: WatchPolicy { probation_ms, max_error_rate: 0.2, min_requests: 3 },
        holdback: random.chance(20).then_some(WaveSize::Percent(40)),
        joining: if random.chance(20) { Joining::Exclude } else { Joining::Include },
        stage: if is_shadow { Stage::Shadow { share_bp: 5_000 } } else { Stage::Serve },
        blue_green,
        rate,
        windows: windows(random),
        approval: approval(random),
        abort_criteria: if shadows > 0 {
            Vec::new()
        } else {
            abort_criteria(random, max_failures, deadlines.is_some())
        },
        deadlines,
        conflict: if random.chance(25) { Conflict::Queue } else { Conflict::Skip },
        priority: *random.pick(&[10, 50, 50, 90]),
        ..RolloutSpec::of(bundle.manifest.bundle.clone(), selector, waves)
    };
    // One wave for everybody leaves nobody to be better than.
    if spec.validate().is_ok() { spec } else { RolloutSpec { gate: None, ..spec } }
}

/// A rollout of `spec`, named by its number.
pub(crate) fn rollout(random: &mut Random, number: usize, spec: RolloutSpec, bundle: &Bundle, now_ms: u64) -> Rollout {
    let x86_only = random.chance(30);
    let asked = spec.analyses.iter().map(|asked| Analysis {
        template: asked.template.clone(),
        waves: asked.waves.clone(),
        metrics: metrics(random),
    });
    let analyses = asked.collect();
    let architectures = if x86_only { vec!["x86_64".to_owned()] } else { Vec::new() };
    let facts = BundleFacts {
        manifest: bundle.digest(),
        bundle: bundle.manifest.bundle.clone(),
        requirements: Requirements { architectures: architectures.into_iter().collect(), ..Requirements::default() },
        reference_predictions: Default::default(),
        track: Default::default(),
        features: Default::default(),
    };
    let id = RolloutId::new(format!("r{number}")).expect("an id");
    let rollout = Rollout::new(id, spec, facts, now_ms).and_then(|rollout| rollout.analysed_by(analyses));
    rollout.expect("a valid wish").asked_for_by("maker", 0).expect("somebody else can approve it")
}
