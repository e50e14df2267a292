//! Analyses of a wave: when each metric is measured, and what its measurements come to.
//!
//! An analysis begins with the soak of a wave it is for. Metrics that ask the rollout itself are measured here, on the numbers that the wave is
//! judged by; for the others [`due`] says what is to be asked now, and [`Rollout::record`] takes the answer. How metrics end follows Argo
//! Rollouts ([`outcome`]). A wave passes only when every metric of its analyses was measured as often as it asks for; one that failed takes it
//! back at once, one that shows neither, or cannot be asked, makes the rollout pause. Whoever resumes has it measured anew: unlike a comparison
//! of the same devices, later measurements are news.

mod fleet;
mod outcome;
mod report;

use std::collections::BTreeMap;

use muster_shared::limits::MAX_MEASUREMENTS;
use muster_shared::rollout::{
    Analysis, AnalysisUseError, Measurement, MetricTemplate, Outcome, Provider, RolloutStatus, Span, SpecError, Value,
    Waiting,
};
use serde::{Deserialize, Serialize};

pub(crate) use outcome::outcome;
pub(crate) use report::{held, hold, reports};

use crate::fleet::Fleet;
use crate::judgement::Judgement;
use crate::rollout::Rollout;

/// One analysis of one wave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalysisRun {
    /// When it began, in milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// Its metrics, as many as the analysis has.
    pub metrics: Vec<MetricRun>,
}

/// The measurements of one metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricRun {
    /// When it is measured next, if it has not ended, in milliseconds since the Unix epoch.
    pub next_ms: u64,
    /// How many measurements ended in errors.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub errors: u32,
    /// Measurements, oldest first. Errors go when one comes that is none: what is told of them is how many there are in a row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measurements: Vec<Measurement>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A measurement that somebody must be asked for. It is the only one of its kind, so that no answer counts twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Due {
    /// The wave, counted from 0.
    pub wave: u32,
    /// Which of [`Rollout::analyses`].
    pub analysis: u32,
    /// Which of its metrics.
    pub metric: u32,
    /// When its analysis began.
    pub began_ms: u64,
    /// Measurements so far, errors included.
    pub taken: u32,
}

impl MetricRun {
    /// Measurements that say something.
    pub(crate) fn counted(&self) -> impl Iterator<Item = &Measurement> {
        self.measurements.iter().filter(|measurement| measurement.outcome != Outcome::Error)
    }

    /// Measurements so far, errors included.
    fn taken(&self) -> u32 {
        u32::try_from(self.counted().count()).unwrap_or(u32::MAX).saturating_add(self.errors)
    }

    pub(crate) fn take(&mut self, metric: &MetricTemplate, measurement: Measurement) {
        self.next_ms = measurement.at_ms.saturating_add(metric.pause_ms());
        if measurement.outcome == Outcome::Error {
            self.errors = self.errors.saturating_add(1);
        } else {
            self.measurements.retain(|earlier| earlier.outcome != Outcome::Error);
        }
        self.measurements.push(measurement);
    }
}

/// A metric of a wave's analyses, and what is known of it.
struct Metric<'r> {
    /// Which of [`Rollout::analyses`], and when it began.
    at: u32,
    began_ms: u64,
    analysis: &'r Analysis,
    /// Which of its metrics.
    metric_at: u32,
    template: &'r MetricTemplate,
    run: &'r MetricRun,
}

impl Metric<'_> {
    fn outcome(&self) -> Option<Outcome> {
        outcome(self.template, &self.run.measurements)
    }

    /// Whether it showed neither, or could not be asked.
    fn is_open(&self) -> bool {
        matches!(self.outcome(), Some(Outcome::Inconclusive | Outcome::Error))
    }

    /// What there is to ask for next.
    fn due(&self, wave: u32) -> Due {
        let Self { at: analysis, metric_at: metric, began_ms, .. } = *self;
        Due { wave, analysis, metric, began_ms, taken: self.run.taken() }
    }
}

