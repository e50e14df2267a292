//! The fleet's history: an append-only list with sequence numbers that only grow.
//!
//! An entry is written either alone ([`EventLog::append`]) or in the same batch as what it tells about
//! ([`EventLog::prepare`]). Entries become visible in order: a reader who has seen number 7 will never find a 6 later. What
//! to write down is decided by those who call.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_shared::api::EventView;
use muster_shared::ids::{BundleRef, DeviceId, RolloutId};
use muster_shared::limits::bounded_text;

use crate::clock;
use crate::store::records::event_key;
use crate::store::{Change, Expect, Records, StoreError, Table};

/// Entries one call of [`EventLog::list`] looks at, however few of them match.
const MAX_LOOKED_AT: usize = 20_000;

/// Entries read at once.
const STEP: usize = 500;

/// Who caused an event when it was no person.
pub(crate) const ACTOR_CONTROLLER: &str = "controller";
/// The actor of what a device says of itself.
pub(crate) const ACTOR_DEVICE: &str = "device";

/// An entry to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct NewEvent {
    /// What kind of thing, as `device.committed` or `rollout.paused`.
    pub(crate) kind: String,
    /// Who caused it: [`ACTOR_DEVICE`], [`ACTOR_CONTROLLER`] or a token's name.
    pub(crate) actor: String,
    /// The device concerned.
    pub(crate) device: Option<DeviceId>,
    /// The rollout concerned.
    pub(crate) rollout: Option<RolloutId>,
    /// The bundle concerned.
    pub(crate) bundle: Option<BundleRef>,
    /// The rest, in words.
    pub(crate) detail: String,
}

/// Part of the history.
#[derive(Debug)]
pub(crate) struct EventPage {
    /// Entries that match, in order.
    pub(crate) events: Vec<EventView>,
    /// The last entry looked at, matching or not; none when there was none.
    pub(crate) seen_up_to: Option<u64>,
}

#[derive(Default)]
struct Numbers {
    next: u64,
    /// Given out, and not known to be stored or given up.
    pending: BTreeSet<u64>,
}

/// The end of the history.
#[derive(Debug)]
pub(crate) struct LastEvents {
    /// Entries that match, oldest first.
    pub(crate) events: Vec<EventView>,
    /// There may be older ones that match.
    pub(crate) is_cut: bool,
}

/// The history. Clones share their numbers.
#[derive(Clone)]
pub(crate) struct EventLog {
    records: Records,
    numbers: Arc<Mutex<Numbers>>,
}

/// A number given out. Keep it until the batch with its entry is committed: later entries stay invisible meanwhile.
#[must_use = "keep it until the batch is committed"]
pub(crate) struct Held {
    numbers: Arc<Mutex<Numbers>>,
    sequence: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.numbers).pending.remove(&self.sequence);
    }
}

