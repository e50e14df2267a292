//! Which chunks are asked for next, and when they are asked for again.
//!
//! One window at a time: at most [`CHUNK_WINDOW`] chunks are outstanding, fewer where the line is slow (`pace`), and the
//! next ones are asked for once those that came are durable and noted so. Whether the bytes of a chunk are right is checked before it is given here.
//! One that came out wrong is asked for as it is, after the others: what the device unpacked it with may have rotted.

use std::collections::{BTreeMap, BTreeSet};

use muster_shared::chunk::{Accepts, ChunkSet};
use muster_shared::limits::CHUNK_WINDOW;

use crate::backoff::{Backoff, Pauses};
use crate::pace::Pace;

/// How often the bytes of one chunk may be wrong before the source is given up.
pub const MAX_CORRUPT: u32 = 5;
/// How many chunks may come out of packing wrong before all are asked for as they are.
pub const MAX_MISPACKED: u32 = 3;
/// The longest wait for a window, as a multiple of the first.
const LONGEST_WAIT: u64 = 8;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask for the first [`FetchPlan::window`] of these chunks that are not on the device, and tell the plan of all others
    /// ([`FetchPlan::found`], [`FetchPlan::not_asked`]).
    Request {
        /// The chunk that bit 0 stands for.
        first: u32,
        /// Which, relative to `first`.
        wanted: ChunkSet,
        /// How they may be written.
        accepts: Accepts,
    },
    /// Make what came durable, then call [`FetchPlan::durable`].
    Flush,
    /// Nothing before this time, in milliseconds, unless a chunk comes.
    WaitUntil(u64),
    /// Nothing before the connection is back.
    Disconnected,
    /// Every chunk is there.
    Done,
    /// The source cannot be used: the same chunk was wrong over and over.
    GiveUp {
        /// Which.
        chunk: u32,
    },
}

/// The plan of one download.
#[derive(Debug, Clone)]
pub struct FetchPlan {
    have: ChunkSet,
    arrived: BTreeSet<u32>,
    outstanding: BTreeSet<u32>,
    deadline_ms: u64,
    wait_ms: u64,
    backoff: Backoff,
    pace: Pace,
    corrupt: BTreeMap<u32, u32>,
    accepts: Accepts,
    mispacked: u32,
    connected: bool,
}

impl FetchPlan {
    /// A plan for what `have` lacks, written as the device `accepts` it. A window is waited for `wait_ms` milliseconds at
    /// first.
    #[must_use]
    pub fn new(have: ChunkSet, accepts: Accepts, wait_ms: u64, connected: bool) -> Self {
        Self {
            have,
            arrived: BTreeSet::new(),
            outstanding: BTreeSet::new(),
            deadline_ms: 0,
            wait_ms,
            backoff: Backoff::new(Pauses { first_ms: wait_ms, longest_ms: wait_ms.saturating_mul(LONGEST_WAIT) }),
            pace: Pace::new(),
            corrupt: BTreeMap::new(),
            accepts,
            mispacked: 0,
            connected,
        }
    }

    /// Whether chunk `index` is still wanted.
    #[must_use]
    pub fn wants(&self, index: u32) -> bool {
        index < self.have.length() && !self.have.contains(index) && !self.arrived.contains(&index)
    }

    /// The right bytes of chunk `index` have come; false when they were not wanted.
    pub fn arrived(&mut self, index: u32, now_ms: u64) -> bool {
        if !self.wants(index) {
            return false;
        }
        if self.outstanding.contains(&index) {
            self.pace.came(now_ms);
        }
        self.take(index);
        // A source that answers slowly is given time, one that falls silent is not.
        self.deadline_ms = now_ms.saturating_add(self.pace.wait_ms(self.wait_ms));
        self.backoff.succeeded();
        true
    }

    /// The right bytes of chunk `index`, which was to be asked for, were on the device; false when they were not wanted.
    pub fn found(&mut self, index: u32) -> bool {
        if !self.wants(index) {
            return false;
        }
        self.not_asked(index);
        self.take(index);
        self.backoff.succeeded();
        true
    }