/// The metrics of the analyses that have begun.
fn metrics<'r>(analyses: &'r [Analysis], runs: &'r AnalysisRuns) -> impl Iterator<Item = Metric<'r>> {
    let begun = runs.iter().filter_map(|(at, run)| Some((*at, analyses.get(*at as usize)?, run)));
    begun.flat_map(|(at, analysis, known)| {
        let each = (0u32..).zip(analysis.metrics.iter().zip(&known.metrics));
        let began_ms = known.began_ms;
        each.map(move |(metric_at, (template, run))| Metric { at, began_ms, analysis, metric_at, template, run })
    })
}

impl Rollout {
    /// The rollout with these analyses, one for each that was asked for.
    ///
    /// # Errors
    /// [`SpecError::Analyses`] where they are not those, or ask for too many measurements.
    pub fn analysed_by(mut self, analyses: Vec<Analysis>) -> Result<Self, SpecError> {
        let missing = self.spec.analyses.iter().skip(analyses.len()).map(|asked| asked.template.clone()).next();
        if let Some(template) = missing {
            return Err(AnalysisUseError::Missing(template).into());
        }
        let needed = analyses.iter().flat_map(|analysis| &analysis.metrics);
        let needed = needed.fold(0u32, |sum, metric| sum.saturating_add(metric.needed()));
        if needed > MAX_MEASUREMENTS {
            return Err(AnalysisUseError::Measurements(needed).into());
        }
        self.analyses = analyses;
        Ok(self)
    }

    /// What is to be measured, as long as it is asked for.
    #[must_use]
    pub fn metric_due(&self, due: &Due) -> Option<&MetricTemplate> {
        let state =
            self.wave_state().filter(|_| self.status == RolloutStatus::Running && self.current_wave == due.wave)?;
        let found = metrics(&self.analyses, &state.analyses).find(|metric| metric.due(due.wave) == *due);
        found.filter(|metric| metric.outcome().is_none()).map(|metric| metric.template)
    }

    /// The rollout after an answer to what was due; none where nobody waits for it any more.
    #[must_use]
    pub fn record(&self, due: &Due, answer: Result<Value, String>, now_ms: u64) -> Option<Self> {
        let metric = self.metric_due(due)?;
        let measurement = metric.measure(now_ms, answer);
        let mut next = self.clone();
        let state = next.waves.get_mut(next.current_wave as usize)?;
        state.analyses.get_mut(&due.analysis)?.metrics.get_mut(due.metric as usize)?.take(metric, measurement);
        next.updated_at_ms = now_ms;
        Some(next)
    }

    /// Has what showed neither measured anew.
    pub(crate) fn measure_anew(&mut self) {
        let Some(state) = self.waves.get_mut(self.current_wave as usize) else { return };
        let again: Vec<u32> =
            metrics(&self.analyses, &state.analyses).filter(Metric::is_open).map(|metric| metric.at).collect();
        state.analyses.retain(|analysis, _| !again.contains(analysis));
    }
}

/// Begins the analyses of a wave that soaks, measures what the rollout itself knows, and adds what they came to. Where that ends the wave,
/// nothing else happens to it: no device joins that is not in `before`.
pub(crate) fn look(
    next: &mut Rollout,
    before: &Rollout,
    fleet: &Fleet,
    judgement: Judgement,
    now_ms: u64,
) -> Judgement {
    if next.analyses.is_empty() {
        return judgement;
    }
    begin(next, now_ms);
    let wave = next.current_wave as usize;
    let mut answer = None;
    let mut analyses = next.waves.get_mut(wave).map(|state| std::mem::take(&mut state.analyses)).unwrap_or_default();
    for (analysis, run) in &mut analyses {
        let Some(analysis) = next.analyses.get(*analysis as usize) else { continue };
        for (metric, run) in analysis.metrics.iter().zip(&mut run.metrics) {
            // A clock that was set back must not keep it from being measured.
            run.next_ms = run.next_ms.min(now_ms.saturating_add(longest_pause_ms(metric)));
            let is_ours = matches!(metric.provider, Provider::Fleet(_));
            if is_ours && run.next_ms <= now_ms && outcome(metric, &run.measurements).is_none() {
                let answer = answer.get_or_insert_with(|| fleet::answer(next, fleet, &judgement));
                run.take(metric, metric.measure(now_ms, Ok(answer.clone())));
            }
        }
    }
    if let Some(state) = next.waves.get_mut(wave) {
        state.analyses = analyses;
    }
    let judgement = held(next, judgement);
    if judgement.is_failed() || judgement.is_open() {
        let known = next.waves.get(wave).map(|state| (state.soak_from_ms, state.analyses.clone()));
        next.clone_from(before);
        if let Some((state, (soak_from_ms, analyses))) = next.waves.get_mut(wave).zip(known) {
            (state.soak_from_ms, state.analyses) = (soak_from_ms, analyses);
        }
    }
    judgement
}

