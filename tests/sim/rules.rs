//! What must hold after every event, whatever happened: written from what rollouts promise, without a word of the planner's
//! or the checker's code.

use std::collections::BTreeMap;

use muster_rollout::{Action, Decision, DeviceFacts, Due, Errand, Fleet, Rollout, Target, replay, verify};
use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::protocol::earlier::reads_assignment;
use muster_shared::rollout::{Outcome, RolloutEvidence, RolloutStatus, Verdict, WaveSize, WaveSpec};
use muster_shared::trust::{Activation, Assignment, Stage};

use crate::aborted::aborted;
use crate::compared::compared;
use crate::controller::Planner;
use crate::device::Device;
use crate::late::late;
use crate::pace::Pace;
use crate::people::{Approvals, in_time};
use crate::store::{Commit, Store, Told};
use crate::tally::Tally;
use crate::together::{group_cap, recalls, site, together};
use crate::version;

/// What was given to devices so far, and when waves were entered.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The number of the event that happens now.
    pub(crate) event: u64,
    pub(crate) tally: Tally,
    /// Whether `muster_rollout::verify` is asked, too.
    pub(crate) asks_verify: bool,
    /// A clock went back, so times of receipt no longer tell what came before a wave and what after.
    pub(crate) clock_went_back: bool,
    given: BTreeMap<DeviceId, BTreeMap<u64, Given>>,
    pace: Pace,
    pub(crate) approvals: Approvals,
    /// Answers that were taken for each metric of a wave, since its analysis began.
    answers: BTreeMap<(RolloutId, u32, u32, u32), Answers>,
    /// The event at which the plan was made that entered the current wave.
    entered: BTreeMap<RolloutId, u64>,
}

/// What a generation of a device means: what to run, for which rollout, in which part, and from when.
type Given = (Option<Digest>, RolloutId, Stage, Activation);

/// Answers to one metric, by what they mean.
#[derive(Debug, Clone, Copy, Default)]
struct Answers {
    began_ms: u64,
    good: u32,
    bad: u32,
    open: u32,
}

/// Every verdict can be reached again from what is stored of it, as who reads that from a file does it.
pub(crate) fn replays(rollout: &Rollout) -> Result<(), String> {
    let written = serde_json::to_string(&rollout.evidence()).map_err(|error| error.to_string())?;
    let mut read: Vec<RolloutEvidence> = serde_json::from_str(&written).map_err(|error| error.to_string())?;
    // Comparisons whose verdict a long history has dropped stand alone.
    read.retain(|evidence| matches!(evidence, RolloutEvidence::Verdict(_)));
    holds(read.len() == rollout.verdicts.len(), || {
        format!("a verdict of {} does not say what it rests on", rollout.id)
    })?;
    for (evidence, verdict) in read.iter().zip(&rollout.verdicts) {
        let replayed = replay(evidence)?;
        holds(replayed.outcome == verdict.outcome && replayed.differences.is_empty(), || {
            format!("{:?} does not replay: {}", verdict.summary, replayed.differences.join("; "))
        })?;
    }
    Ok(())
}

pub(crate) fn holds(condition: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise()) }
}

impl Ledger {
    pub(crate) fn new(asks_verify: bool) -> Self {
        Self {
            event: 0,
            tally: Tally::default(),
            asks_verify,
            clock_went_back: false,
            given: BTreeMap::new(),
            pace: Pace::default(),
            approvals: Approvals::default(),
            answers: BTreeMap::new(),
            entered: BTreeMap::new(),
        }
    }

    /// The next event happens, at that true time.
    pub(crate) fn happens(&mut self, true_ms: u64) {
        self.event += 1;
        self.pace.happens(self.event, true_ms);
    }

    /// A clock jumps.
    pub(crate) fn jumps(&mut self) {
        self.pace.jumps();
    }

    /// Notes what a device was given before the rollouts came.
    pub(crate) fn gave(&mut self, device: &DeviceId, told: &Told) {
        let given = (told.manifest, told.rollout.clone(), told.stage.clone(), told.activation);
        self.given.entry(device.clone()).or_default().insert(told.generation, given);
    }

