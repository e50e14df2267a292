//! What the outbox holds, and what it gives up when it is full.
//!
//! The order of loss: the oldest window of telemetry or sketches first. The last state is never given up. Events are
//! bounded in number; only when that bound is passed, or when nothing but events and the state is left and the bytes
//! still do not fit, the oldest event goes: the last resort that keeps a device with a full disk alive. Whatever is
//! given up is counted.

use std::collections::{BTreeMap, VecDeque};

use muster_shared::messages::Stream;

/// Numbers a stream has for itself between two openings of the store. What is added after an opening begins at a multiple of it: a store
/// that lost its end must not give out again the numbers that were on it, under which the receiver has other messages.
pub const NUMBERS_PER_OPENING: u64 = 1 << 20;
/// Openings that can be counted; a larger number is none that was ever noted.
const MAX_OPENINGS: u64 = 1 << 43;

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all messages together.
    pub max_bytes: u64,
    /// Events.
    pub max_events: usize,
}

/// One message that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its place in its stream.
    pub sequence: u64,
    /// Its place among all messages.
    pub order: u64,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// What adding a message means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The new message.
    pub held: Held,
    /// Messages that go: replaced states, and what is given up.
    pub removed: Vec<(Stream, u64)>,
    /// How many of those are given up.
    pub given_up: u64,
}

/// A message that cannot be taken, however empty the outbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {bytes} bytes does not fit into an outbox of {max_bytes} bytes")]
pub struct TooLarge {
    /// Its size, in bytes.
    pub bytes: u64,
    /// The bound, in bytes.
    pub max_bytes: u64,
}

#[derive(Debug, Clone, Default)]
struct Queue {
    held: VecDeque<Held>,
    next_sequence: u64,
}

/// The list of what waits. The messages themselves are kept elsewhere.
#[derive(Debug, Clone)]
pub struct Ledger {
    bounds: Bounds,
    queues: BTreeMap<Stream, Queue>,
    bytes: u64,
    next_order: u64,
}

