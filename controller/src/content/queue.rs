//! Who gets the next chunk: all who asked, in turn, one chunk each.
//!
//! A device that cannot take more is passed over until it can, and costs the others nothing. Pure: what is sent, and how, is decided
//! elsewhere.

use std::collections::{BTreeMap, HashMap, VecDeque};

use muster_shared::chunk::Accepts;
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::limits::CHUNK_WINDOW;
use muster_shared::messages::ChunkRequest;

/// One chunk to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) device: DeviceId,
    pub(super) manifest: Digest,
    pub(super) accepts: Accepts,
    pub(super) index: u32,
    /// Which of the device's requests it belongs to.
    request: u64,
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is on its way, or there is no such chunk.
    Over,
    /// The device has to take what is on its way first.
    Full,
    /// The request cannot be served: the rest of it is forgotten, and the device asks again.
    Refused,
}

#[derive(Debug)]
struct Asked {
    request: u64,
    manifest: Digest,
    accepts: Accepts,
    indices: VecDeque<u32>,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In line.
    Ready,
    /// A chunk of it is being sent.
    Busy,
    /// Waiting for room, since this number.
    Parked(u64),
}

/// What devices have asked for: the last request of each.
#[derive(Debug, Default)]
pub(super) struct Queue {
    asked: HashMap<DeviceId, Asked>,
    /// Some may have gone since; each that is ready is here once.
    line: VecDeque<DeviceId>,
    parked: BTreeMap<u64, DeviceId>,
    next_number: u64,
    /// The number of each device's last request, on its connection.
    last: HashMap<DeviceId, u64>,
}

impl Queue {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// `device` counts its requests anew.
    pub(super) fn begin(&mut self, device: &DeviceId) {
        self.last.remove(device);
    }

    /// Takes a request, of which a window counts. One before it is forgotten: a device asks for one window at a time. One that is not
    /// newer than the last has been delivered twice, or late; answering it would send everything twice.
    pub(super) fn submit(&mut self, device: DeviceId, request: &ChunkRequest) {
        if request.number > 0 {
            let last = self.last.entry(device.clone()).or_default();
            if request.number <= *last {
                return;
            }
            *last = request.number;
        }
        let indices = request.wanted.iter().filter_map(|offset| request.first.checked_add(offset));
        let indices: VecDeque<u32> = indices.take(CHUNK_WINDOW).collect();
        let before = self.asked.get(&device).map(|asked| asked.place);
        if indices.is_empty() {
            return;
        }
        if before.is_none() {
            self.line.push_back(device.clone());
        }
        let place = before.unwrap_or(Place::Ready);
        let (manifest, accepts) = (request.manifest, request.accepts);
        let request = self.number();
        self.asked.insert(device, Asked { request, manifest, accepts, indices, place });
    }

    /// The next chunk to send. What came of it is to be told.
    pub(super) fn next(&mut self) -> Option<Turn> {
        loop {
            let device = self.line.pop_front()?;
            let Some(asked) = self.asked.get_mut(&device) else { continue };
            if asked.place != Place::Ready {
                continue;
            }
            let Some(index) = asked.indices.pop_front() else {
                self.asked.remove(&device);
                continue;
            };
            asked.place = Place::Busy;
            let (manifest, accepts, request) = (asked.manifest, asked.accepts, asked.request);
            return Some(Turn { device, manifest, accepts, index, request });
        }
    }

    /// Takes note of what came of a turn.
    pub(super) fn done(&mut self, turn: Turn, outcome: Outcome) {
        let number = self.number();
        let Some(asked) = self.asked.get_mut(&turn.device).filter(|asked| asked.place == Place::Busy) else { return };
        let same = asked.request == turn.request;
        match outcome {
            Outcome::Over => {}
            Outcome::Full if same => asked.indices.push_front(turn.index),
            Outcome::Refused if same => asked.indices.clear(),
            Outcome::Full | Outcome::Refused => {}
        }
        if asked.indices.is_empty() {
            self.asked.remove(&turn.device);
        } else if outcome == Outcome::Full {
            asked.place = Place::Parked(number);
            self.parked.insert(number, turn.device);
        } else {
            asked.place = Place::Ready;
            self.line.push_back(turn.device);
        }
    }