    /// A decision was made.
    pub(crate) fn planned(
        &mut self,
        before: &Rollout,
        decision: &Decision,
        fleet: &Fleet,
        now_ms: u64,
        planner: Planner,
    ) -> Result<(), String> {
        self.tally.plans += 1;
        let checked = |before: &Rollout, decision: &Decision| {
            let violations = verify(before, decision, fleet, now_ms).err().unwrap_or_default();
            let words: Vec<String> = violations.iter().map(ToString::to_string).collect();
            holds(words.is_empty(), || format!("verify: {}", words.join("; ")))
        };
        if self.asks_verify {
            checked(before, decision)?;
        }
        orders(before, decision, fleet)?;
        caps(before, &decision.next, fleet)?;
        everybody(before, &decision.next, fleet)?;
        together(before, &decision.next, fleet)?;
        in_time(before, &decision.next, fleet, now_ms)?;
        shadows_first(before, &decision.next)?;
        self.tally.compared += compared(before, &decision.next, fleet)?;
        let (ended, cancelled) = aborted(before, &decision.next, now_ms)?;
        self.tally.aborted += u64::from(ended);
        self.tally.cancelled += u64::from(cancelled);
        self.tally.timed_out += late(before, &decision.next, fleet, now_ms)?;
        let (left_out, reached) = version::counted(before, decision, fleet);
        self.tally.left_out += left_out;
        self.tally.reached_old += reached;
        let new = decision.next.verdicts.len().checked_sub(before.verdicts.len()).filter(|new| *new > 0);
        if let Some(verdict) = new.and_then(|_| decision.next.verdicts.last()) {
            control(before, &decision.next, verdict, fleet)?;
            replays(&decision.next)?;
            self.tally.replayed += 1;
        }
        let again = planner(&decision.next, fleet, now_ms);
        holds((&again.next, &again.actions, &again.due) == (&decision.next, &decision.actions, &decision.due), || {
            format!("replanning is not idempotent: {:?} became {:?}", decision.actions, again.actions)
        })?;
        if self.asks_verify {
            checked(&decision.next, &again)?;
        }
        Ok(())
    }

    /// A controller stored what it had planned at the event `planned_at`.
    pub(crate) fn committed(
        &mut self,
        before: &Rollout,
        commit: &Commit,
        planned_at: u64,
        store: &Store,
    ) -> Result<(), String> {
        let Some(next) = commit.rollouts.first().map(|stored| &stored.value) else { return Ok(()) };
        kept(before, next)?;
        controllers_step(before, next)?;
        self.pace.committed(before, next, planned_at)?;
        self.approvals.suffice(before, next)?;
        let advanced = next.current_wave > before.current_wave;
        let completed = next.status != before.status && next.status == RolloutStatus::Completed;
        if advanced || completed {
            self.heard_enough(before, next, planned_at, store)?;
            self.answered_enough(before)?;
        }
        if advanced || before.status == RolloutStatus::Ready {
            self.entered.insert(next.id.clone(), planned_at);
        }
        for (device, record) in &commit.devices {
            let Some(told) = &record.value.desired else { continue };
            if self.was_given(device, told) {
                continue;
            }
            self.given_new(device, told)?;
            holds(!record.value.revoked, || format!("{device} is revoked and was given a generation"))?;
        }
        alone(before, next, store)?;
        self.tally.step(before, next);
        Ok(())
    }

    /// An operator changed a rollout.
    pub(crate) fn operated(&mut self, before: &Rollout, next: &Rollout) -> Result<(), String> {
        kept(before, next)?;
        holds(before.targets == next.targets && before.verdicts == next.verdicts, || {
            format!("{} was rewritten by an operator's action", next.id)
        })
    }

    /// Somebody answered what an analysis asked; none where that was an error.
    pub(crate) fn answered(
        &mut self,
        before: &Rollout,
        next: &Rollout,
        due: &Due,
        answer: Option<f64>,
    ) -> Result<(), String> {
        self.tally.measured += 1;
        kept(before, next)?;
        let same = (before.status, before.current_wave, &before.targets, &before.verdicts)
            == (next.status, next.current_wave, &next.targets, &next.verdicts);
        holds(same, || format!("{} was moved by an answer", next.id))?;
        holds(before.status == RolloutStatus::Running, || {
            format!("{} takes answers while {}", next.id, before.status)
        })?;
        let known = self.answers.entry((next.id.clone(), due.wave, due.analysis, due.metric)).or_default();
        if known.began_ms != due.began_ms {
            *known = Answers { began_ms: due.began_ms, ..Answers::default() };
        }
        known.good += u32::from(answer.is_some_and(|share| share > 0.9));
        known.bad += u32::from(answer.is_some_and(|share| share < 0.1));
        known.open += u32::from(answer.is_some_and(|share| (0.1..=0.9).contains(&share)));
        Ok(())
    }

