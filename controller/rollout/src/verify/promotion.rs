//! Rules about going on and going back.

use muster_shared::ids::DeviceId;
use muster_shared::rollout::{Outcome, RolloutStatus, Rule};

use super::reading::{is_able, is_foreign, reported_generation, says_arrived, says_back, says_failed, takes_room};
use super::shadow_first::is_promoted;
use super::{Case, Violation};
use crate::fleet::{DeviceFacts, Evidence};
use crate::rollout::{Errand, Target};

/// What the devices that were in measured, counted anew.
#[derive(Default)]
pub(super) struct Tally {
    reports: u32,
    pub(super) requests: u64,
    pub(super) errors: u64,
    failures: u32,
    /// Rows that a shadow and the incumbent named alike, and others.
    pub(super) agreed: u64,
    pub(super) disagreed: u64,
}

/// What a device measured of what it was told, under the generation that it was given.
fn own<'f>(target: &Target, facts: &'f DeviceFacts) -> impl Iterator<Item = &'f Evidence> {
    let told = (target.manifest, target.generation);
    facts.evidence.iter().filter(move |evidence| (Some(evidence.manifest), evidence.generation) == told)
}

impl Case<'_> {
    pub(super) fn promotion(&mut self) {
        let (before, next) = (self.before, self.next);
        if before.status != RolloutStatus::Running {
            return;
        }
        let wave = before.current_wave;
        let entered = before.waves.get(wave as usize).and_then(|state| state.started_at_ms);
        let passed = next.current_wave > wave || next.status == RolloutStatus::Completed;
        let gone_back = matches!(next.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
        let tally = self.tally(wave);
        let limits = &before.spec.limits;
        if entered.is_some_and(|entered_ms| entered_ms < self.now_ms) && !gone_back && !before.spec.emergency {
            let ignored = |why: String| Violation::LimitIgnored { wave, why };
            self.expect(tally.failures <= limits.max_failures, || {
                ignored(format!("{} devices failed, {} allowed", tally.failures, limits.max_failures))
            });
            let too_many = tally.errors as f64 > limits.max_error_rate * tally.requests as f64;
            self.expect(tally.requests < limits.min_requests || !too_many, || {
                ignored(format!("{} of {} requests failed", tally.errors, tally.requests))
            });
            let rows = tally.agreed.saturating_add(tally.disagreed);
            let differs = self.most_disagreement(wave).is_some_and(|most| tally.disagreed as f64 > most * rows as f64);
            self.expect(rows < limits.min_requests || !differs, || {
                ignored(format!("{} of {rows} rows disagree", tally.disagreed))
            });
        }
        if passed {
            self.passed(wave, &tally);
        }
    }

    fn passed(&mut self, wave: u32, tally: &Tally) {
        let (before, next, now_ms) = (self.before, self.next, self.now_ms);
        let unfounded = |why: String| Violation::Unfounded { wave, why };
        let (Some(spec), Some(state)) = (before.spec.waves.get(wave as usize), next.waves.get(wave as usize)) else {
            return self.found.push(unfounded("there is no such wave".to_owned()));
        };
        let limits = &before.spec.limits;
        self.expect(state.started_at_ms.is_some_and(|at_ms| at_ms < now_ms), || {
            unfounded("it was not entered before".to_owned())
        });
        let soaked = state.soak_from_ms.and_then(|from_ms| now_ms.checked_sub(from_ms));
        self.expect(soaked.is_some_and(|ms| ms >= spec.soak_ms), || unfounded("it has not soaked".to_owned()));
        let urgent = before.spec.emergency;
        self.expect(urgent || tally.reports >= limits.min_reports, || {
            unfounded(format!("it has {} of {} reports", tally.reports, limits.min_reports))
        });
        self.expect(urgent || tally.requests >= limits.min_requests, || {
            unfounded(format!("it has {} of {} requests", tally.requests, limits.min_requests))
        });
        let rows = tally.agreed.saturating_add(tally.disagreed);
        self.expect(self.most_disagreement(wave).is_none() || rows >= limits.min_requests, || {
            unfounded(format!("{rows} of {} rows were compared", limits.min_requests))
        });
        for id in self.unfinished(wave) {
            self.found.push(unfounded(format!("{id} can be reached and has not arrived")));
        }
        let arrived = self.has_arrived(wave);
        self.expect(arrived, || unfounded("no device of it that has arrived can be reached".to_owned()));
        let Some(verdict) = next.verdicts.last() else { return };
        let same = (tally.reports, tally.requests, tally.errors, tally.failures)
            == (verdict.canary.reports, verdict.canary.requests, verdict.canary.errors, verdict.canary.failures);
        self.expect(same, || Violation::Verdict("its numbers are not those that were reported"));
        if urgent {
            return;
        }
        for rule in [Rule::Failures, Rule::ErrorRate, Rule::MinReports, Rule::MinRequests] {
            let held = verdict.checks.iter().any(|c| c.rule == rule && c.outcome == Outcome::Successful);
            self.expect(held, || Violation::Verdict("a rule that every wave must keep was not held against it"));
        }
        for rule in [Rule::LatencyP99Ratio, Rule::PredictionPsi] {
            let looked_at = verdict.checks.iter().any(|c| c.rule == rule);
            self.expect(looked_at, || Violation::Verdict("a limit was not looked at"));
        }
    }

    /// The targets that were in while `wave` ran and that the rollout has a say over.
    fn members(&self, wave: u32) -> impl Iterator<Item = (&DeviceId, &Target, &DeviceFacts)> {
        self.judged_in(wave).filter(move |(_, target)| self.counts_in(wave, target)).filter_map(|(id, target)| {
            let facts = self.fleet.devices.get(id)?;
            (!facts.revoked && !is_foreign(&self.next.id, target, facts)).then_some((id, target, facts))
        })
    }

    pub(super) fn tally(&self, wave: u32) -> Tally {
        let mut tally = Tally::default();
        for (id, target) in self.judged_in(wave) {
            let facts = self.seen(id, target);
            let mut crashed = false;
            for evidence in facts.into_iter().flat_map(|facts| own(target, facts)) {
                crashed |= evidence.crashes > 0;
                if self.counts_in(wave, target) {
                    tally.reports = tally.reports.saturating_add(evidence.reports);
                    tally.requests = tally.requests.saturating_add(evidence.requests.served);
                    tally.errors = tally.errors.saturating_add(evidence.requests.errors());
                    tally.agreed = tally.agreed.saturating_add(evidence.beside.agreed);
                    tally.disagreed = tally.disagreed.saturating_add(evidence.beside.disagreed);
                }
            }
            let foreign = facts.is_none_or(|facts| is_foreign(&self.next.id, target, facts));
            let bad = crashed || facts.is_some_and(|facts| says_failed(target, facts));
            tally.failures += u32::from(target.failure.is_some() || (bad && !foreign));
        }
        tally
    }

    /// What is known of a device when the wave is judged; nothing of who is shut out.
    fn seen(&self, id: &DeviceId, target: &Target) -> Option<&DeviceFacts> {
        // Who knows a newer generation than it was given as shadow was told anew before it was told to serve.
        let serves_now = self.next.targets.get(id).is_some_and(|new| is_promoted(target, new));
        let known = self.fleet.devices.get(id).filter(|facts| !facts.revoked);
        known.filter(|facts| !(serves_now && reported_generation(facts) > target.generation))
    }

    /// What devices measured that the wave is about.
    pub(super) fn own_evidence(&self, wave: u32) -> impl Iterator<Item = &Evidence> {
        let counted = self.judged_in(wave).filter(move |(_, target)| self.counts_in(wave, target));
        counted.flat_map(|(id, target)| self.seen(id, target).into_iter().flat_map(|facts| own(target, facts)))
    }

    fn unfinished(&self, wave: u32) -> Vec<DeviceId> {
        self.members(wave)
            .filter(|(_, target, facts)| facts.online && target.failure.is_none() && !says_arrived(target, facts))
            // Who is late is not waited for; that it is late is a rule of its own.
            .filter(|(_, target, _)| target.done_at_ms.is_some() || target.deadline.timed_out_at_ms.is_none())
            .map(|(id, _, _)| id.clone())
            .collect()
    }

    /// Whether a device of the wave has arrived and can be reached: one that came in with it, or, if there is none, one of its selector.
    fn has_arrived(&self, wave: u32) -> bool {
        let Some(spec) = self.next.spec.waves.get(wave as usize) else { return false };
        let own = self.members(wave).any(|(_, target, _)| target.wave == wave);
        self.members(wave).any(|(id, target, facts)| {
            let counts = if own { target.wave == wave } else { takes_room((wave, spec), id, target, facts) };
            counts && facts.online && target.failure.is_none() && says_arrived(target, facts)
        })
    }

    /// While it goes back, nobody stays told to run the bundle; and it is over only when nobody who can be reached is
    /// left, except those that failed to go back as often as they were told.
    pub(super) fn retreat(&mut self) {
        let (before, next) = (self.before, self.next);
        let over = next.status == RolloutStatus::RolledBack && before.status != RolloutStatus::RolledBack;
        if !over && next.status != RolloutStatus::RollingBack {
            return;
        }
        for (id, target) in &next.targets {
            let Some(facts) = self.fleet.devices.get(id) else { continue };
            let can_leave = next.destination.as_ref().is_some_and(|to| is_able(to, facts));
            let had_it = target.errand == Errand::Keep || target.previous == Some(next.bundle.manifest);
            if (had_it && !can_leave) || facts.revoked || is_foreign(&next.id, target, facts) {
                continue;
            }
            let newest = [facts.reported.as_ref().map(|r| r.generation), facts.desired.as_ref().map(|d| d.generation)];
            let hopeless = newest.contains(&Some(u64::MAX)) || target.generation == u64::MAX;
            if target.errand != Errand::Back {
                self.expect(hopeless, || Violation::Target {
                    device: id.clone(),
                    why: "the rollout goes back and it is still told to run the bundle",
                });
            } else if over && facts.online && !says_back(target, facts) {
                let astray = newest[0].is_some_and(|generation| generation > target.generation);
                let tried = target.attempts > 2 && (astray || says_failed(target, facts));
                self.expect(hopeless || tried, || Violation::NotBack(id.clone()));
            }
        }
    }
}
