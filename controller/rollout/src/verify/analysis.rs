//! Rules about analyses. What measurements come to is counted anew.

use std::collections::BTreeSet;

use muster_shared::rollout::{MetricTemplate, Outcome, Provider, RolloutStatus};

use super::{Case, Violation};
use crate::analysis::{AnalysisRun, MetricRun};

/// How many measurements are there of which kind: all but errors, failed, inconclusive, and errors at the end.
fn counts(run: &MetricRun) -> (u32, u32, u32, u32) {
    let of = |outcome| run.measurements.iter().filter(|m| m.outcome == outcome).count();
    let errors = run.measurements.iter().rev().take_while(|m| m.outcome == Outcome::Error).count();
    let n = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (good, failed, open) = (of(Outcome::Successful), of(Outcome::Failed), of(Outcome::Inconclusive));
    (n(good + failed + open), n(failed), n(open), n(errors))
}

/// Whether nothing more is measured of it.
fn has_ended(metric: &MetricTemplate, run: &MetricRun) -> bool {
    let (counted, failed, open, errors) = counts(run);
    counted >= metric.count.unwrap_or(1)
        || failed > metric.failure_limit
        || open > metric.inconclusive_limit
        || errors > metric.consecutive_error_limit
}

/// The first number called `name` in an answer as it is kept.
fn number(answer: &str, name: &str) -> Option<f64> {
    let (_, after) = answer.split_once(&format!("\"{name}\": "))?;
    after.split([',', '}']).next()?.parse().ok()
}