    /// A wave with analyses passes only on as many answers as they ask for, no more of them bad or open than they allow.
    fn answered_enough(&self, before: &Rollout) -> Result<(), String> {
        let wave = before.current_wave;
        for (at, analysis) in (0u32..).zip(&before.analyses).filter(|(_, analysis)| analysis.is_for(wave)) {
            let asked = (0u32..).zip(&analysis.metrics).filter(|(_, metric)| metric.name == "asks");
            for (metric, template) in asked {
                let known = self.answers.get(&(before.id.clone(), wave, at, metric)).copied().unwrap_or_default();
                let Answers { good, bad, open, .. } = known;
                let enough = Some(good + bad + open) == template.count
                    && bad <= template.failure_limit
                    && open <= template.inconclusive_limit;
                holds(enough, || format!("{} passed wave {wave} on the answers {known:?}", before.id))?;
            }
        }
        Ok(())
    }

    /// A message left for a device.
    pub(crate) fn sent(
        &mut self,
        device: &DeviceId,
        told: &Told,
        written: &Assignment,
        protocol: u32,
    ) -> Result<(), String> {
        self.tally.sent += 1;
        let says_it = reads_assignment(protocol, written) && version::says(written, told);
        holds(says_it, || format!("{device} of number {protocol} was to hear {told:?} and was sent {written:?}"))?;
        let given = self.given.get(device).and_then(|given| given.get(&told.generation));
        let same = given
            .is_some_and(|given| *given == (told.manifest, told.rollout.clone(), told.stage.clone(), told.activation));
        holds(same, || format!("{device} was sent what the store never said: {told:?}"))
    }

    /// What a device could not read was not sent to it. Whoever goes back is always told.
    pub(crate) fn not_sent(&mut self, device: &DeviceId, told: &Told, store: &Store) -> Result<(), String> {
        self.tally.untold += 1;
        let target = store.rollouts.get(&told.rollout).and_then(|rollout| rollout.value.targets.get(device));
        let goes_back = target.is_some_and(|t| t.generation == told.generation && t.errand == Errand::Back);
        holds(!goes_back, || format!("{device} cannot be told to go back"))
    }

    /// What a device runs, it was given under that very generation.
    pub(crate) fn device(&self, device: &Device) -> Result<(), String> {
        let Some(running) = &device.running else { return Ok(()) };
        let given = self.given.get(&device.id).and_then(|given| given.get(&running.generation));
        holds(given.is_some_and(|(manifest, ..)| *manifest == Some(running.manifest)), || {
            format!("{} runs {} under generation {}, which nobody gave", device.id, running.bundle, running.generation)
        })?;
        let has_committed = device.record().committed_bundle().is_some_and(|own| own == *running);
        let waits = given.is_some_and(|(.., activation)| *activation == Activation::Hold);
        holds(has_committed || !waits, || format!("{} was to wait with {}, and serves it", device.id, running.bundle))
    }

    /// Whether this was the last thing given, so that the record changed for another reason.
    fn was_given(&self, device: &DeviceId, told: &Told) -> bool {
        let last = self.given.get(device).and_then(|given| given.last_key_value());
        let now = (told.manifest, told.rollout.clone(), told.stage.clone(), told.activation);
        last.is_some_and(|(generation, given)| *generation == told.generation && *given == now)
    }

    /// Generations grow, and none is given twice.
    fn given_new(&mut self, device: &DeviceId, told: &Told) -> Result<(), String> {
        self.tally.given += 1;
        let last = self.given.get(device).and_then(|given| given.keys().next_back().copied());
        holds(last.is_none_or(|last| told.generation > last), || {
            format!("{device} was given generation {} after {}", told.generation, last.unwrap_or_default())
        })?;
        self.gave(device, told);
        Ok(())
    }