fn lock(numbers: &Mutex<Numbers>) -> MutexGuard<'_, Numbers> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EventLog {
    /// Finds where the numbers stand.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read.
    pub(crate) async fn open(records: Records) -> Result<Self, StoreError> {
        // The last entry, by bisection: the least number after which nothing comes.
        let (mut low, mut high) = (0_u64, u64::MAX);
        while low < high {
            let middle = low + (high - low) / 2;
            let after: Vec<_> = records.scan::<EventView>(Table::Events, Some(&event_key(middle)), "", 1).await?;
            match after.first() {
                Some((_, event)) => low = event.value.sequence,
                None => high = middle,
            }
        }
        let numbers = Numbers { next: low.saturating_add(1), pending: BTreeSet::new() };
        Ok(Self { records, numbers: Arc::new(Mutex::new(numbers)) })
    }

    /// The change that writes `event`, for a batch of the caller's.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written as JSON.
    pub(crate) fn prepare(&self, event: NewEvent) -> Result<(Change, Held), StoreError> {
        let sequence = {
            let mut numbers = lock(&self.numbers);
            let sequence = numbers.next;
            numbers.next += 1;
            numbers.pending.insert(sequence);
            sequence
        };
        let held = Held { numbers: Arc::clone(&self.numbers), sequence };
        let view = EventView {
            sequence,
            at_ms: clock::now_ms(),
            kind: event.kind,
            actor: event.actor,
            device: event.device,
            rollout: event.rollout,
            bundle: event.bundle,
            detail: bounded_text(&event.detail),
        };
        Ok((Records::put(Table::Events, event_key(sequence), Expect::Absent, &view)?, held))
    }

    /// Writes `event` down alone; durable when it returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn append(&self, event: NewEvent) -> Result<(), StoreError> {
        let (change, _held) = self.prepare(event)?;
        self.records.commit(vec![change]).await
    }

    /// Up to `limit` entries after number `after` that concern `device` and `rollout`, where given.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn list(
        &self,
        after: u64,
        device: Option<&DeviceId>,
        rollout: Option<&RolloutId>,
        limit: usize,
    ) -> Result<EventPage, StoreError> {
        let horizon = self.horizon();
        let mut page = EventPage { events: Vec::new(), seen_up_to: None };
        let mut looked_at = 0;
        while page.events.len() < limit && looked_at < MAX_LOOKED_AT {
            let from = event_key(page.seen_up_to.unwrap_or(after));
            let step = self.records.scan::<EventView>(Table::Events, Some(&from), "", STEP).await?;
            let last = step.len() < STEP;
            for (_, event) in step {
                let event = event.value;
                if event.sequence >= horizon || page.events.len() >= limit {
                    return Ok(page);
                }
                looked_at += 1;
                page.seen_up_to = Some(event.sequence);
                let wanted = device.is_none_or(|d| event.device.as_ref() == Some(d))
                    && rollout.is_none_or(|r| event.rollout.as_ref() == Some(r));
                if wanted {
                    page.events.push(event);
                }
            }
            if last {
                break;
            }
        }
        Ok(page)
    }

    /// The last `most` entries written at or after `since_ms` that are `wanted`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn last(
        &self,
        since_ms: u64,
        most: usize,
        wanted: impl Fn(&EventView) -> bool,
    ) -> Result<LastEvents, StoreError> {
        let mut last = LastEvents { events: Vec::new(), is_cut: false };
        let (mut end, mut looked_at) = (self.horizon(), 0);
        'back: while end > 1 {
            if looked_at >= MAX_LOOKED_AT {
                last.is_cut = true;
                break;
            }
            // Numbers begin with 1, and none between two that are there need be missing.
            let start = end.saturating_sub(STEP as u64).max(1);
            let step = self.records.scan::<EventView>(Table::Events, Some(&event_key(start - 1)), "", STEP).await?;
            looked_at += STEP;
            for (_, event) in step.into_iter().rev().filter(|(_, event)| event.value.sequence < end) {
                let event = event.value;
                if event.at_ms < since_ms {
                    break 'back;
                }
                if wanted(&event) {
                    if last.events.len() == most {
                        last.is_cut = true;
                        break 'back;
                    }
                    last.events.push(event);
                }
            }
            end = start;
        }
        last.events.reverse();
        Ok(last)
    }

    /// Before this number, whatever will ever be there is there.
    fn horizon(&self) -> u64 {
        let numbers = lock(&self.numbers);
        numbers.pending.first().copied().unwrap_or(numbers.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::records;

    fn event(kind: &str, device: Option<&str>) -> NewEvent {
        NewEvent { kind: kind.into(), device: device.map(|d| DeviceId::new(d).unwrap()), ..NewEvent::default() }
    }

    fn kinds(page: &EventPage) -> Vec<&str> {
        page.events.iter().map(|event| event.kind.as_str()).collect()
    }

    #[tokio::test]
    async fn numbers_go_on_after_a_restart() {
        let (records, _folder) = records();
        for restart in 0..3 {
            let log = EventLog::open(records.clone()).await.unwrap();
            for n in 0..5 {
                log.append(event(&format!("{restart}.{n}"), None)).await.unwrap();
            }
        }
        let log = EventLog::open(records).await.unwrap();
        let page = log.list(0, None, None, 100).await.unwrap();
        let numbers: Vec<u64> = page.events.iter().map(|event| event.sequence).collect();
        assert_eq!(numbers, (1..=15).collect::<Vec<_>>());
        let page = log.list(13, None, None, 1).await.unwrap();
        assert_eq!((kinds(&page), page.seen_up_to), (vec!["2.3"], Some(14)));
    }

    #[tokio::test]
    async fn entries_are_found_by_what_they_concern() {
        let (records, _folder) = records();
        let log = EventLog::open(records).await.unwrap();
        for (kind, device) in [("a", Some("dev-1")), ("b", None), ("c", Some("dev-2")), ("d", Some("dev-1"))] {
            log.append(event(kind, device)).await.unwrap();
        }
        let device = DeviceId::new("dev-1").unwrap();
        let page = log.list(0, Some(&device), None, 100).await.unwrap();
        assert_eq!(kinds(&page), ["a", "d"]);
        let page = log.list(4, Some(&device), None, 100).await.unwrap();
        assert_eq!((kinds(&page), page.seen_up_to), (vec![], None));
    }

    #[tokio::test]
    async fn the_last_entries_are_found_from_the_end() {
        let (records, _folder) = records();
        let log = EventLog::open(records).await.unwrap();
        let of =
            |name: &'static str| move |event: &EventView| event.device.as_ref().is_some_and(|d| d.as_str() == name);
        let (one, two) = (of("dev-1"), of("dev-2"));
        for n in 0..3 * STEP {
            log.append(event(&n.to_string(), Some(if n % 700 == 0 { "dev-1" } else { "dev-2" }))).await.unwrap();
        }
        let kinds = |last: &LastEvents| last.events.iter().map(|event| event.kind.clone()).collect::<Vec<_>>();
        let rare = log.last(0, 10, one).await.unwrap();
        assert_eq!((kinds(&rare), rare.is_cut), (vec!["0".into(), "700".into(), "1400".into()], false));
        let some = log.last(0, 2, one).await.unwrap();
        assert_eq!((kinds(&some), some.is_cut), (vec!["700".into(), "1400".into()], true));
        assert_eq!(kinds(&log.last(0, 2, two).await.unwrap()), ["1498", "1499"]);
        let never = log.last(u64::MAX, 2, |_| true).await.unwrap();
        assert_eq!((kinds(&never), never.is_cut), (vec![], false));
        let (_, held) = log.prepare(event("slow", Some("dev-1"))).unwrap();
        log.append(event("quick", Some("dev-1"))).await.unwrap();
        assert_eq!(kinds(&log.last(0, 1, one).await.unwrap()), ["1400"], "it waits for the one before");
        drop(held);
        assert_eq!(kinds(&log.last(0, 1, one).await.unwrap()), ["quick"]);
    }

    #[tokio::test]
    async fn a_later_entry_waits_for_the_one_before() {
        let (records, _folder) = records();
        let log = EventLog::open(records.clone()).await.unwrap();
        let (slow, held) = log.prepare(event("slow", None)).unwrap();
        log.append(event("quick", None)).await.unwrap();
        assert_eq!(kinds(&log.list(0, None, None, 10).await.unwrap()), Vec::<&str>::new());
        records.commit(vec![slow]).await.unwrap();
        drop(held);
        assert_eq!(kinds(&log.list(0, None, None, 10).await.unwrap()), ["slow", "quick"]);
        // A batch that was never committed leaves a gap and nothing else.
        drop(log.prepare(event("given up", None)).unwrap());
        log.append(event("after", None)).await.unwrap();
        assert_eq!(kinds(&log.list(2, None, None, 10).await.unwrap()), ["after"]);
    }
}
