//! Which predictions are remembered for labels that come later.
//!
//! Bounded in rows, oldest first out. Ages are taken from a clock that never jumps, so that a device with a wrong date joins the same labels
//! as any other. A prediction past the horizon is kept for as long again, as far as there is room, to tell a late label from an
//! unknown one. What a second model says of the same inference comes when it comes: it is put beside what is remembered, or meets the
//! labels that came before it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// How much is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rows of answers.
    pub max_rows: usize,
    /// How long after its answer a label may come, in milliseconds.
    pub horizon_ms: u64,
}

/// Which inference is meant, whatever comes under its id later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u64);

/// What is remembered of one inference: `R` for each row, and what all of them are about.
struct Entry<R, W, H> {
    key: u128,
    about: W,
    at_ms: u64,
    /// None once the row has its label.
    rows: Box<[Option<R>]>,
    /// Labels that wait for a second model's answer, at most one a row.
    held: Vec<H>,
    /// Another inference has taken its id.
    is_replaced: bool,
}

/// Predictions by the id of their inference; labels that wait for another prediction are kept as `H`.
pub struct Memory<R, W, H> {
    bounds: Bounds,
    /// Ids are kept as 128 bits under keys of this process's own, so that an entry's size does not depend on the caller.
    hashers: [RandomState; 2],
    entries: VecDeque<Entry<R, W, H>>,
    /// Number of the first entry; each later one has one more.
    first: u64,
    by_key: HashMap<u128, u64>,
    rows: usize,
}

/// What is known under an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known<'m, W> {
    /// What the inference is about.
    pub about: &'m W,
    /// Its rows.
    pub rows: usize,
    /// Whether its labels come too late.
    pub is_late: bool,
}

/// What a label finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken<R> {
    /// The prediction it belongs to.
    Prediction {
        /// What was remembered of the row.
        row: R,
        /// From answer to label, in milliseconds.
        delay_ms: u64,
    },
    /// The row has its label already.
    Labelled,
    /// Nothing in time.
    Nothing,
}