    /// `device` has taken something: there is room for it again, and for the one that has waited the longest.
    pub(super) fn room(&mut self, device: &DeviceId) {
        if let Some(Place::Parked(number)) = self.asked.get(device).map(|asked| asked.place) {
            self.unpark(number);
        }
        if let Some(oldest) = self.parked.keys().next().copied() {
            self.unpark(oldest);
        }
    }

    /// All who wait for room are tried again.
    pub(super) fn retry(&mut self) {
        while let Some(oldest) = self.parked.keys().next().copied() {
            self.unpark(oldest);
        }
    }

    fn unpark(&mut self, number: u64) {
        let Some(device) = self.parked.remove(&number) else { return };
        if let Some(asked) = self.asked.get_mut(&device) {
            asked.place = Place::Ready;
            self.line.push_back(device);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use muster_shared::chunk::ChunkSet;
    use proptest::prelude::*;

    use super::*;

    fn device(number: u8) -> DeviceId {
        DeviceId::new(format!("dev-{number}")).unwrap()
    }

    fn request(first: u32, wanted: impl IntoIterator<Item = u32>) -> ChunkRequest {
        let mut set = ChunkSet::empty(64);
        for index in wanted {
            set.insert(index);
        }
        ChunkRequest { manifest: Digest::of(b"m"), first, wanted: set, accepts: Accepts::Plain, number: 0 }
    }

    fn serve(queue: &mut Queue, outcome: Outcome) -> Option<(DeviceId, u32)> {
        let turn = queue.next()?;
        let sent = (turn.device.clone(), turn.index);
        queue.done(turn, outcome);
        Some(sent)
    }

    #[test]
    fn everybody_in_turn_and_a_window_of_each() {
        let mut queue = Queue::default();
        queue.submit(device(1), &request(0, 0..20));
        queue.submit(device(2), &request(5, [0, 2]));
        let order: Vec<_> = std::iter::from_fn(|| serve(&mut queue, Outcome::Over)).collect();
        assert_eq!(order[..4], [(device(1), 0), (device(2), 5), (device(1), 1), (device(2), 7)]);
        assert_eq!(order.len(), CHUNK_WINDOW + 2);
        assert!(queue.asked.is_empty() && queue.line.is_empty());
        // Numbers past the end of numbers are none.
        queue.submit(device(1), &request(u32::MAX, [0, 1]));
        assert_eq!(serve(&mut queue, Outcome::Over), Some((device(1), u32::MAX)));
        assert_eq!(serve(&mut queue, Outcome::Over), None);
    }

    #[test]
    fn one_that_is_full_waits_aside_and_goes_on_where_it_was() {
        let mut queue = Queue::default();
        queue.submit(device(1), &request(0, [0, 1]));
        queue.submit(device(2), &request(0, [0]));
        assert_eq!(serve(&mut queue, Outcome::Full), Some((device(1), 0)));
        assert_eq!(serve(&mut queue, Outcome::Over), Some((device(2), 0)));
        assert_eq!(serve(&mut queue, Outcome::Over), None);
        queue.room(&device(1));
        assert_eq!(serve(&mut queue, Outcome::Refused), Some((device(1), 0)));
        assert_eq!(serve(&mut queue, Outcome::Over), None, "what was refused is forgotten");
        // Room for somebody is room for the one that has waited the longest, too.
        for number in [1, 2] {
            queue.submit(device(number), &request(0, [0]));
            assert!(serve(&mut queue, Outcome::Full).is_some());
        }
        queue.room(&device(3));
        assert_eq!(serve(&mut queue, Outcome::Over), Some((device(1), 0)));
        assert_eq!(serve(&mut queue, Outcome::Over), None);
        queue.retry();
        assert_eq!(serve(&mut queue, Outcome::Over), Some((device(2), 0)));
    }

    #[test]
    fn a_newer_request_takes_the_place_of_the_one_before() {
        let mut queue = Queue::default();
        queue.submit(device(1), &request(0, [0, 1]));
        let turn = queue.next().unwrap();
        queue.submit(device(1), &request(8, [0]));
        assert_eq!(queue.next(), None, "one chunk of a device at a time");
        queue.done(turn, Outcome::Full);
        queue.room(&device(1));
        assert_eq!(serve(&mut queue, Outcome::Over), Some((device(1), 8)));
        assert_eq!(serve(&mut queue, Outcome::Over), None);
    }

    #[test]
    fn a_request_that_comes_twice_or_late_is_answered_once() {
        let mut queue = Queue::default();
        let numbered = |number, index| ChunkRequest { number, ..request(0, [index]) };
        queue.submit(device(1), &numbered(2, 5));
        assert_eq!(serve(&mut queue, Outcome::Over), Some((device(1), 5)));
        for late in [2, 1] {
            queue.submit(device(1), &numbered(late, 5));
            assert_eq!(serve(&mut queue, Outcome::Over), None);
        }
        queue.submit(device(2), &numbered(1, 6));
        assert_eq!(serve(&mut queue, Outcome::Over), Some((device(2), 6)), "each device counts for itself");
        queue.begin(&device(1));
        queue.submit(device(1), &numbered(1, 5));
        assert_eq!(serve(&mut queue, Outcome::Over), Some((device(1), 5)), "and anew on each connection");
    }

    #[derive(Debug, Clone)]
    enum Happens {
        Submit(u8, u32, Vec<u32>),
        Begun,
        Served(prop::sample::Index, Outcome),
        Room(u8),
        Retry,
    }

    fn happening() -> impl Strategy<Value = Happens> {
        let outcome = prop::sample::select(vec![Outcome::Over, Outcome::Full, Outcome::Refused]);
        prop_oneof![
            2 => (0u8..5, 0u32..100, prop::collection::vec(0u32..30, 0..12)).prop_map(|(d, f, w)| Happens::Submit(d, f, w)),
            6 => Just(Happens::Begun),
            6 => (any::<prop::sample::Index>(), outcome).prop_map(|(which, outcome)| Happens::Served(which, outcome)),
            2 => (0u8..5).prop_map(Happens::Room),
            1 => Just(Happens::Retry),
        ]
    }

    proptest! {
        /// Whatever happens, nothing is sent that the last request does not ask for, and in the end nobody waits.
        #[test]
        fn the_last_request_is_served_and_nothing_else(steps in prop::collection::vec(happening(), 0..200)) {
            let mut queue = Queue::default();
            let mut open: HashMap<DeviceId, BTreeSet<u32>> = HashMap::new();
            // Several workers are at it at once. With each: whether a newer request has come since.
            let mut begun: Vec<(Turn, bool)> = Vec::new();
            for step in steps {
                match step {
                    Happens::Submit(number, first, wanted) => {
                        let request = request(first, wanted);
                        queue.submit(device(number), &request);
                        let asked: BTreeSet<u32> = request.wanted.iter().take(CHUNK_WINDOW).map(|i| first + i).collect();
                        if !asked.is_empty() {
                            open.insert(device(number), asked);
                            let of = |turn: &Turn| turn.device == device(number);
                            begun.iter_mut().filter(|(turn, _)| of(turn)).for_each(|(_, stale)| *stale = true);
                        }
                    }
                    Happens::Begun => begun.extend(queue.next().map(|turn| (turn, false))),
                    Happens::Served(which, outcome) => {
                        if begun.is_empty() {
                            continue;
                        }
                        let (turn, stale) = begun.swap_remove(which.index(begun.len()));
                        let left = open.get_mut(&turn.device).unwrap();
                        prop_assert!(stale || left.contains(&turn.index));
                        match outcome {
                            _ if stale => {}
                            Outcome::Over => _ = left.remove(&turn.index),
                            Outcome::Refused => left.clear(),
                            Outcome::Full => {}
                        }
                        queue.done(turn, outcome);
                    }
                    Happens::Room(number) => queue.room(&device(number)),
                    Happens::Retry => queue.retry(),
                }
                let devices: BTreeSet<&DeviceId> = begun.iter().map(|(turn, _)| &turn.device).collect();
                prop_assert_eq!(devices.len(), begun.len(), "a device has two turns at once");
                prop_assert!(queue.asked.len() <= 5 && queue.parked.len() <= 5 && queue.line.len() <= 5);
            }
            for (turn, stale) in begun {
                if !stale {
                    open.get_mut(&turn.device).unwrap().remove(&turn.index);
                }
                queue.done(turn, Outcome::Over);
            }
            queue.retry();
            while let Some((device, index)) = serve(&mut queue, Outcome::Over) {
                prop_assert!(open.get_mut(&device).unwrap().remove(&index));
            }
            prop_assert!(open.values().all(BTreeSet::is_empty), "{:?}", open);
        }
    }
}