    /// Chunk `index`, which was to be asked for, is not asked for yet.
    pub fn not_asked(&mut self, index: u32) {
        if self.outstanding.remove(&index) {
            self.pace.spared();
        }
        if self.outstanding.is_empty() {
            // Nobody was asked, so nobody failed to answer.
            self.backoff.succeeded();
        }
    }

    /// How many chunks may be asked for at once.
    #[must_use]
    pub fn window(&self) -> usize {
        self.pace.window()
    }

    fn take(&mut self, index: u32) {
        self.arrived.insert(index);
        self.outstanding.remove(&index);
        self.corrupt.remove(&index);
    }

    /// Wrong bytes have come for chunk `index`, `packed` or as they are.
    pub fn corrupt(&mut self, index: u32, packed: bool) {
        if !self.wants(index) {
            return;
        }
        *self.corrupt.entry(index).or_default() += 1;
        self.outstanding.remove(&index);
        self.mispacked += u32::from(packed);
        if self.mispacked >= MAX_MISPACKED {
            self.accepts = Accepts::Plain;
        }
    }

    /// What arrived is durable: these chunks are to be noted as such.
    pub fn durable(&mut self) -> Vec<u32> {
        let noted: Vec<u32> = std::mem::take(&mut self.arrived).into_iter().collect();
        for index in &noted {
            self.have.insert(*index);
        }
        noted
    }

    /// The connection came or went: what was asked for is asked for again.
    pub fn connection(&mut self, connected: bool) {
        self.connected = connected;
        self.outstanding.clear();
        self.backoff.succeeded();
        self.pace.begin_again();
    }

