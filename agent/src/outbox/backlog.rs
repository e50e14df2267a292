//! Messages that the store does not take at the moment, in memory until it does.
//!
//! They are not durable, so nobody is told that they exist. There is room for few, and what is given up follows the same
//! order as in the store.

use std::collections::BTreeMap;

use muster_agent_core::outbox::{Bounds, Ledger, TooLarge};
use muster_shared::ids::Digest;
use muster_shared::messages::Stream;

/// What may wait in memory: hours of windows of a usual model.
const BOUNDS: Bounds = Bounds { max_bytes: 1024 * 1024, max_events: 128 };

/// Messages in memory.
#[derive(Debug)]
pub(super) struct Backlog {
    ledger: Ledger,
    bodies: BTreeMap<(Stream, u64), Vec<u8>>,
    given_up: u64,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Self { ledger: Ledger::new(BOUNDS), bodies: BTreeMap::new(), given_up: 0 }
    }

    /// Keeps a message; the oldest go where there is no room.
    pub(super) fn add(&mut self, stream: Stream, body: Vec<u8>) -> Result<(), TooLarge> {
        let added = self.ledger.add(stream, body.len() as u64).inspect_err(|_| self.given_up += 1)?;
        for removed in added.removed {
            self.bodies.remove(&removed);
        }
        self.given_up = self.given_up.saturating_add(added.given_up);
        self.bodies.insert((stream, added.held.sequence), body);
        Ok(())
    }

    /// The message that is to be stored next.
    pub(super) fn next(&self) -> Option<(Stream, u64, &[u8])> {
        let (stream, sequence) = *self.bodies.first_key_value()?.0;
        self.bodies.get(&(stream, sequence)).map(|body| (stream, sequence, body.as_slice()))
    }

    /// A message was stored, and all of its stream before it.
    pub(super) fn stored(&mut self, stream: Stream, sequence: u64) {
        for gone in self.ledger.acknowledged(stream, sequence) {
            self.bodies.remove(&(stream, gone));
        }
    }

    /// Forgets the first message of `stream` if it is the one with `digest`, which was stored after all.
    pub(super) fn forget_stored(&mut self, stream: Stream, digest: Digest) {
        if let Some(first) = self.ledger.next_after(stream, 0)
            && self.bodies.get(&(stream, first)).is_some_and(|body| Digest::of(body) == digest)
        {
            self.stored(stream, first);
        }
    }

    /// Messages given up since the last call of [`Self::note_given_up`].
    pub(super) fn given_up(&self) -> u64 {
        self.given_up
    }

    /// What was given up has been counted durably.
    pub(super) fn note_given_up(&mut self) {
        self.given_up = 0;
    }

    /// Messages that wait here.
    pub(super) fn len(&self) -> usize {
        self.bodies.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_what_is_given_up_is_counted() {
        let mut backlog = Backlog::new();
        for n in 0..100u8 {
            backlog.add(Stream::Telemetry, vec![n; 64 * 1024]).unwrap();
        }
        backlog.add(Stream::Event, b"kept".to_vec()).unwrap();
        assert!(backlog.len() <= 16 + 1 && backlog.given_up() >= 84, "{} {}", backlog.len(), backlog.given_up());
        backlog.add(Stream::State, vec![0]).unwrap();
        backlog.add(Stream::State, vec![1]).unwrap();
        let mut found = Vec::new();
        while let Some((stream, sequence, body)) = backlog.next() {
            found.push((stream, body.to_vec()));
            backlog.stored(stream, sequence);
        }
        assert!(found.contains(&(Stream::Event, b"kept".to_vec())) && found.contains(&(Stream::State, vec![1])));
        assert!(!found.contains(&(Stream::State, vec![0])), "only the last state counts");
        let telemetry: Vec<u8> = found.iter().filter(|f| f.0 == Stream::Telemetry).map(|f| f.1[0]).collect();
        assert!(telemetry.is_sorted() && telemetry.last() == Some(&99), "{telemetry:?}");
        assert!(backlog.add(Stream::Event, vec![0; 2 * 1024 * 1024]).is_err());
    }
}
