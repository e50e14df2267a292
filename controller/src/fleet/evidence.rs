//! What devices' windows showed, kept only as long and as finely as a rollout can ask for it.
//!
//! A rollout asks for everything received since one of a few known moments (its *cuts*). Windows between two cuts are
//! therefore added up once they are old enough that no new cut can fall between them; windows before the first cut are
//! dropped. So memory grows with rollouts and generations, not with time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_rollout::{BesideCounts, Evidence, Mean, Predictions, Shared, packaged_program};
use muster_shared::ids::Digest;
use muster_shared::limits::MAX_METRICS;
use muster_shared::messages::{ProgramKey, RequestCounts, TelemetryWindow, WindowKey};
use muster_shared::profile::{Profile, Reference, Source};
use muster_shared::sketch::{
    ColumnComparison, ColumnSketch, Comparison, LabelCounts, LabelOutcomes, LatencySketch, ObjectiveCounts,
    RightCounts, SketchWindow,
};
use muster_shared::trust::Track;

/// The name under which predictions of no known class are counted.
const OTHER_CLASS: &str = "(other)";
/// Windows one device may have waiting to be added up.
const MAX_FRESH: usize = 256;
/// Answers kept of one device; rollouts that ask from more different moments have it added up anew.
const MAX_ANSWERS: usize = 4;

/// What is never added to what differs in it: manifest and generation of the model that served, and the program that measured.
type ObservationKey = (Digest, u64, Option<ProgramKey>);

/// Evidence that was asked for: the moment of the first observation in it, and on which track.
type Answer = ((u64, Track), Shared<Vec<Evidence>>);

/// What one window showed, or several together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observation {
    first_received_ms: u64,
    last_received_ms: u64,
    seen: Evidence,
    /// The program that measured; none for the one that the package installed, and for what agents say nothing of.
    program: Option<ProgramKey>,
}

impl Observation {
    fn nothing(manifest: Digest, generation: u64, received_at_ms: u64) -> Self {
        let seen = Evidence::of(manifest, generation);
        Self { first_received_ms: received_at_ms, last_received_ms: received_at_ms, seen, program: None }
    }

    /// The bundle it is about.
    pub(crate) fn manifest(&self) -> &Digest {
        &self.seen.manifest
    }

    /// Requests by outcome.
    pub(crate) fn requests(&self) -> &RequestCounts {
        &self.seen.requests
    }

    /// Time to answer them.
    pub(crate) fn latency_us(&self) -> &LatencySketch {
        &self.seen.latency_us
    }

    /// Requests held against the bundle's latency objectives.
    pub(crate) fn objectives(&self) -> &ObjectiveCounts {
        &self.seen.objectives
    }

    /// What a window of counters showed.
    pub(crate) fn of_telemetry(window: &TelemetryWindow, received_at_ms: u64) -> Self {
        let mut observation = Self::nothing(window.key.manifest, window.key.generation, received_at_ms);
        observation.program = window.program;
        observation.seen.reports = u32::from(window.requests.served > 0);
        observation.seen.requests = window.requests;
        observation.seen.latency_us = window.latency_us.clone();
        observation.seen.objectives = window.objectives.clone();
        let resources = &window.resources;
        if resources.resident_bytes > 0 {
            observation.seen.memory = Mean::of(1, resources.resident_bytes as f64);
        }
        if let Some(temperature_mc) = resources.temperature_mc {
            observation.seen.temperature = Mean::of(1, f64::from(temperature_mc) / 1_000.0);
        }
        let numbers = window.numbers.iter().map(|(name, all)| (name.clone(), Mean { count: all.count, sum: all.sum }));
        observation.seen.numbers = numbers.collect();
        if let Some(comparison) = &window.comparison {
            observation.seen.incumbent_us = comparison.incumbent_us.clone();
            observation.seen.beside = beside(comparison);
        }
        observation
    }