    /// What to do next. `jitter` is a random number up to 1,000.
    pub fn next(&mut self, now_ms: u64, jitter: u16) -> Step {
        if let Some((chunk, _)) = self.corrupt.iter().find(|(_, times)| **times >= MAX_CORRUPT) {
            return Step::GiveUp { chunk: *chunk };
        }
        if !self.outstanding.is_empty() {
            if now_ms < self.deadline_ms {
                return Step::WaitUntil(self.deadline_ms);
            }
            self.outstanding.clear();
            self.pace.begin_again();
        }
        if !self.arrived.is_empty() {
            return Step::Flush;
        }
        let sound = self.have.missing().filter(|index| !self.corrupt.contains_key(index));
        let mut window: Vec<u32> = sound.take(CHUNK_WINDOW).collect();
        let mut accepts = self.accepts;
        if window.is_empty() {
            window = self.have.missing().take(CHUNK_WINDOW).collect();
            accepts = Accepts::Plain;
        }
        let (Some(first), Some(last)) = (window.first().copied(), window.last().copied()) else {
            return Step::Done;
        };
        if !self.connected {
            return Step::Disconnected;
        }
        let mut wanted = ChunkSet::empty(last - first + 1);
        for index in &window {
            wanted.insert(index - first);
        }
        self.pace.asked(window.len(), now_ms);
        self.outstanding.extend(window);
        let wait_ms = if self.backoff.failures() == 0 {
            let _ = self.backoff.failed(jitter);
            self.wait_ms
        } else {
            self.wait_ms.max(self.backoff.failed(jitter))
        };
        self.deadline_ms = now_ms.saturating_add(self.pace.wait_ms(wait_ms));
        Step::Request { first, wanted, accepts }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACKED: Accepts = Accepts::Packed { base: None };

    /// The pace of a fast line.
    fn at_full_pace() -> Pace {
        let mut pace = Pace::new();
        while pace.window() < CHUNK_WINDOW {
            pace.asked(1, 0);
            pace.came(0);
        }
        pace
    }

    fn asked(step: &Step) -> Vec<u32> {
        match step {
            Step::Request { first, wanted, .. } => wanted.iter().map(|i| i + first).collect(),
            Step::Flush | Step::WaitUntil(_) | Step::Disconnected | Step::Done | Step::GiveUp { .. } => {
                panic!("{step:?}")
            }
        }
    }

    #[test]
    fn a_window_is_asked_for_again_until_it_has_come() {
        let mut have = ChunkSet::empty(20);
        have.insert(1);
        let mut plan = FetchPlan::new(have, PACKED, 100, true);
        assert_eq!(asked(&plan.next(0, 0)), [0, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(plan.next(1, 0), Step::WaitUntil(100));
        assert!(plan.arrived(2, 50) && !plan.arrived(2, 50) && !plan.arrived(1, 50) && !plan.arrived(20, 50));
        assert_eq!(plan.next(60, 0), Step::WaitUntil(150));
        assert_eq!(plan.next(150, 0), Step::Flush);
        assert_eq!(plan.durable(), [2]);
        assert_eq!(asked(&plan.next(150, 0)), [0, 3, 4, 5, 6, 7, 8, 9]);
        // Silence: each wait is longer.
        let Step::WaitUntil(second) = plan.next(151, 0) else { panic!() };
        let _ = plan.next(second, 1_000);
        let Step::WaitUntil(third) = plan.next(second + 1, 0) else { panic!() };
        assert!(third - second > second - 150, "{second} {third}");
        // A late chunk of an earlier window is taken all the same.
        assert!(plan.arrived(15, third));
    }

    #[test]
    fn without_a_connection_nothing_is_asked_for_and_nothing_is_lost() {
        let mut plan = FetchPlan::new(ChunkSet::empty(3), PACKED, 100, true);
        let _ = plan.next(0, 0);
        plan.arrived(0, 1);
        plan.connection(false);
        assert_eq!(plan.next(2, 0), Step::Flush);
        plan.durable();
        assert_eq!(plan.next(3, 0), Step::Disconnected);
        plan.connection(true);
        assert_eq!(asked(&plan.next(4, 0)), [1, 2]);
    }

    #[test]
    fn what_is_found_or_put_off_is_not_waited_for() {
        let mut plan = FetchPlan::new(ChunkSet::empty(20), PACKED, 100, true);
        plan.pace = at_full_pace();
        assert_eq!(asked(&plan.next(0, 0)), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!((0..4).all(|index| plan.found(index)) && !plan.found(0));
        (5..8).for_each(|index| plan.not_asked(index));
        assert_eq!(plan.next(1, 0), Step::WaitUntil(100));
        assert!(plan.arrived(4, 40_000), "the only one asked for took its time");
        assert_eq!(plan.next(40_000, 0), Step::Flush);
        assert_eq!(plan.durable(), [0, 1, 2, 3, 4]);
        assert_eq!(plan.window(), 1, "what was found says nothing about the line");
        let first = asked(&plan.next(40_000, 0));
        assert_eq!(first, [5, 6, 7, 8, 9, 10, 11, 12]);
        first.into_iter().for_each(|index| plan.not_asked(index));
        assert_eq!(asked(&plan.next(40_001, 0)).len(), CHUNK_WINDOW, "it is asked for as soon as that may be");
        assert_eq!(plan.backoff.failures(), 1);
    }

    #[test]
    fn a_source_that_sends_rubbish_is_given_up() {
        let mut plan = FetchPlan::new(ChunkSet::empty(3), PACKED, 100, true);
        for _ in 0..MAX_CORRUPT {
            plan.corrupt(1, false);
        }
        assert_eq!(plan.next(0, 0), Step::GiveUp { chunk: 1 });
        assert_eq!(FetchPlan::new(ChunkSet::empty(0), PACKED, 1, true).next(0, 0), Step::Done);
    }

    #[test]
    fn what_came_out_of_packing_wrong_is_asked_for_as_it_is() {
        let asked_how = |plan: &mut FetchPlan| {
            let Step::Request { accepts, .. } = plan.next(0, 0) else { panic!("nothing is asked for") };
            accepts
        };
        let mut plan = FetchPlan::new(ChunkSet::empty(12), PACKED, 100, true);
        assert_eq!(asked_how(&mut plan), PACKED);
        plan.corrupt(0, true);
        plan.connection(true);
        // The others first, as before.
        let step = plan.next(0, 0);
        assert_eq!(asked(&step), [1, 2, 3, 4, 5, 6, 7, 8]);
        for index in 1..12 {
            plan.arrived(index, 0);
        }
        plan.durable();
        let Step::Request { first: 0, accepts: Accepts::Plain, .. } = plan.next(0, 0) else { panic!() };
        // Where it happens again and again, packing is given up.
        let mut plan = FetchPlan::new(ChunkSet::empty(12), PACKED, 100, true);
        for index in 0..MAX_MISPACKED {
            assert_eq!(asked_how(&mut plan), PACKED);
            plan.corrupt(index, true);
            plan.connection(true);
        }
        assert_eq!(asked_how(&mut plan), Accepts::Plain);
    }

    #[derive(Debug, Clone)]
    enum Happens {
        Arrives(u32),
        Corrupt(u32, bool),
        Flushed,
        Connection(bool),
        Time(u64),
        Crash,
    }

    fn happening() -> impl Strategy<Value = Happens> {
        prop_oneof![
            8 => (0u32..45).prop_map(Happens::Arrives),
            1 => (0u32..45, any::<bool>()).prop_map(|(index, packed)| Happens::Corrupt(index, packed)),
            2 => Just(Happens::Flushed),
            1 => any::<bool>().prop_map(Happens::Connection),
            2 => (0u64..500).prop_map(Happens::Time),
            1 => Just(Happens::Crash),
        ]
    }

    proptest! {
        /// It never asks for what is durable or has come, nor for more than a window; after a crash it asks for what is
        /// not durable only; and once everything arrives it ends.
        #[test]
        fn it_asks_for_what_is_missing_and_no_more(total in 0u32..40, events in prop::collection::vec(happening(), 0..120)) {
            let mut durable = ChunkSet::empty(total);
            let mut plan = FetchPlan::new(durable.clone(), PACKED, 100, true);
            let mut arrived: BTreeSet<u32> = BTreeSet::new();
            let mut now_ms = 0;
            for event in events {
                match event {
                    Happens::Arrives(index) => {
                        let wanted = index < total && !durable.contains(index) && !arrived.contains(&index);
                        prop_assert_eq!(plan.arrived(index, now_ms), wanted);
                        if wanted { arrived.insert(index); }
                    }
                    Happens::Corrupt(index, packed) => plan.corrupt(index, packed),
                    Happens::Flushed => {
                        let noted = plan.durable();
                        prop_assert_eq!(noted.iter().copied().collect::<BTreeSet<_>>(), std::mem::take(&mut arrived));
                        for index in noted { durable.insert(index); }
                    }
                    Happens::Connection(up) => plan.connection(up),
                    Happens::Time(ms) => now_ms += ms,
                    Happens::Crash => {
                        plan = FetchPlan::new(durable.clone(), PACKED, 100, true);
                        arrived.clear();
                    }
                }
                match plan.next(now_ms, 500) {
                    Step::Request { first, wanted, .. } => {
                        prop_assert!(wanted.count() as usize <= CHUNK_WINDOW && wanted.count() > 0);
                        for index in wanted.iter().map(|i| i + first) {
                            prop_assert!(index < total && !durable.contains(index) && !arrived.contains(&index));
                        }
                    }
                    Step::Done => prop_assert!(durable.is_full()),
                    Step::WaitUntil(at_ms) => prop_assert!(at_ms > now_ms),
                    Step::Flush => prop_assert!(!arrived.is_empty()),
                    Step::Disconnected | Step::GiveUp { .. } => {}
                }
            }
            let mut plan = FetchPlan::new(durable.clone(), PACKED, 100, true);
            for _ in 0..200 {
                match plan.next(now_ms, 0) {
                    Step::Request { first, wanted, .. } => {
                        for index in wanted.iter() { plan.arrived(index + first, now_ms); }
                    }
                    Step::Flush => for index in plan.durable() { prop_assert!(durable.insert(index)); },
                    Step::Done => break,
                    step @ (Step::WaitUntil(_) | Step::Disconnected | Step::GiveUp { .. }) => {
                        prop_assert!(false, "{:?}", step);
                    }
                }
            }
            prop_assert!(durable.is_full());
        }
    }
}