impl Ledger {
    /// An empty list.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let queue = Queue { held: VecDeque::new(), next_sequence: 1 };
        Self {
            bounds,
            queues: Stream::ALL.into_iter().map(|stream| (stream, queue.clone())).collect(),
            bytes: 0,
            next_order: 0,
        }
    }

    /// Puts back a message found in the store; within a stream they must come in order.
    pub fn restore(&mut self, stream: Stream, held: Held) {
        if let Some(queue) = self.queues.get_mut(&stream) {
            queue.held.push_back(held);
            queue.next_sequence = queue.next_sequence.max(held.sequence.saturating_add(1));
            self.bytes = self.bytes.saturating_add(held.bytes);
            self.next_order = self.next_order.max(held.order.saturating_add(1));
        }
    }

    /// Continues the count of `stream` at `next_sequence`, where the messages before it are gone.
    pub fn continue_at(&mut self, stream: Stream, next_sequence: u64) {
        if let Some(queue) = self.queues.get_mut(&stream) {
            queue.next_sequence = queue.next_sequence.max(next_sequence);
        }
    }

    /// Begins the numbers of another opening, in all streams, behind those of the `noted` one and of every message that is known of. Gives the
    /// opening's number, which must be noted outside the store before any message is added.
    pub fn begin_opening(&mut self, noted: Option<u64>) -> u64 {
        let after_noted = noted.filter(|noted| *noted < MAX_OPENINGS).map_or(0, |noted| noted + 1);
        let known = self.queues.values().map(|queue| queue.next_sequence).max().unwrap_or_default();
        let after_known = if known > 1 { known / NUMBERS_PER_OPENING + 1 } else { 0 };
        let opening = after_noted.max(after_known);
        for stream in Stream::ALL {
            self.continue_at(stream, opening.saturating_mul(NUMBERS_PER_OPENING));
        }
        opening
    }

    /// Adds a message of `bytes` bytes, and says what has to go for it.
    ///
    /// # Errors
    /// [`TooLarge`]; nothing has changed then.
    pub fn add(&mut self, stream: Stream, bytes: u64) -> Result<Added, TooLarge> {
        if bytes > self.bounds.max_bytes {
            return Err(TooLarge { bytes, max_bytes: self.bounds.max_bytes });
        }
        let mut removed = Vec::new();
        if stream == Stream::State {
            // Only the last one counts, so the ones before are not lost but replaced.
            while let Some(sequence) = self.pop_oldest(Stream::State) {
                removed.push((Stream::State, sequence));
            }
        }
        let mut given_up = 0;
        while self.bytes.saturating_add(bytes) > self.bounds.max_bytes {
            let Some(victim) = self.victim() else { break };
            let Some(sequence) = self.pop_oldest(victim) else { break };
            removed.push((victim, sequence));
            given_up += 1;
        }
        if stream == Stream::Event {
            while self.count(Stream::Event) >= self.bounds.max_events.max(1) {
                let Some(sequence) = self.pop_oldest(Stream::Event) else { break };
                removed.push((Stream::Event, sequence));
                given_up += 1;
            }
        }
        let order = self.next_order;
        self.next_order += 1;
        let queue = self.queues.entry(stream).or_default();
        let held = Held { sequence: queue.next_sequence, order, bytes };
        queue.next_sequence += 1;
        queue.held.push_back(held);
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(Added { held, removed, given_up })
    }

    /// The stream whose oldest message goes first.
    fn victim(&self) -> Option<Stream> {
        let front = |stream: Stream| self.queues.get(&stream).and_then(|q| q.held.front()).map(|h| (h.order, stream));
        [front(Stream::Telemetry), front(Stream::Sketch)]
            .into_iter()
            .flatten()
            .min()
            .or_else(|| front(Stream::Event))
            .map(|(_, stream)| stream)
    }

    fn pop_oldest(&mut self, stream: Stream) -> Option<u64> {
        let held = self.queues.get_mut(&stream)?.held.pop_front()?;
        self.bytes = self.bytes.saturating_sub(held.bytes);
        Some(held.sequence)
    }

    /// Everything of `stream` up to `sequence` is stored elsewhere: these messages go.
    pub fn acknowledged(&mut self, stream: Stream, sequence: u64) -> Vec<u64> {
        let mut removed = Vec::new();
        while self.oldest_held(stream).is_some_and(|oldest| oldest <= sequence) {
            removed.extend(self.pop_oldest(stream));
        }
        removed
    }

    /// The first message of `stream` that waits after `sequence`.
    #[must_use]
    pub fn next_after(&self, stream: Stream, sequence: u64) -> Option<u64> {
        let held = &self.queues.get(&stream)?.held;
        held.get(held.partition_point(|h| h.sequence <= sequence)).map(|h| h.sequence)
    }

    /// The message of `stream` to be sent after `sequence`: the first that waits. One behind a gap waits until all before the gap is
    /// acknowledged: only then can the receiver be told that nothing is left in between.
    #[must_use]
    pub fn next_in_turn(&self, stream: Stream, sequence: u64) -> Option<u64> {
        let next = self.next_after(stream, sequence)?;
        let held = &self.queues.get(&stream)?.held;
        let before = held.partition_point(|h| h.sequence < next).checked_sub(1).and_then(|at| held.get(at));
        before.is_none_or(|before| before.sequence.saturating_add(1) == next).then_some(next)
    }

    fn oldest_held(&self, stream: Stream) -> Option<u64> {
        self.queues.get(&stream).and_then(|q| q.held.front()).map(|h| h.sequence)
    }

    /// The oldest sequence of `stream` that waits, or the next one where none does.
    #[must_use]
    pub fn oldest(&self, stream: Stream) -> u64 {
        self.oldest_held(stream).unwrap_or_else(|| self.next_sequence(stream))
    }

    /// The sequence the next message of `stream` gets.
    #[must_use]
    pub fn next_sequence(&self, stream: Stream) -> u64 {
        self.queues.get(&stream).map_or(1, |q| q.next_sequence)
    }

    /// Messages of `stream` that wait.
    #[must_use]
    pub fn count(&self, stream: Stream) -> usize {
        self.queues.get(&stream).map_or(0, |q| q.held.len())
    }

    /// Messages that wait.
    #[must_use]
    pub fn total(&self) -> usize {
        self.queues.values().map(|q| q.held.len()).sum()
    }

    /// Bytes that wait.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Messages that are missing between one before `expected` and the one `found` next; numbers that an opening left out are none.