    /// Silence never promotes: what the wave's devices sent since it was entered is as much as was asked for, and one of them said
    /// that it has the bundle.
    fn heard_enough(&self, before: &Rollout, next: &Rollout, planned_at: u64, store: &Store) -> Result<(), String> {
        let wave = before.current_wave;
        let since = self.entered.get(&next.id).copied().filter(|_| !self.clock_went_back).unwrap_or(0);
        let (mut reports, mut requests, mut arrived) = (0, 0, false);
        for (id, target) in &next.targets {
            // Who was told to serve what it ran as shadow passed as shadow.
            let target = before.targets.get(id).filter(|old| serves_now(old, target)).unwrap_or(target);
            if target.wave > wave || (target.beside && !is_beside(next, wave)) {
                continue;
            }
            let Some(heard) = store.heard.get(id) else { continue };
            for received in heard.windows.values().filter(|r| (since..=planned_at).contains(&r.event)) {
                let evidence = &received.evidence;
                if (Some(evidence.manifest), evidence.generation) == (target.manifest, target.generation) {
                    reports += evidence.reports;
                    requests += evidence.requests.served;
                }
            }
            arrived |= target.done_at_ms.is_some() && target.failure.is_none();
        }
        let limits = &next.spec.limits;
        // An emergency asks for nothing but that a device has the bundle.
        let enough = next.spec.emergency || (reports >= limits.min_reports && requests >= limits.min_requests);
        holds(enough && arrived, || {
            format!("{} passed wave {wave} on {requests} requests in {reports} reports, arrived: {arrived}", next.id)
        })
    }
}

/// Nothing is rewritten, whoever changes a rollout.
fn kept(before: &Rollout, next: &Rollout) -> Result<(), String> {
    let id = &next.id;
    holds(before.meant == next.meant || before.meant.is_none(), || format!("{id} means others now"))?;
    let same = (&before.spec, &before.bundle, &before.analyses) == (&next.spec, &next.bundle, &next.analyses);
    holds(same, || format!("{id}: the wish changed"))?;
    for (device, old) in &before.targets {
        let new = next.targets.get(device).ok_or_else(|| format!("{id} dropped {device}"))?;
        holds(new.wave == old.wave || serves_now(old, new), || format!("{id}: {device} changed its wave"))?;
        holds(new.generation >= old.generation, || format!("{id}: the generation of {device} fell"))?;
        let turned_again = old.errand == Errand::Back && new.errand != Errand::Back;
        holds(!turned_again, || format!("{id}: {device} was on its way back and is not"))?;
    }
    Ok(())
}

/// In which part devices of the wave run the bundle, as the wish has it.
fn is_beside(rollout: &Rollout, wave: u32) -> bool {
    let own = rollout.spec.waves.get(wave as usize).and_then(|wave| wave.stage.clone());
    own.unwrap_or_else(|| rollout.spec.stage.clone()) != Stage::Serve
}

/// Whether the device was told, with a later wave, to serve what it ran as shadow; it may have been told to go back since.
fn serves_now(old: &Target, new: &Target) -> bool {
    old.beside && !new.beside && new.wave > old.wave && new.generation > old.generation
}

/// Nobody serves before the waves that run as shadow have passed, or after it failed as shadow; and who did comes before others.
fn shadows_first(before: &Rollout, next: &Rollout) -> Result<(), String> {
    let forward = |errand| errand == Errand::Forward;
    for (id, new) in next.targets.iter().filter(|(_, new)| forward(new.errand) && !new.beside) {
        let old = before.targets.get(id);
        let wrong = |why: &str| format!("{}: {id} is told to serve, and {why}", next.id);
        let is_new = old.is_none_or(|old| old.beside);
        holds(!is_new || !is_beside(next, new.wave), || wrong("its wave runs as shadow"))?;
        let passed = |wave: u32| next.verdicts.iter().any(|v| (v.wave, v.outcome) == (wave, Outcome::Successful));
        let shadows = (0..new.wave).filter(|wave| is_new && is_beside(next, *wave));
        for wave in shadows {
            holds(passed(wave), || wrong("a wave that runs as shadow has not passed"))?;
        }
        let failed = old.is_some_and(|old| old.beside && old.failure.is_some());
        holds(!failed, || wrong("it failed as shadow"))?;
    }
    Ok(())
}