    /// What a window of sketches showed of predictions. `profile` must be the one it fits.
    pub(crate) fn of_sketch(window: &SketchWindow, profile: &Profile, received_at_ms: u64) -> Self {
        let mut observation = Self::nothing(window.key.manifest, window.key.generation, received_at_ms);
        if let Some(LabelCounts::Classes(counts)) = window.labels.as_ref().map(|labels| &labels.all) {
            observation.seen.labels = RightCounts { labels: counts.total(), right: counts.total_right() };
        }
        for (column, sketch) in profile.columns.iter().zip(&window.columns) {
            if let (Source::Confidence { .. }, ColumnSketch::Numeric(sketch)) = (&column.source, sketch) {
                observation.seen.confidence.merge(&Mean::of(sketch.moments.n, sketch.moments.mean));
            }
            let (Reference::Class { classes, .. }, ColumnSketch::Class(sketch)) = (&column.reference, sketch) else {
                continue;
            };
            if !column.is_prediction() {
                continue;
            }
            let mut counts: BTreeMap<String, u64> =
                classes.iter().cloned().zip(sketch.counts.iter().copied()).filter(|(_, n)| *n > 0).collect();
            if sketch.other > 0 {
                counts.insert(OTHER_CLASS.to_owned(), sketch.other);
            }
            if !counts.is_empty() {
                observation.seen.predictions.insert(column.name.clone(), counts);
            }
        }
        observation
    }

    /// A crash of the agent, which was the program `program`, while the bundle of `key` served.
    pub(crate) fn of_crash(key: &WindowKey, program: Option<ProgramKey>, received_at_ms: u64) -> Self {
        let mut observation = Self::nothing(key.manifest, key.generation, received_at_ms);
        observation.seen.crashes = 1;
        observation.program = program;
        observation
    }

    fn key(&self) -> ObservationKey {
        (self.seen.manifest, self.seen.generation, self.program)
    }

    /// What it is evidence about on `track`: which bundle, under which generation.
    fn subject(&self, track: Track) -> (Digest, u64) {
        match (track, self.program) {
            (Track::Model, _) => (self.seen.manifest, self.seen.generation),
            (Track::Program, Some(ProgramKey { manifest, generation })) => (manifest, generation),
            (Track::Program, None) => (packaged_program(), 0),
        }
    }

    fn absorb(&mut self, other: &Self) {
        self.first_received_ms = self.first_received_ms.min(other.first_received_ms);
        self.last_received_ms = self.last_received_ms.max(other.last_received_ms);
        add(&mut self.seen, &other.seen);
    }
}

/// Agreement is that of the column in which the two disagree most.
fn beside(comparison: &Comparison) -> BesideCounts {
    let classes = comparison.columns.values().filter_map(|column| match column {
        ColumnComparison::Classes(pairs) => Some((pairs.agreed, pairs.disagreed)),
        ColumnComparison::Numbers(_) | ColumnComparison::Other => None,
    });
    let (agreed, disagreed) = classes.max_by_key(|(_, disagreed)| *disagreed).unwrap_or_default();
    let (incumbent, candidate) = match comparison.labels.as_deref() {
        Some(LabelOutcomes::Classes(outcomes)) => (outcomes.incumbent, outcomes.candidate),
        _ => Default::default(),
    };
    BesideCounts { agreed, disagreed, incumbent, candidate }
}

fn add(sum: &mut Evidence, more: &Evidence) {
    sum.reports = sum.reports.saturating_add(more.reports);
    sum.crashes = sum.crashes.saturating_add(more.crashes);
    sum.requests.merge(&more.requests);
    sum.latency_us.merge(&more.latency_us);
    sum.objectives.merge(&more.objectives);
    sum.incumbent_us.merge(&more.incumbent_us);
    sum.labels.merge(&more.labels);
    sum.beside.merge(&more.beside);
    sum.confidence.merge(&more.confidence);
    sum.memory.merge(&more.memory);
    sum.temperature.merge(&more.temperature);
    for (name, numbers) in &more.numbers {
        // A device that names others in every window is watched by those it began with.
        if sum.numbers.len() < MAX_METRICS || sum.numbers.contains_key(name) {
            sum.numbers.entry(name.clone()).or_default().merge(numbers);
        }
    }
    for (column, counts) in &more.predictions {
        let column = sum.predictions.entry(column.clone()).or_default();
        for (class, n) in counts {
            let cell = column.entry(class.clone()).or_default();
            *cell = cell.saturating_add(*n);
        }
    }
}

/// What the reference sample of `profile` has for each class of each column of predictions.
pub(crate) fn reference_predictions(profile: &Profile) -> Predictions {
    let mut predictions = Predictions::new();
    for column in profile.columns.iter().filter(|column| column.is_prediction()) {
        if let Reference::Class { classes, counts } = &column.reference {
            predictions.insert(column.name.clone(), classes.iter().cloned().zip(counts.iter().copied()).collect());
        }
    }
    predictions
}