impl Case<'_> {
    pub(super) fn analyses(&mut self) {
        let (before, next) = (self.before, self.next);
        for ((wave, old), new) in (0u32..).zip(&before.waves).zip(&next.waves) {
            let wrong = |why: &str| Violation::Analysis { wave, why: why.to_owned() };
            for (at, run) in &old.analyses {
                match new.analyses.get(at) {
                    Some(later) => self.continued(wave, *at, run, later),
                    None => self.found.push(wrong("what was measured was forgotten")),
                }
            }
            for (at, run) in new.analyses.iter().filter(|(at, _)| !old.analyses.contains_key(at)) {
                self.expect(run.began_ms == self.now_ms && new.soak_from_ms.is_some(), || wrong("it began too early"));
                let asked = next.spec.analyses.get(*at as usize);
                let meant = asked.is_some_and(|asked| asked.waves.is_empty() || asked.waves.contains(&(wave + 1)));
                self.expect(meant, || wrong("nobody asked for it"));
                let blank = MetricRun { next_ms: 0, errors: 0, measurements: Vec::new() };
                let metrics = vec![blank; run.metrics.len()];
                self.continued(wave, *at, &AnalysisRun { began_ms: run.began_ms, metrics }, run);
            }
        }
        if before.status == RolloutStatus::Running {
            self.obeyed();
        }
        self.asked();
    }

    /// A plan adds no measurement but what the rollout itself says, one at a time.
    fn continued(&mut self, wave: u32, at: u32, old: &AnalysisRun, new: &AnalysisRun) {
        let wrong = |why: &str| Violation::Analysis { wave, why: why.to_owned() };
        let Some(analysis) = self.next.analyses.get(at as usize) else {
            return self.found.push(wrong("nobody asked for it"));
        };
        let complete = old.began_ms == new.began_ms
            && [old.metrics.len(), new.metrics.len()] == [analysis.metrics.len(), analysis.metrics.len()];
        self.expect(complete, || wrong("it is not the one that began"));
        for ((metric, old), new) in analysis.metrics.iter().zip(&old.metrics).zip(&new.metrics) {
            if (&old.measurements, old.errors) == (&new.measurements, new.errors) {
                continue;
            }
            let Some((last, earlier)) = new.measurements.split_last() else {
                self.found.push(wrong("what was measured was forgotten"));
                continue;
            };
            let is_error = last.outcome == Outcome::Error;
            let kept = old.measurements.iter().filter(|m| is_error || m.outcome != Outcome::Error);
            let grew = kept.eq(earlier) && new.errors == old.errors + u32::from(is_error);
            self.expect(grew, || wrong("what was measured changed"));
            let ours = matches!(metric.provider, Provider::Fleet(_)) && last.at_ms == self.now_ms;
            self.expect(ours, || wrong("nobody answered that"));
            self.expect(!has_ended(metric, old), || wrong("it had ended and was measured on"));
            self.expect(old.next_ms <= self.now_ms, || wrong("it was measured too early"));
            let goes_on = matches!(self.next.status, RolloutStatus::Running | RolloutStatus::Completed);
            let tally = self.tally(wave);
            let said = |name| last.value.as_deref().and_then(|answer| number(answer, name));
            // Devices on their way back have other targets by then, and those that were about to join a wave that ends were counted.
            let right = !goes_on
                || (said("errors"), said("requests")) == (Some(tally.errors as f64), Some(tally.requests as f64));
            let (errors, requests) = (said("errors"), said("requests"));
            let counted = format!("{errors:?} of {requests:?} counted, {} of {}", tally.errors, tally.requests);
            self.expect(right, || wrong(&format!("its numbers are not those that were reported: {counted}")));
        }
    }

    /// No wave passes without what its analyses ask for, and none goes on against them.
    fn obeyed(&mut self) {
        let (before, next) = (self.before, self.next);
        let wave = before.current_wave;
        let wrong = |why: String| Violation::Analysis { wave, why };
        let passed = next.current_wave > wave || next.status == RolloutStatus::Completed;
        let goes_back = matches!(next.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
        let Some(state) = next.waves.get(wave as usize) else { return };
        let judged =
            before.waves.get(wave as usize).and_then(|old| old.started_at_ms).is_some_and(|ms| ms < self.now_ms);
        for (at, asked) in (0u32..).zip(&before.spec.analyses) {
            if !asked.waves.is_empty() && !asked.waves.contains(&(wave + 1)) {
                continue;
            }
            let name = &asked.template;
            let metrics =
                before.analyses.get(at as usize).map(|analysis| analysis.metrics.as_slice()).unwrap_or_default();
            let runs = state.analyses.get(&at).map(|run| run.metrics.as_slice()).unwrap_or_default();
            let measured = !metrics.is_empty() && metrics.len() == runs.len();
            self.expect(!passed || measured, || wrong(format!("{name} was not made, and it passed")));
            for (metric, run) in metrics.iter().zip(runs) {
                let (counted, failed, open, errors) = counts(run);
                let stood = counted >= metric.count.unwrap_or(1)
                    && failed <= metric.failure_limit
                    && open <= metric.inconclusive_limit;
                let metric_name = &metric.name;
                self.expect(!passed || stood, || wrong(format!("{name}/{metric_name} was not stood, and it passed")));
                let is_failed = failed > metric.failure_limit;
                self.expect(!judged || !is_failed || goes_back, || {
                    wrong(format!("{name}/{metric_name} failed, and it goes on"))
                });
                let is_open = open > metric.inconclusive_limit || errors > metric.consecutive_error_limit;
                self.expect(!judged || !is_open || goes_back || next.status == RolloutStatus::Paused, || {
                    wrong(format!("{name}/{metric_name} shows nothing, and it goes on"))
                });
            }
        }
    }

    /// Somebody is asked for each measurement that is due, once, and for nothing else.
    fn asked(&mut self) {
        let (next, now_ms) = (self.next, self.now_ms);
        let wave = next.current_wave;
        let running = next.status == RolloutStatus::Running;
        let mut expected = BTreeSet::new();
        let runs = next.waves.get(wave as usize).filter(|_| running).map(|state| &state.analyses);
        for (at, run) in runs.into_iter().flatten() {
            let metrics =
                next.analyses.get(*at as usize).map(|analysis| analysis.metrics.as_slice()).unwrap_or_default();
            for (place, (metric, known)) in (0u32..).zip(metrics.iter().zip(&run.metrics)) {
                let is_ours = matches!(metric.provider, Provider::Fleet(_));
                if !is_ours && known.next_ms <= now_ms && !has_ended(metric, known) {
                    expected.insert((wave, *at, place, run.began_ms, counts(known).0 + known.errors));
                }
            }
        }
        let asked: Vec<_> =
            self.decision.due.iter().map(|due| (due.wave, due.analysis, due.metric, due.began_ms, due.taken)).collect();
        let once = asked.len() == expected.len() && asked.iter().all(|due| expected.contains(due));
        self.expect(once, || Violation::Analysis { wave, why: "others are asked than must be".to_owned() });
    }
}