impl<R, W, H> Memory<R, W, H> {
    /// An empty memory.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            hashers: [RandomState::new(), RandomState::new()],
            entries: VecDeque::new(),
            first: 0,
            by_key: HashMap::new(),
            rows: 0,
        }
    }

    /// Rows remembered.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    fn key(&self, id: &str) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one(id)));
        high << 64 | low
    }

    /// Remembers the `rows` of an inference. An inference that comes under an id again takes the place of the one before. `forgotten`
    /// hears of rows that leave without a label although one might still have come in time. Gives the inference's place, or none where it
    /// has more rows than may be remembered.
    pub fn remember(
        &mut self,
        id: &str,
        about: W,
        rows: impl IntoIterator<Item = R>,
        now_ms: u64,
        mut forgotten: impl FnMut(&W, u64),
    ) -> Option<Place> {
        let rows: Box<[Option<R>]> = rows.into_iter().map(Some).collect();
        if rows.len() > self.bounds.max_rows {
            forgotten(&about, rows.len() as u64);
            return None;
        }
        let key = self.key(id);
        let number = self.first + self.entries.len() as u64;
        if let Some(before) = self.by_key.insert(key, number).and_then(|before| self.at_mut(before)) {
            before.is_replaced = true;
            // Its rows cannot be found any more, so they need no room.
            let rows = std::mem::take(&mut before.rows);
            before.held = Vec::new();
            let unlabelled = rows.iter().flatten().count() as u64;
            if unlabelled > 0 {
                forgotten(&before.about, unlabelled);
            }
            self.rows -= rows.len();
        }
        self.rows += rows.len();
        self.entries.push_back(Entry { key, about, at_ms: now_ms, rows, held: Vec::new(), is_replaced: false });
        self.make_room(now_ms, &mut forgotten);
        Some(Place(number))
    }

    /// Lets go of what is past twice the horizon, and of the oldest while there is more than may be.
    fn make_room(&mut self, now_ms: u64, forgotten: &mut impl FnMut(&W, u64)) {
        let long_ago_ms = self.bounds.horizon_ms.saturating_mul(2);
        while let Some(oldest) = self.entries.front() {
            let age_ms = now_ms.saturating_sub(oldest.at_ms);
            // Ids that are used again and again leave entries without rows behind, which take room too.
            let is_full = self.rows > self.bounds.max_rows || self.entries.len() > self.bounds.max_rows;
            if !(is_full || oldest.is_replaced || age_ms > long_ago_ms) {
                return;
            }
            if let Some(entry) = self.entries.pop_front() {
                self.first += 1;
                self.rows -= entry.rows.len();
                if !entry.is_replaced {
                    self.by_key.remove(&entry.key);
                }
                let unlabelled = entry.rows.iter().flatten().count() as u64;
                if unlabelled > 0 && age_ms <= self.bounds.horizon_ms {
                    forgotten(&entry.about, unlabelled);
                }
            }
        }
    }

    fn at_mut(&mut self, number: u64) -> Option<&mut Entry<R, W, H>> {
        usize::try_from(number.checked_sub(self.first)?).ok().and_then(|at| self.entries.get_mut(at))
    }

    /// What is known under `id`.
    #[must_use]
    pub fn find(&self, id: &str, now_ms: u64) -> Option<Known<'_, W>> {
        let number = self.by_key.get(&self.key(id))?;
        let entry = usize::try_from(number.checked_sub(self.first)?).ok().and_then(|at| self.entries.get(at))?;
        let is_late = now_ms.saturating_sub(entry.at_ms) > self.bounds.horizon_ms;
        Some(Known { about: &entry.about, rows: entry.rows.len(), is_late })
    }

    /// Takes out what was remembered of a row, for its label.
    pub fn take(&mut self, id: &str, row: usize, now_ms: u64) -> Taken<R> {
        let horizon_ms = self.bounds.horizon_ms;
        let number = self.by_key.get(&self.key(id)).copied();
        let Some(entry) = number.and_then(|number| self.at_mut(number)) else { return Taken::Nothing };
        let delay_ms = now_ms.saturating_sub(entry.at_ms);
        match entry.rows.get_mut(row) {
            Some(_) if delay_ms > horizon_ms => Taken::Nothing,
            Some(row) => row.take().map_or(Taken::Labelled, |row| Taken::Prediction { row, delay_ms }),
            None => Taken::Nothing,
        }
    }

    /// Holds on to the label of one row of `id`, which was taken, until [`Self::meet`].
    pub fn hold(&mut self, id: &str, label: H) {
        let number = self.by_key.get(&self.key(id)).copied();
        if let Some(entry) = number.and_then(|number| self.at_mut(number))
            && entry.held.len() < entry.rows.len()
        {
            entry.held.push(label);
        }
    }

    /// The rows of an inference, for what a second model says of them, and the labels that came before it; none once the inference is
    /// forgotten.
    pub fn meet(&mut self, place: Place) -> Option<(&mut [Option<R>], Vec<H>)> {
        let entry = self.at_mut(place.0)?;
        Some((&mut entry.rows, std::mem::take(&mut entry.held)))
    }

    /// Whether anything is remembered that `is_meant`.
    pub fn holds(&self, is_meant: impl Fn(&W) -> bool) -> bool {
        self.entries.iter().rev().any(|entry| is_meant(&entry.about))
    }

    /// Forgets everything; `forgotten` hears of rows for which a label might still have come in time.
    pub fn clear(&mut self, now_ms: u64, mut forgotten: impl FnMut(&W, u64)) {
        for entry in self.entries.drain(..) {
            let unlabelled = entry.rows.iter().flatten().count() as u64;
            if unlabelled > 0 && now_ms.saturating_sub(entry.at_ms) <= self.bounds.horizon_ms {
                forgotten(&entry.about, unlabelled);
            }
        }
        self.by_key.clear();
        self.rows = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { max_rows: 6, horizon_ms: 100 };

    fn remember(
        memory: &mut Memory<u32, char, char>,
        id: &str,
        about: char,
        rows: &[u32],
        now_ms: u64,
    ) -> Vec<(char, u64)> {
        let mut forgotten = Vec::new();
        memory.remember(id, about, rows.iter().copied(), now_ms, |about, rows| forgotten.push((*about, rows)));
        forgotten
    }

    #[test]
    fn a_label_finds_its_row_once_and_in_time() {
        let mut memory: Memory<u32, char, char> = Memory::new(BOUNDS);
        assert_eq!(remember(&mut memory, "a", 'x', &[10, 11], 1_000), []);
        assert_eq!(memory.find("a", 1_000), Some(Known { about: &'x', rows: 2, is_late: false }));
        assert_eq!(memory.take("a", 1, 1_040), Taken::Prediction { row: 11, delay_ms: 40 });
        assert_eq!(memory.take("a", 1, 1_050), Taken::Labelled);
        assert_eq!(memory.take("a", 2, 1_050), Taken::Nothing);
        assert_eq!(memory.take("b", 0, 1_050), Taken::Nothing);
        assert_eq!(memory.take("a", 0, 1_101), Taken::Nothing, "too late");
        assert!(memory.find("a", 1_101).unwrap().is_late);
        // Past twice the horizon, something new makes it leave; its row had its chance.
        assert_eq!(remember(&mut memory, "b", 'x', &[1], 1_201), []);
        assert_eq!(memory.find("a", 1_201), None);
    }

    #[test]
    fn the_oldest_leaves_first_and_is_counted() {
        let mut memory = Memory::new(BOUNDS);
        remember(&mut memory, "a", 'x', &[1, 2], 0);
        remember(&mut memory, "b", 'y', &[3, 4], 1);
        memory.take("a", 0, 2);
        assert_eq!(remember(&mut memory, "c", 'y', &[5, 6, 7], 3), [('x', 1)]);
        assert_eq!((memory.rows(), memory.find("a", 3)), (5, None));
        assert_eq!(remember(&mut memory, "d", 'z', &[0; 7], 4), [('z', 7)], "more than fits at all");
        assert_eq!((memory.rows(), memory.find("d", 4)), (5, None));
        assert!(memory.holds(|about| *about == 'y') && !memory.holds(|about| *about == 'x'));
        let mut forgotten = BTreeMap::new();
        memory.clear(5, |about, rows| *forgotten.entry(*about).or_insert(0) += rows);
        assert_eq!((forgotten, memory.rows()), ([('y', 5)].into(), 0));
    }

    #[test]
    fn the_last_inference_of_an_id_counts() {
        let mut memory = Memory::new(BOUNDS);
        remember(&mut memory, "same", 'x', &[1], 0);
        assert_eq!(remember(&mut memory, "same", 'y', &[2], 1), [('x', 1)]);
        assert_eq!(memory.take("same", 0, 2), Taken::Prediction { row: 2, delay_ms: 1 });
        for now_ms in 0..1_000 {
            remember(&mut memory, "same", 'y', &[3], now_ms);
        }
        assert_eq!((memory.rows(), memory.entries.len()), (1, 1));
        remember(&mut memory, "first", 'x', &[1], 999);
        for _ in 0..1_000 {
            remember(&mut memory, "same", 'y', &[3], 999);
        }
        assert!(memory.entries.len() <= BOUNDS.max_rows && memory.by_key.len() <= 2);
    }

    #[test]
    fn what_a_second_model_says_meets_the_labels_that_came_first() {
        let mut memory = Memory::new(BOUNDS);
        let place = |memory: &mut Memory<u32, char, char>, id: &str, rows: &[u32], now_ms| {
            memory.remember(id, 'x', rows.iter().copied(), now_ms, |_, _| {})
        };
        let first = place(&mut memory, "a", &[1, 2], 0).unwrap();
        memory.take("a", 0, 1);
        memory.hold("a", 'l');
        memory.hold("nobody", 'l');
        let (rows, held) = memory.meet(first).unwrap();
        assert_eq!((&*rows, held), (&[None, Some(2)][..], vec!['l']));
        rows[1] = Some(20);
        assert_eq!(memory.take("a", 1, 1), Taken::Prediction { row: 20, delay_ms: 1 });
        // Another inference under the same id is another place, and nothing of the first is left.
        memory.hold("a", 'm');
        let second = place(&mut memory, "a", &[3], 2).unwrap();
        assert!(memory.meet(first).is_none_or(|(rows, held)| rows.is_empty() && held.is_empty()));
        assert_eq!(memory.meet(second).unwrap().0, [Some(3)]);
        (0..3).for_each(|_| memory.hold("a", 'n'));
        assert_eq!(memory.meet(second).unwrap().1, ['n'], "no more labels than rows");
        assert_eq!(place(&mut memory, "large", &[0; 7], 3), None);
        // Forgotten with its entry.
        place(&mut memory, "b", &[4, 5, 6, 7, 8, 9], 4);
        assert!(memory.meet(second).is_none());
    }

    proptest! {
        /// Against a map that forgets nothing: what is found is what was remembered, within the bounds.
        #[test]
        fn nothing_is_mixed_up_and_nothing_grows(
            steps in prop::collection::vec((0u8..6, 0usize..4, 0u64..60, any::<bool>()), 0..80),
        ) {
            let mut memory: Memory<u32, char, char> = Memory::new(BOUNDS);
            let mut truth: BTreeMap<u8, (u64, Vec<Option<u32>>)> = BTreeMap::new();
            let (mut now_ms, mut next) = (0, 0);
            let (mut entered, mut left) = (0_u64, 0_u64);
            for (id, row, pause_ms, is_label) in steps {
                now_ms += pause_ms;
                let name = id.to_string();
                if is_label {
                    let known = truth.get_mut(&id);
                    match memory.take(&name, row, now_ms) {
                        Taken::Prediction { row: found, delay_ms } => {
                            let (at_ms, rows) = known.unwrap();
                            prop_assert_eq!((rows[row].take(), *at_ms + delay_ms), (Some(found), now_ms));
                            prop_assert!(delay_ms <= BOUNDS.horizon_ms);
                            left += 1;
                        }
                        Taken::Labelled => prop_assert_eq!(known.unwrap().1[row], None),
                        Taken::Nothing => {}
                    }
                } else {
                    let rows: Vec<u32> = (next..).take(row).collect();
                    next += 10;
                    entered += rows.len() as u64;
                    memory.remember(&name, 'x', rows.iter().copied(), now_ms, |_, rows| left += rows);
                    truth.insert(id, (now_ms, rows.into_iter().map(Some).collect()));
                }
                prop_assert!(memory.rows() <= BOUNDS.max_rows && memory.entries.len() <= BOUNDS.max_rows);
                prop_assert_eq!(memory.rows(), memory.entries.iter().map(|entry| entry.rows.len()).sum::<usize>());
                prop_assert!(left <= entered);
            }
        }
    }
}
