//! Rules about what is stored with a verdict: it must be there, and be what was asked for and reported.

use std::collections::BTreeMap;

use muster_shared::limits::MAX_VERDICT_CELLS;
use muster_shared::rollout::{DeviceEnds, FailureKind, LimitsInputs, Outcome, Rule, Verdict, VerdictInputs};

use super::promotion::Tally;
use super::{Case, Violation};

impl Case<'_> {
    /// Looks at the verdict that came of this decision, if one did.
    pub(super) fn inputs(&mut self) {
        let (before, next) = (self.before, self.next);
        let Some(verdict) = next.verdicts.last().filter(|_| before.verdicts.last() != next.verdicts.last()) else {
            return;
        };
        let wrong = Violation::Verdict;
        let Some(inputs) = &verdict.inputs else {
            return self.found.push(wrong("what the new one was judged by is not stored with it"));
        };
        let VerdictInputs { limits, criteria, analyses, waited, waived_by } = inputs;
        let of_spec = limits.limits == before.spec.limits && limits.emergency == before.spec.emergency;
        self.expect(of_spec, || wrong("it was judged by other limits than were asked for"));
        let shown = (limits.canary, limits.control) == (verdict.canary, verdict.control);
        self.expect(shown, || wrong("it was judged by other numbers than it shows"));
        let asked = Some(&before.spec.abort_criteria).filter(|criteria| !criteria.is_empty());
        self.expect(criteria.as_ref().map(|inputs| &inputs.criteria) == asked, || {
            wrong("it was judged by other criteria than were asked for")
        });
        let (executed, kinds) = self.ends();
        let of = |kind| u32::try_from(kinds.iter().filter(|known| **known == kind).count()).unwrap_or(u32::MAX);
        let counted = DeviceEnds {
            executed: u32::try_from(executed).unwrap_or(u32::MAX),
            failed: of(FailureKind::Failed),
            rejected: of(FailureKind::Rejected),
            timed_out: of(FailureKind::TimedOut),
        };
        let ended = criteria.as_ref().is_none_or(|inputs| inputs.ends == counted);
        self.expect(ended, || wrong("its criteria were judged by other ends of devices than there are"));
        let named = |at: &u32| before.analyses.get(*at as usize).map(|analysis| &analysis.template);
        let reported = verdict.analyses.iter().map(|report| Some(&report.template));
        self.expect(analyses.iter().map(named).eq(reported), || {
            wrong("its analyses are not those that were asked for")
        });
        let late = verdict.checks.iter().any(|check| check.rule == Rule::MaxDuration);
        let clock_ms = next.waves.get(verdict.wave as usize).and_then(|state| state.clock_from_ms);
        let allowed_ms = before.spec.waves.get(verdict.wave as usize).map(|wave| wave.max_duration_ms);
        let timed = waited.is_none_or(|waited| (Some(waited.since_ms), Some(waited.max_ms)) == (clock_ms, allowed_ms));
        self.expect(timed && late == waited.is_some(), || wrong("the time it waited is not that of its wave"));
        let gate = next.waves.get(verdict.wave as usize).and_then(|state| state.gate.as_ref());
        let waived = waived_by.is_none() || *waived_by == gate.and_then(|gate| gate.waived_by.clone());
        self.expect(waived, || wrong("somebody let the wave go on who did not"));
        self.predictions(limits, verdict);
    }

    /// What is kept of predictions is bounded and, where the wave passed, what was reported.
    fn predictions(&mut self, limits: &LimitsInputs, verdict: &Verdict) {
        let cells = limits.predictions.values().map(|column| {
            column.canary.len().saturating_add(column.control.len()).saturating_add(column.reference.len())
        });
        let (all, largest) = cells.fold((0usize, 0), |(sum, most), n| (sum.saturating_add(n), most.max(n)));
        let few = all <= MAX_VERDICT_CELLS.saturating_add(largest);
        self.expect(few, || Violation::Verdict("it keeps more predictions than it may"));
        if verdict.outcome != Outcome::Successful || self.before.spec.emergency {
            return;
        }
        let wave = verdict.wave;
        let Tally { agreed, disagreed, .. } = self.tally(wave);
        let rows = limits.compared.map(|rows| (rows.agreed, rows.disagreed));
        let expected = self.most_disagreement(wave).map(|_| (agreed, disagreed));
        self.expect(rows == expected, || Violation::Verdict("the rows it compared are not those that were reported"));
        let kept = limits.predictions.keys().map(|name| (name.clone(), BTreeMap::new()));
        let mut counted: BTreeMap<String, BTreeMap<String, u64>> = kept.collect();
        for (name, classes) in self.own_evidence(wave).flat_map(|evidence| &evidence.predictions) {
            let Some(sums) = counted.get_mut(name) else { continue };
            for (class, n) in classes {
                let sum = sums.entry(class.clone()).or_default();
                *sum = sum.saturating_add(*n);
            }
        }
        for ((name, column), counted) in limits.predictions.iter().zip(counted.into_values()) {
            let same = counted == column.canary;
            let reference = self.before.bundle.reference_predictions.get(name);
            let same_reference = reference.map_or(column.reference.is_empty(), |known| *known == column.reference);
            self.expect(same && same_reference, || {
                Violation::Verdict("the predictions it keeps are not those that were counted")
            });
        }
    }
}