/// The ways a rollout may go without an operator. What absorbs is not left, and a stop stops all of it.
fn controllers_step(before: &Rollout, next: &Rollout) -> Result<(), String> {
    use RolloutStatus::{
        Completed, Draft, Paused, Ready, RolledBack, RollingBack, Running, Stopped, WaitingForApproval,
    };
    let allowed = match before.status {
        Ready => &[Ready, Running, Paused][..],
        // It stops by itself where a criterion says so, which is a rule of its own.
        Running => &[Running, Paused, RollingBack, RolledBack, Completed, Stopped],
        Paused => &[Paused],
        RollingBack => &[RollingBack, RolledBack],
        Completed => &[Completed],
        RolledBack => &[RolledBack],
        WaitingForApproval => &[WaitingForApproval, Stopped],
        Stopped => &[Stopped],
        Draft => &[],
    };
    let (id, from, to) = (&next.id, before.status, next.status);
    // Where only devices' records are stored, the rollout comes along as it was.
    holds(allowed.contains(&to) || before == next, || format!("{id} went from {from} to {to} by itself"))?;
    let grew = next.targets.len() > before.targets.len();
    let may_grow = matches!(to, Running | Completed) && matches!(from, Ready | Running);
    holds(!grew || may_grow, || format!("{id} took devices in on its way from {from} to {to}"))?;
    let later = next.current_wave.saturating_sub(before.current_wave);
    holds(next.current_wave >= before.current_wave && later <= 1, || format!("{id} skipped a wave"))?;
    holds(later == 0 || (from, to) == (Running, Running), || format!("{id} went on while {from}"))
}

/// Whether the store says that the device is this rollout's to tell.
pub(crate) fn has_say(rollout: &RolloutId, target: &Target, facts: &DeviceFacts) -> bool {
    if facts.revoked {
        return false;
    }
    match &facts.desired {
        Some(desired) if desired.rollout == *rollout => true,
        Some(desired) if target.errand == Errand::Keep => {
            facts.held_by.is_none() && desired.manifest == target.manifest
        }
        Some(desired) => facts.held_by.is_none() && desired.generation < target.generation,
        None => facts.held_by.is_none(),
    }
}

/// Devices are told what the rollout as it stands wants of them, and only those that are its own.
fn orders(before: &Rollout, decision: &Decision, fleet: &Fleet) -> Result<(), String> {
    let next = &decision.next;
    if before.status == RolloutStatus::Stopped {
        recalls(before, decision, fleet)?;
    }
    for Action::Assign { device, manifest, generation } in &decision.actions {
        let wrong = |why: &str| format!("{}: {device} is told generation {generation}, but {why}", next.id);
        let facts = fleet.devices.get(device).ok_or_else(|| wrong("it does not exist"))?;
        let target = next.targets.get(device).ok_or_else(|| wrong("it is not in"))?;
        let newest = facts.desired.as_ref().map_or(0, |desired| desired.generation);
        let again = facts.desired.as_ref().is_some_and(|desired| {
            (&desired.rollout, desired.generation, desired.manifest) == (&next.id, *generation, *manifest)
        });
        holds(again || *generation > newest, || wrong("the store has a newer one"))?;
        holds(has_say(&next.id, target, facts), || wrong("it is another rollout's, or shut out"))?;
        holds((target.manifest, target.generation) == (*manifest, *generation), || wrong("its target differs"))?;
        let back =
            matches!(next.status, RolloutStatus::RollingBack | RolloutStatus::RolledBack | RolloutStatus::Stopped);
        let right = if back { target.previous } else { Some(next.bundle.manifest) };
        holds(*manifest == right && (target.errand == Errand::Back) == back, || wrong("that is the other way"))?;
        let fresh = !again && next.status == RolloutStatus::Paused;
        holds(!fresh, || wrong("the rollout is paused"))?;
    }
    Ok(())
}

/// Whether the device belongs to those that are held back: the share of all there can be with the lowest hashes of their names.
fn is_held_back(rollout: &Rollout, id: &DeviceId) -> bool {
    let Some(WaveSize::Percent(percent)) = rollout.spec.holdback else { return false };
    let hash = Digest::of(format!("muster holdback group\0{id}").as_bytes()).to_string();
    let first = hash.get(..8).and_then(|hex| u64::from_str_radix(hex, 16).ok());
    first.is_some_and(|first| first * 100 < u64::from(percent) << 32)
}