fn longest_pause_ms(metric: &MetricTemplate) -> u64 {
    metric.pause_ms().max(metric.initial_delay.map_or(0, Span::ms))
}

fn begin(next: &mut Rollout, now_ms: u64) {
    let wave = next.current_wave;
    let Some(state) = next.waves.get_mut(wave as usize).filter(|state| state.soak_from_ms.is_some()) else { return };
    for (at, analysis) in (0u32..).zip(&next.analyses).filter(|(_, analysis)| analysis.is_for(wave)) {
        state.analyses.entry(at).or_insert_with(|| AnalysisRun {
            began_ms: now_ms,
            metrics: analysis
                .metrics
                .iter()
                .map(|metric| MetricRun {
                    next_ms: now_ms.saturating_add(metric.initial_delay.map_or(0, Span::ms)),
                    errors: 0,
                    measurements: Vec::new(),
                })
                .collect(),
        });
    }
}

/// What the current wave's analyses have yet to be told.
pub(crate) fn waiting(rollout: &Rollout) -> Vec<Waiting> {
    let Some(state) = rollout.wave_state().filter(|state| state.soak_from_ms.is_some()) else { return Vec::new() };
    let known = metrics(&rollout.analyses, &state.analyses).filter(|metric| metric.outcome().is_none());
    let mut waiting: Vec<Waiting> = known
        .map(|metric| Waiting::Analysing {
            metric: report::name(&metric),
            have: u32::try_from(metric.run.counted().count()).unwrap_or(u32::MAX),
            of: metric.template.needed(),
            next_ms: metric.run.next_ms,
        })
        .collect();
    // What was asked for and is not there must not be taken for passed.
    let asked = (0u32..).zip(&rollout.spec.analyses);
    let is_for = |waves: &[u32]| waves.is_empty() || waves.contains(&(rollout.current_wave + 1));
    let unbegun = asked.filter(|(at, asked)| is_for(&asked.waves) && !state.analyses.contains_key(at));
    waiting.extend(unbegun.map(|(_, asked)| Waiting::Analysing {
        metric: asked.template.to_string(),
        have: 0,
        of: 1,
        next_ms: state.soak_from_ms.unwrap_or_default(),
    }));
    waiting
}

/// What somebody must be asked now.
pub(crate) fn due(rollout: &Rollout, now_ms: u64) -> Vec<Due> {
    let Some(state) = rollout.wave_state().filter(|_| rollout.status == RolloutStatus::Running) else {
        return Vec::new();
    };
    let asked = |metric: &Metric<'_>| !matches!(metric.template.provider, Provider::Fleet(_));
    metrics(&rollout.analyses, &state.analyses)
        .filter(|metric| asked(metric) && metric.run.next_ms <= now_ms && metric.outcome().is_none())
        .map(|metric| metric.due(rollout.current_wave))
        .collect()
}

/// When the next measurement is due that is not due yet.
pub(crate) fn wake_at_ms(rollout: &Rollout, now_ms: u64) -> Option<u64> {
    let open = metrics(&rollout.analyses, &rollout.wave_state()?.analyses).filter(|metric| metric.outcome().is_none());
    open.map(|metric| metric.run.next_ms).filter(|at_ms| *at_ms > now_ms).min()
}

/// The analyses of one wave, by their place in [`Rollout::analyses`].
pub type AnalysisRuns = BTreeMap<u32, AnalysisRun>;
