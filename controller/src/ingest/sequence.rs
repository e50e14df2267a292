//! Where a message stands in its stream, and what that means for storing and acknowledging it.
//!
//! A device repeats a stream in order until it is acknowledged, so only the next message in order is taken; whatever
//! comes out of turn is answered with where the stream stands, and comes again in its turn. Another epoch starts a
//! stream anew. What lies before `oldest` no longer exists and counts as given up.

use muster_shared::messages::{Position, Stream};

use crate::store::records::StreamPosition;

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is next: take it in. The stream stands here then.
    Next(StreamPosition),
    /// It was taken in before, or comes too early: say where the stream stands.
    NotNext(StreamPosition),
    /// It contradicts itself.
    Impossible,
}

/// Holds `position` against what is `stored` of the stream.
pub(crate) fn turn(stream: Stream, stored: Option<StreamPosition>, position: &Position) -> Turn {
    let Position { epoch, sequence, oldest } = *position;
    if sequence == 0 || oldest > sequence {
        return Turn::Impossible;
    }
    let contiguous = stored.filter(|stored| stored.epoch == epoch).map_or(0, |stored| stored.contiguous);
    let contiguous = contiguous.max(oldest.saturating_sub(1));
    let next = match stream {
        // Only the last report counts: a later one makes up for those before it.
        Stream::State => sequence > contiguous,
        Stream::Telemetry | Stream::Sketch | Stream::Event => Some(sequence) == contiguous.checked_add(1),
    };
    if next {
        Turn::Next(StreamPosition { epoch, contiguous: sequence })
    } else {
        Turn::NotNext(StreamPosition { epoch, contiguous })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn at(epoch: u64, sequence: u64, oldest: u64) -> Position {
        Position { epoch, sequence, oldest }
    }

    #[test]
    fn the_table() {
        let stored = |contiguous| Some(StreamPosition { epoch: 7, contiguous });
        let next = |epoch, contiguous| Turn::Next(StreamPosition { epoch, contiguous });
        let out = |epoch, contiguous| Turn::NotNext(StreamPosition { epoch, contiguous });
        for (stored, position, expected) in [
            (None, at(7, 1, 1), next(7, 1)),
            (None, at(7, 4, 4), next(7, 4)),
            (None, at(7, 4, 1), out(7, 0)),
            (stored(5), at(7, 6, 1), next(7, 6)),
            (stored(5), at(7, 5, 1), out(7, 5)),
            (stored(5), at(7, 1, 1), out(7, 5)),
            (stored(5), at(7, 7, 1), out(7, 5)),
            (stored(5), at(7, 9, 9), next(7, 9)),
            (stored(5), at(7, 10, 9), out(7, 8)),
            (stored(5), at(8, 1, 1), next(8, 1)),
            (stored(5), at(8, 2, 1), out(8, 0)),
            (stored(5), at(7, 0, 0), Turn::Impossible),
            (stored(5), at(7, 6, 7), Turn::Impossible),
            (stored(u64::MAX), at(7, u64::MAX, 1), out(7, u64::MAX)),
        ] {
            assert_eq!(turn(Stream::Telemetry, stored, &position), expected, "{stored:?} {position:?}");
        }
        assert_eq!(turn(Stream::State, stored(5), &at(7, 9, 1)), next(7, 9));
        assert_eq!(turn(Stream::State, stored(5), &at(7, 5, 1)), out(7, 5));
    }

    proptest! {
        /// Any interleaving of repeats and early messages stores every message once and in order, as soon as each was
        /// offered in its turn.
        #[test]
        fn everything_is_stored_once_and_in_order(offers in prop::collection::vec(1u64..12, 0..200)) {
            let mut stored: Option<StreamPosition> = None;
            let mut taken = Vec::new();
            for sequence in offers.iter().copied().chain(1..12) {
                if let Turn::Next(position) = turn(Stream::Event, stored, &at(3, sequence, 1)) {
                    taken.push(sequence);
                    stored = Some(position);
                }
            }
            prop_assert_eq!(taken, (1..12).collect::<Vec<_>>());
        }

        /// With messages given up in between: none twice, none out of order, and an acknowledgement never covers what
        /// the device holds and we lack.
        #[test]
        fn acknowledged_means_stored_or_given_up(offers in prop::collection::vec((1u64..20, 1u64..20), 0..100)) {
            let mut stored: Option<StreamPosition> = None;
            let mut taken = BTreeSet::new();
            let mut given_up = 0;
            for (sequence, oldest) in offers {
                let position = at(3, sequence, oldest);
                let standing = match turn(Stream::Telemetry, stored, &position) {
                    Turn::Next(standing) => {
                        prop_assert!(taken.last().is_none_or(|last| *last < sequence));
                        prop_assert!(taken.insert(sequence));
                        standing
                    }
                    Turn::NotNext(standing) => standing,
                    Turn::Impossible => continue,
                };
                given_up = given_up.max(oldest - 1);
                stored = Some(standing);
                for acknowledged in 1..=standing.contiguous {
                    prop_assert!(acknowledged <= given_up || taken.contains(&acknowledged));
                }
            }
        }
    }
}