/// Whether a wave is meant for the device, and the device can run the bundle.
pub(crate) fn may_come_in(rollout: &Rollout, wave: &WaveSpec, id: &DeviceId, facts: &DeviceFacts) -> bool {
    !is_held_back(rollout, id) && is_like_those(rollout, wave, id, facts)
}

/// The same, of those that are held back, too.
fn is_like_those(rollout: &Rollout, wave: &WaveSpec, id: &DeviceId, facts: &DeviceFacts) -> bool {
    let selected = |selector: &muster_shared::selector::Selector| facts.is_meant_by(selector, id);
    let architectures = &rollout.bundle.requirements.architectures;
    let fits = architectures.is_empty() || facts.attributes.get("arch").is_some_and(|a| architectures.contains(a));
    let said = facts.reported.as_ref().map_or(0, |report| report.protocol);
    let is_new = |stage: &Stage| *stage != Stage::Serve;
    let asks_one = rollout.spec.blue_green.is_some()
        || is_new(&rollout.spec.stage)
        || rollout.spec.waves.iter().filter_map(|wave| wave.stage.as_ref()).any(is_new);
    let has_own = facts.reported.as_ref().is_some_and(|report| report.committed.is_some());
    let can_hold = facts.reported.as_ref().is_some_and(|report| report.can_hold);
    let highest = facts.reported.as_ref().map_or(0, |report| report.generation);
    !facts.revoked
        && rollout.meant.as_ref().is_none_or(|meant| meant.contains(id))
        && facts.held_by.is_none()
        && facts.pinned.is_none()
        && (rollout.spec.emergency || facts.quarantined.is_none())
        && selected(&rollout.spec.selector)
        && wave.selector.as_ref().is_none_or(selected)
        && fits
        && (said > 0 || !asks_one)
        && (*wave.stage.as_ref().unwrap_or(&rollout.spec.stage) == Stage::Serve || has_own)
        && highest < u64::MAX
        && (rollout.spec.blue_green.is_none() || (site(rollout, facts).is_some() && can_hold))
}

/// A wave that takes devices in never has more of those it may have than its size says, and takes nobody it may not have.
fn caps(before: &Rollout, next: &Rollout, fleet: &Fleet) -> Result<(), String> {
    let new = |id: &&DeviceId| !before.targets.contains_key(*id);
    let promoted = |id: &DeviceId, new: &Target| before.targets.get(id).is_some_and(|old| serves_now(old, new));
    for wave in before.current_wave..=next.current_wave {
        let came: Vec<&DeviceId> =
            next.targets.iter().filter(|(_, t)| t.wave == wave).map(|(id, _)| id).filter(new).collect();
        let grew = !came.is_empty() || next.targets.iter().any(|(id, t)| t.wave == wave && promoted(id, t));
        let (true, Some(spec)) = (grew, next.spec.waves.get(wave as usize)) else { continue };
        for id in &came {
            let fits = fleet.devices.get(*id).is_some_and(|facts| may_come_in(next, spec, id, facts));
            holds(fits, || format!("{}: {id} came in with wave {wave} and must not", next.id))?;
        }
        if next.spec.blue_green.is_some() {
            group_cap(before, next, (wave, spec), fleet)?;
            continue;
        }
        let (mut all, mut have) = (0, 0);
        for (id, facts) in &fleet.devices {
            let member = next.targets.get(id).filter(|target| target.wave <= wave);
            let in_selector = spec.selector.as_ref().is_none_or(|s| facts.is_meant_by(s, id));
            let counts = match member {
                Some(target) => has_say(&next.id, target, facts) && (target.wave == wave || in_selector),
                None => may_come_in(next, spec, id, facts),
            };
            all += usize::from(counts);
            let is_out = member.is_none_or(|target| target.beside && !is_beside(next, wave));
            have += usize::from(counts && !is_out);
        }
        let size = spec.size.of(all);
        holds(have <= size, || format!("{}: wave {wave} has {have} devices of {all}, its size is {size}", next.id))?;
    }
    Ok(())
}

