//! Where agents are to die: which steps are still to be met, how often, and what has been.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::random::Random;

/// How many passings of a step are early ones, each to be died at.
const EARLY: u64 = 2;
/// Steps that are passed many times in every life, so that later passings are other moments.
const OFTEN: [&str; 12] = [
    "file-written",
    "file-synced",
    "file-renamed",
    "record-stored",
    "chunk-written",
    "chunk-copied",
    "bitmap-stored",
    "event-kept",
    "reported",
    "message-batched",
    "log-flushed",
    "message-durable",
];
const EARLY_OF_OFTEN: u64 = 8;
/// Lives of two updates in which a first passing may not come before it counts as one that never does.
const TRIES: u32 = 16;
/// A random death comes within this time of a start, in milliseconds.
const RANDOM_MS: u64 = 1_000;

/// The n-th passing of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) step: String,
    pub(crate) nth: u64,
    missed: u32,
}

impl Target {
    /// The first passing of `step`.
    pub(crate) fn first(step: &str) -> Self {
        Self { step: step.to_owned(), nth: 1, missed: 0 }
    }
}

/// How a life is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// At a step.
    At(Target),
    /// From outside, after a time; where it says so, just after being asked to stop in order.
    After(Duration, Option<Duration>),
    /// Not by our hand.
    Open,
}

/// What is planned for all devices together.
pub(crate) struct Plan {
    todo: VecDeque<Target>,
    met: BTreeMap<String, u64>,
    kills: u64,
    wanted: u64,
}

impl Plan {
    pub(crate) fn new(steps: Vec<String>, wanted: u64, random: &mut Random) -> Self {
        let mut todo = VecDeque::new();
        for nth in 1..=EARLY_OF_OFTEN {
            let often = |step: &str| OFTEN.contains(&step);
            let mut round: Vec<Target> = steps
                .iter()
                .filter(|step| nth <= EARLY || often(step))
                .map(|step| Target { step: step.clone(), nth, missed: 0 })
                .collect();
            random.shuffle(&mut round);
            todo.extend(round);
        }
        Self { todo, met: steps.into_iter().map(|step| (step, 0)).collect(), kills: 0, wanted }
    }

    /// Whether enough has died.
    pub(crate) fn is_done(&self) -> bool {
        self.kills >= self.wanted && self.todo.front().is_none_or(|target| target.nth > 1)
    }

    /// How the next life is to end.
    pub(crate) fn next(&mut self, random: &mut Random) -> End {
        let first = self.todo.front().is_some_and(|target| target.nth == 1);
        if random.chance(if first { 80 } else { 50 })
            && let Some(target) = self.todo.pop_front()
        {
            return End::At(target);
        }
        Self::at_random(random)
    }

    /// A random end.
    pub(crate) fn at_random(random: &mut Random) -> End {
        let asked_to_stop = random.chance(20).then(|| random.within_ms(120));
        End::After(random.within_ms(RANDOM_MS), asked_to_stop)
    }

    /// A life ended as planned; says how many have.
    pub(crate) fn died(&mut self, end: &End) -> u64 {
        if let End::At(target) = end {
            *self.met.entry(target.step.clone()).or_default() += 1;
        }
        self.kills += 1;
        self.kills
    }

    /// A life ended otherwise before its target came.
    pub(crate) fn missed(&mut self, mut target: Target) {
        target.missed += 1;
        // Later passings may well not exist.
        if target.nth == 1 && target.missed < TRIES {
            // Behind the others that have not come: what comes only every few seconds needs time more than lives.
            let behind = self.todo.iter().position(|other| other.nth > 1).unwrap_or(self.todo.len());
            self.todo.insert(behind, target);
        }
    }

    /// Steps at which nothing has died.
    pub(crate) fn never_reached(&self) -> impl Iterator<Item = &str> {
        self.met.iter().filter(|(_, met)| **met == 0).map(|(step, _)| step.as_str())
    }

    /// What has been done, in words.
    pub(crate) fn summary(&self) -> String {
        let named: u64 = self.met.values().sum();
        let reached = self.met.values().filter(|met| **met > 0).count();
        format!("{} kills: {named} at {reached} of {} named steps, the others at random", self.kills, self.met.len())
    }
}