/// The observations of one device, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct EvidenceLog {
    observations: Vec<Observation>,
    /// Answers given since the last change: most looks ask what the one before did.
    answers: Mutex<Vec<Answer>>,
}

impl EvidenceLog {
    /// Takes in one more.
    pub(crate) fn add(&mut self, observation: Observation) {
        self.answers().clear();
        if self.observations.len() >= MAX_FRESH {
            // Counted as of the time of the one it joins, so it can only be left out where it is not due, never
            // counted too early.
            if let Some(same) = self.observations.iter_mut().rev().find(|o| o.key() == observation.key()) {
                same.absorb(&observation);
                return;
            }
            self.observations.remove(0);
        }
        self.observations.push(observation);
    }

    /// Drops what arrived before the first of `cuts` (ascending), and adds up what arrived before `settled_ms` between
    /// two of them.
    pub(crate) fn compact(&mut self, cuts: &[u64], settled_ms: u64) {
        let part = |received_ms: u64| cuts.partition_point(|cut| *cut <= received_ms);
        let mut sums: BTreeMap<(usize, ObservationKey), Observation> = BTreeMap::new();
        let mut fresh = Vec::new();
        let before = self.observations.len();
        for observation in std::mem::take(&mut self.observations) {
            if observation.last_received_ms >= settled_ms {
                fresh.push(observation);
                continue;
            }
            let at = part(observation.first_received_ms);
            if at == 0 {
                continue;
            }
            match sums.entry((at, observation.key())) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(observation);
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => entry.get_mut().absorb(&observation),
            }
        }
        self.observations = sums.into_values().chain(fresh).collect();
        if self.observations.len() < before {
            self.answers().clear();
        }
    }

    /// Everything received at or after `since_ms`, added up by what it is about on `track`.
    pub(crate) fn since(&self, track: Track, since_ms: u64) -> Shared<Vec<Evidence>> {
        let due = || self.observations.iter().filter(|observation| observation.first_received_ms >= since_ms);
        let Some(first_ms) = due().map(|observation| observation.first_received_ms).min() else {
            return Shared::default();
        };
        let mut answers = self.answers();
        if let Some((_, known)) = answers.iter().find(|(asked, _)| *asked == (first_ms, track)) {
            return known.clone();
        }
        let mut sums: BTreeMap<(Digest, u64), Evidence> = BTreeMap::new();
        for observation in due() {
            let subject = observation.subject(track);
            match sums.entry(subject) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let (manifest, generation) = subject;
                    entry.insert(Evidence { manifest, generation, ..observation.seen.clone() });
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => add(entry.get_mut(), &observation.seen),
            }
        }
        if !track.is_model() {
            // Devices on one program serve different models, whose answers say nothing of it.
            sums.values_mut().for_each(|seen| seen.predictions.clear());
        }
        let answer = Shared::from(sums.into_values().collect::<Vec<_>>());
        if answers.len() >= MAX_ANSWERS {
            answers.remove(0);
        }
        answers.push(((first_ms, track), answer.clone()));
        answer
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many observations are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.observations.len()
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::messages::Resources;
    use muster_shared::numbers::Summary;
    use muster_shared::profile::Objectives;
    use proptest::prelude::*;

    use super::*;

    fn telemetry(manifest: &[u8], generation: u64, served: u64, received_at_ms: u64) -> Observation {
        let mut latency_us = LatencySketch::default();
        let mut objectives = ObjectiveCounts::empty(&Objectives { latency_us: vec![105] });
        for latency in 100..100 + served {
            latency_us.add(latency);
            objectives.add(latency);
        }
        let window = TelemetryWindow {
            key: WindowKey { manifest: Digest::of(manifest), generation, start_ms: 0, duration_ms: 1 },
            requests: RequestCounts { served, ..RequestCounts::default() },
            latency_us,
            resources: Resources { resident_bytes: served, temperature_mc: Some(4_000), ..Resources::default() },
            comparison: None,
            objectives,
            numbers: BTreeMap::from([("stops".to_owned(), Summary::of(served as f64))]).into(),
            program: None,
        };
        Observation::of_telemetry(&window, received_at_ms)
    }

    #[test]
    fn a_window_without_requests_is_no_report() {
        let mut log = EvidenceLog::default();
        log.add(telemetry(b"a", 1, 0, 10));
        log.add(telemetry(b"a", 1, 5, 11));
        let seen = log.since(Track::Model, 0);
        assert_eq!((seen.len(), seen[0].reports, seen[0].requests.served, seen[0].latency_us.count()), (1, 1, 5, 5));
        assert_eq!((seen[0].memory, seen[0].temperature), (Mean { count: 1, sum: 5.0 }, Mean { count: 2, sum: 8.0 }));
        assert_eq!(seen[0].numbers.values().collect::<Vec<_>>(), [&Mean { count: 2, sum: 5.0 }]);
    }

    #[test]
    fn windows_tell_of_the_model_that_served_and_of_the_program_that_counted() {
        let program = |n: u64| ProgramKey { manifest: Digest::of(b"program"), generation: n };
        let under = |program, served| Observation { program, ..telemetry(b"a", 1, served, 10) };
        let mut log = EvidenceLog::default();
        let mut first = under(Some(program(1)), 2);
        first.seen.predictions.insert("class".into(), [("cat".to_owned(), 2)].into());
        [first, under(Some(program(2)), 3), under(None, 4)].into_iter().for_each(|seen| log.add(seen));
        log.compact(&[0], u64::MAX);
        let served = |track| {
            let seen = log.since(track, 0);
            let each = seen.iter().map(|seen| ((seen.manifest, seen.generation), seen.requests.served));
            each.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(served(Track::Model), [((Digest::of(b"a"), 1), 9)].into());
        let of_program = |n| (program(n).manifest, n);
        let expected = [(of_program(1), 2), (of_program(2), 3), ((packaged_program(), 0), 4)];
        assert_eq!(served(Track::Program), expected.into());
        assert!(log.since(Track::Program, 0).iter().all(|seen| seen.predictions.is_empty()));
        assert!(!log.since(Track::Model, 0)[0].predictions.is_empty());
    }

    #[test]
    fn a_flood_stays_bounded_and_is_not_counted_early() {
        let mut log = EvidenceLog::default();
        for n in 0..10_000 {
            log.add(telemetry(b"a", n % 3, 1, n));
        }
        assert!(log.len() <= MAX_FRESH);
        assert_eq!(log.since(Track::Model, 0).iter().map(|e| e.requests.served).sum::<u64>(), 10_000);
        assert!(log.since(Track::Model, 5_000).is_empty());
    }

    proptest! {
        /// Whatever was asked before, and however often.
        #[test]
        fn an_answer_holds_all_that_has_arrived_by_then(
            steps in prop::collection::vec((any::<bool>(), 0u64..50, 1u64..4), 0..80),
        ) {
            let (mut log, mut arrived) = (EvidenceLog::default(), Vec::new());
            for (asks, at_ms, served) in steps {
                if !asks {
                    log.add(telemetry(b"a", served % 2, served, at_ms));
                    arrived.push((at_ms, served));
                }
                let expected: u64 = arrived.iter().filter(|(ms, _)| *ms >= at_ms).map(|(_, served)| served).sum();
                prop_assert_eq!(log.since(Track::Model, at_ms).iter().map(|seen| seen.requests.served).sum::<u64>(), expected);
            }
        }

        /// Adding up must not change any answer that can still be asked for.
        #[test]
        fn compacting_changes_no_answer(
            windows in prop::collection::vec((0u64..1_000, 0u64..3, 0u64..4), 0..60),
            mut cuts in prop::collection::vec(0u64..1_000, 1..5),
            settled in 0u64..1_200,
        ) {
            cuts.sort_unstable();
            let mut windows = windows;
            windows.sort_unstable();
            let mut log = EvidenceLog::default();
            for (received, generation, served) in &windows {
                log.add(telemetry(b"a", *generation, *served, *received));
            }
            let before: Vec<_> = cuts.iter().map(|cut| log.since(Track::Model, *cut)).collect();
            log.compact(&cuts, settled);
            let after: Vec<_> = cuts.iter().map(|cut| log.since(Track::Model, *cut)).collect();
            prop_assert_eq!(&before, &after);
            // A later cut among what had not settled is still exact.
            let late = settled.max(cuts[0]);
            let expected: u64 = windows.iter().filter(|(r, _, _)| *r >= late).map(|(_, _, served)| served).sum();
            log.compact(&cuts, settled);
            let fresh_cut: u64 = log.since(Track::Model, late).iter().map(|e| e.requests.served).sum();
            prop_assert!(fresh_cut <= expected);
            if settled >= cuts[0] {
                prop_assert_eq!(fresh_cut, expected);
            }
        }
    }
}