/// An emergency leaves nobody out whom it may have, and turns back only when it is told to.
fn everybody(before: &Rollout, next: &Rollout, fleet: &Fleet) -> Result<(), String> {
    let (from, to) = (before.status(), next.status());
    let (Some(wave), true) = (next.spec.waves.last(), next.spec.emergency && !from.is_terminal()) else {
        return Ok(());
    };
    let back = |status| matches!(status, RolloutStatus::RollingBack | RolloutStatus::RolledBack);
    holds(back(from) || !back(to), || format!("the emergency {} turned back by itself", next.id))?;
    if !matches!(to, RolloutStatus::Running | RolloutStatus::Completed) {
        return Ok(());
    }
    let out = fleet.devices.iter().filter(|(id, _)| !next.targets.contains_key(*id));
    for (id, facts) in out {
        let newest = facts.desired.as_ref().map_or(0, |desired| desired.generation);
        holds(newest == u64::MAX || !may_come_in(next, wave, id, facts), || {
            format!("the emergency {} leaves {id} out", next.id)
        })?;
    }
    Ok(())
}

/// Nobody counts as control whom the store says to run the bundle, who runs it, or who is in; and what the verdict counts is what
/// the others measured of their own bundles.
fn control(before: &Rollout, next: &Rollout, verdict: &Verdict, fleet: &Fleet) -> Result<(), String> {
    let bundle = next.bundle.manifest;
    let everywhere = next.spec.waves.last().ok_or("a rollout without waves")?;
    let (mut devices, mut requests) = (0, 0);
    for (id, facts) in &fleet.devices {
        let own = facts.reported.as_ref().and_then(|report| report.committed.as_ref()).map(|own| own.manifest);
        let Some(own) = own.filter(|own| *own != bundle) else { continue };
        // As it was judged: a rollout that turns back has told its devices by now.
        let judged = before.targets.get(id).or_else(|| next.targets.get(id));
        let pure = match judged.filter(|target| target.wave <= verdict.wave) {
            // A second model beside the first leaves the first a control.
            Some(target) => target.beside && is_beside(next, verdict.wave) && has_say(&next.id, target, facts),
            // Where the wave does not go on, it was judged with those that were about to join it.
            None => {
                let told = facts.desired.as_ref().is_some_and(|desired| desired.manifest == Some(bundle));
                let may_join = verdict.outcome != Outcome::Successful && is_beside(next, verdict.wave);
                let may_join = may_join && !is_held_back(next, id);
                is_like_those(next, everywhere, id, facts) && (!told || may_join)
            }
        };
        if pure {
            devices += 1;
            let served = facts.evidence.iter().filter(|e| e.manifest == own).map(|e| e.requests.served);
            requests += served.sum::<u64>();
        }
    }
    let counted = (verdict.control.devices, verdict.control.requests);
    let right = match verdict.outcome {
        Outcome::Successful => counted == (devices, requests),
        Outcome::Failed | Outcome::Error | Outcome::Inconclusive => counted.0 <= devices && counted.1 <= requests,
    };
    holds(right, || {
        format!(
            "{}: the control of a verdict {:?} counts {counted:?} devices and requests, pure are {:?}",
            next.id,
            verdict.outcome,
            (devices, requests)
        )
    })
}

/// A device that comes in is no other unfinished rollout's, as far as the store knew when this was stored.
fn alone(before: &Rollout, next: &Rollout, store: &Store) -> Result<(), String> {
    for (id, target) in next.targets.iter().filter(|(id, _)| !before.targets.contains_key(*id)) {
        let Some(record) = store.devices.get(id) else { continue };
        let desired = record.value.desired.as_ref();
        // A device that had the bundle is told nothing, so no record of it says whose it is.
        let other = desired.filter(|told| target.errand == Errand::Forward && told.rollout != next.id);
        let other = other.and_then(|told| store.rollouts.get(&told.rollout));
        let unfinished = other.is_some_and(|other| {
            let let_go = next.spec.emergency && other.value.status() == RolloutStatus::RollingBack;
            !other.value.status().is_terminal() && !let_go && other.value.targets.contains_key(id)
        });
        holds(!unfinished, || format!("{id} is in {} and in another rollout", next.id))?;
    }
    Ok(())
}