#[must_use]
pub fn missing_between(expected: u64, found: u64) -> u64 {
    found.saturating_sub(expected).min(found % NUMBERS_PER_OPENING)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { max_bytes: 100, max_events: 3 };

    #[test]
    fn the_oldest_telemetry_goes_first_and_the_state_never() {
        let mut ledger = Ledger::new(BOUNDS);
        ledger.add(Stream::State, 10).unwrap();
        ledger.add(Stream::Event, 20).unwrap();
        ledger.add(Stream::Sketch, 30).unwrap();
        ledger.add(Stream::Telemetry, 30).unwrap();
        let added = ledger.add(Stream::Telemetry, 20).unwrap();
        assert_eq!((added.removed, added.given_up), (vec![(Stream::Sketch, 1)], 1));
        let added = ledger.add(Stream::Event, 60).unwrap();
        assert_eq!(added.removed, [(Stream::Telemetry, 1), (Stream::Telemetry, 2)]);
        // Nothing but events and the state is left: the last resort.
        let added = ledger.add(Stream::Telemetry, 30).unwrap();
        assert_eq!(added.removed, [(Stream::Event, 1)]);
        assert_eq!((ledger.count(Stream::State), ledger.bytes()), (1, 100));
        assert_eq!(ledger.add(Stream::Event, 101), Err(TooLarge { bytes: 101, max_bytes: 100 }));
    }

    #[test]
    fn a_new_state_replaces_the_last_and_events_are_bounded_in_number() {
        let mut ledger = Ledger::new(BOUNDS);
        ledger.add(Stream::State, 90).unwrap();
        let added = ledger.add(Stream::State, 95).unwrap();
        assert_eq!((added.held.sequence, added.removed, added.given_up), (2, vec![(Stream::State, 1)], 0));
        assert_eq!(ledger.oldest(Stream::State), 2);
        for _ in 0..3 {
            assert_eq!(ledger.add(Stream::Event, 1).unwrap().removed, []);
        }
        assert_eq!(ledger.add(Stream::Event, 1).unwrap().removed, [(Stream::Event, 1)]);
    }

    #[test]
    fn acknowledgements_and_restarts_keep_the_count_going() {
        let mut ledger = Ledger::new(BOUNDS);
        for _ in 0..3 {
            ledger.add(Stream::Event, 1).unwrap();
        }
        assert_eq!(ledger.acknowledged(Stream::Event, 2), [1, 2]);
        assert!(ledger.acknowledged(Stream::Event, 1).is_empty());
        assert_eq!((ledger.oldest(Stream::Event), ledger.next_after(Stream::Event, 0)), (3, Some(3)));
        let mut again = Ledger::new(BOUNDS);
        again.continue_at(Stream::Event, 4);
        assert_eq!((again.oldest(Stream::Event), again.next_after(Stream::Event, 0)), (4, None));
        assert_eq!(again.add(Stream::Event, 1).unwrap().held.sequence, 4);
    }

    #[test]
    fn every_opening_has_numbers_of_its_own() {
        const N: u64 = NUMBERS_PER_OPENING;
        let mut ledger = Ledger::new(BOUNDS);
        assert_eq!((ledger.begin_opening(None), ledger.next_sequence(Stream::State)), (0, 1));
        for _ in 0..2 {
            ledger.add(Stream::Event, 1).unwrap();
        }
        assert_eq!(ledger.begin_opening(Some(4)), 5);
        assert_eq!(ledger.add(Stream::Event, 1).unwrap().held.sequence, 5 * N);
        assert_eq!(ledger.add(Stream::State, 1).unwrap().held.sequence, 5 * N);
        // The note is lost, or is none: what is known of is not given again.
        assert_eq!(ledger.clone().begin_opening(None), 6);
        assert_eq!(ledger.clone().begin_opening(Some(u64::MAX)), 6);

        let turns = |ledger: &Ledger| [0, 1, 2].map(|after| ledger.next_in_turn(Stream::Event, after));
        assert_eq!(turns(&ledger), [Some(1), Some(2), None]);
        ledger.acknowledged(Stream::Event, 1);
        assert_eq!(turns(&ledger), [Some(2), Some(2), None]);
        ledger.acknowledged(Stream::Event, 2);
        assert_eq!((turns(&ledger), ledger.oldest(Stream::Event)), ([Some(5 * N); 3], 5 * N));
    }

    #[test]
    fn what_an_opening_left_out_is_not_missing() {
        const N: u64 = NUMBERS_PER_OPENING;
        for (expected, found, missing) in
            [(3, 3, 0), (3, 6, 3), (3, 5 * N, 0), (3, 5 * N + 2, 2), (5 * N + 1, 5 * N + 4, 3)]
        {
            assert_eq!(missing_between(expected, found), missing, "{expected} {found}");
        }
    }

    fn stream() -> impl Strategy<Value = Stream> {
        prop::sample::select(Stream::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn the_bounds_hold_and_sequences_only_grow(steps in prop::collection::vec((stream(), 0u64..60, any::<bool>()), 0..200)) {
            let mut ledger = Ledger::new(BOUNDS);
            let mut last: BTreeMap<Stream, u64> = BTreeMap::new();
            let mut state_added = false;
            for (stream, bytes, ack) in steps {
                if ack {
                    ledger.acknowledged(stream, bytes);
                    if stream == Stream::State { state_added = ledger.count(Stream::State) > 0; }
                } else {
                    let added = ledger.add(stream, bytes).unwrap();
                    let before = last.insert(stream, added.held.sequence);
                    prop_assert_eq!(added.held.sequence, before.unwrap_or(0) + 1);
                    state_added |= stream == Stream::State;
                }
                // The state may stand beside a message that needs all the room; nothing else may.
                prop_assert!(ledger.bytes() <= 2 * BOUNDS.max_bytes);
                prop_assert!(ledger.count(Stream::Event) <= BOUNDS.max_events);
                prop_assert_eq!(ledger.count(Stream::State), usize::from(state_added));
            }
        }
    }
}
