//! Which message of the outbox goes next on this connection, and when which of them go again.
//!
//! Messages go in the order of their streams. At most [`UNANSWERED`] go without a sign of life from the controller. It takes the messages
//! of a stream in their order only, so where one was overtaken on the way, all after it are in vain: a stream of which nothing is acknowledged
//! for a while goes again from its oldest message on, at longer and longer intervals, whatever comes of the others. Another opening of the
//! outbox's store may be another store, with numbers of its own: everything goes again then.
//!
//! A connection on which nothing comes in, however often something goes out, may have lost its subscription on the way: the broker's own
//! acknowledgements do not show that. Another one heals it.

use std::collections::BTreeMap;

use muster_shared::messages::Stream;

use crate::outbox::{Outbox, Outgoing};

/// Messages sent without an acknowledgement.
pub(super) const UNANSWERED: u32 = 64;
/// The longest wait, as a multiple of the first.
const LONGEST_WAIT: u64 = 16;
/// How long nothing may come in on a connection on which something waits for an acknowledgement: as a multiple of the first wait, and at
/// least, in milliseconds. On a slow line one chunk can take half a minute.
const DEAF_WAITS: u64 = 16;
const DEAF_AT_LEAST_MS: u64 = 120_000;
/// What operators wait for goes first.
const ORDER: [Stream; 4] = [Stream::Event, Stream::State, Stream::Telemetry, Stream::Sketch];

#[derive(Debug)]
pub(super) struct Resend {
    /// The opening of the outbox that the rest is about.
    opening: Option<u64>,
    sent: BTreeMap<Stream, Sent>,
    unanswered: u32,
    first_wait_ms: u64,
    /// Since when something waits for an acknowledgement and nothing whatever came in.
    silent_since_ms: Option<u64>,
}

/// What has gone of one stream.
#[derive(Debug, Clone, Copy)]
struct Sent {
    /// The last message that went.
    last: u64,
    /// The last that an acknowledgement had taken when the stream was last looked at.
    taken: u64,
    wait_ms: u64,
    deadline_ms: Option<u64>,
}

impl Resend {
    pub(super) fn new(wait_ms: u64) -> Self {
        Self { opening: None, sent: BTreeMap::new(), unanswered: 0, first_wait_ms: wait_ms, silent_since_ms: None }
    }

    /// Forgets what has gone when the outbox was closed since, or opened anew.
    fn follow(&mut self, outbox: &Outbox) {
        let opening = outbox.opening();
        if opening != self.opening {
            self.opening = opening;
            self.sent.clear();
            self.unanswered = 0;
            self.silent_since_ms = None;
        }
    }

    /// The message to send now, of those whose streams are not `deferred`.
    pub(super) fn next(&mut self, outbox: &Outbox, deferred: &[Stream], now_ms: u64) -> Option<Outgoing> {
        self.follow(outbox);
        if self.unanswered >= UNANSWERED {
            return None;
        }
        let next = ORDER
            .into_iter()
            .filter(|stream| !deferred.contains(stream))
            .find_map(|stream| outbox.next_after(stream, self.sent.get(&stream).map_or(0, |sent| sent.last)));
        let Some(next) = next else {
            if !self.is_waiting() {
                self.silent_since_ms = None;
            }
            return None;
        };
        let new = Sent { last: 0, taken: outbox.taken(next.stream), wait_ms: self.first_wait_ms, deadline_ms: None };
        let sent = self.sent.entry(next.stream).or_insert(new);
        sent.last = next.sequence;
        let wait_ms = sent.wait_ms;
        sent.deadline_ms.get_or_insert_with(|| now_ms.saturating_add(wait_ms));
        self.unanswered += 1;
        self.silent_since_ms.get_or_insert(now_ms);
        Some(next)
    }

    /// Something came in from the controller, an acknowledgement or anything else.
    pub(super) fn heard(&mut self, now_ms: u64) {
        self.silent_since_ms = self.is_waiting().then_some(now_ms);
    }

    /// Whether nothing has come in for so long that another connection is worth its price.
    pub(super) fn is_deaf(&self, now_ms: u64) -> bool {
        let limit_ms = self.first_wait_ms.saturating_mul(DEAF_WAITS).max(DEAF_AT_LEAST_MS);
        self.silent_since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= limit_ms)
    }

    /// Whether a message that has gone is not acknowledged.
    fn is_waiting(&self) -> bool {
        self.sent.values().any(|sent| sent.deadline_ms.is_some())
    }

    /// The controller acknowledged something.
    pub(super) fn answered(&mut self, outbox: &Outbox, now_ms: u64) {
        self.follow(outbox);
        self.unanswered = 0;
        for (stream, sent) in &mut self.sent {
            // What was given up for want of room is no sign that anything arrived.
            let taken = outbox.taken(*stream);
            if taken <= sent.taken {
                continue;
            }
            sent.taken = taken;
            sent.wait_ms = self.first_wait_ms;
            let waits = outbox.oldest(*stream).is_some_and(|oldest| oldest <= sent.last);
            sent.deadline_ms = waits.then(|| now_ms.saturating_add(sent.wait_ms));
        }
    }

    /// When to look whether the controller is silent about a stream.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        self.sent.values().filter_map(|sent| sent.deadline_ms).min()
    }

    /// It is `now_ms`: streams about which the controller has been silent too long go again, unless all has been answered.
    pub(super) fn silent(&mut self, outbox: &Outbox, now_ms: u64) {
        self.follow(outbox);
        for (stream, sent) in &mut self.sent {
            if sent.deadline_ms.is_none_or(|at_ms| at_ms > now_ms) {
                continue;
            }
            sent.deadline_ms = None;
            if outbox.oldest(*stream).is_some() {
                sent.last = 0;
                sent.wait_ms = sent.wait_ms.saturating_mul(2).min(self.first_wait_ms.saturating_mul(LONGEST_WAIT));
                self.unanswered = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_agent_core::outbox::Bounds;
    use muster_shared::messages::{Ack, DeviceEvent, DeviceEventKind, Position, Sequenced, StateReport};

    use super::*;
    use crate::metrics::Metrics;

    fn event(detail: u64) -> DeviceEvent {
        DeviceEvent {
            at_ms: 1,
            kind: DeviceEventKind::Alarm,
            generation: 0,
            bundle: None,
            detail: detail.to_string(),
            track: Default::default(),
        }
    }

    fn drain(resend: &mut Resend, outbox: &Outbox, now_ms: u64) -> Vec<(Stream, u64)> {
        std::iter::from_fn(|| resend.next(outbox, &[], now_ms)).map(|m| (m.stream, m.sequence)).collect()
    }

    #[test]
    fn everything_goes_once_in_order_and_again_after_silence() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds { max_bytes: 1 << 20, max_events: 1_000 };
        let outbox = Outbox::open(folder.path(), bounds, Metrics::new());
        let mut resend = Resend::new(100);
        assert!(drain(&mut resend, &outbox, 0).is_empty());
        assert_eq!(resend.deadline_ms(), None);
        outbox.state(&StateReport::default());
        outbox.event(&event(1)).unwrap();
        outbox.event(&event(2)).unwrap();
        let all = [(Stream::Event, 1), (Stream::Event, 2), (Stream::State, 1)];
        assert_eq!(drain(&mut resend, &outbox, 5), all);
        assert_eq!(resend.deadline_ms(), Some(105));
        assert!(drain(&mut resend, &outbox, 50).is_empty());
        resend.silent(&outbox, 105);
        assert_eq!(drain(&mut resend, &outbox, 105), all);
        assert_eq!(resend.deadline_ms(), Some(305), "each wait is longer");

        let first = outbox.next_after(Stream::Event, 0).unwrap();
        let Position { epoch, .. } = serde_json::from_slice::<Sequenced<DeviceEvent>>(&first.payload).unwrap().position;
        assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 1 }));
        resend.answered(&outbox, 110);
        assert_eq!(resend.deadline_ms(), Some(210), "there was news of the events");
        resend.silent(&outbox, 210);
        assert_eq!(drain(&mut resend, &outbox, 210), all[1..2]);
        resend.silent(&outbox, 305);
        assert_eq!(drain(&mut resend, &outbox, 305), all[2..], "and none of the state");
    }

    /// One message was overtaken, so the controller waits for it, and says so again and again.
    #[test]
    fn a_stream_that_stands_still_goes_again_however_much_is_heard_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path(), Bounds { max_bytes: 1 << 20, max_events: 1_000 }, Metrics::new());
        let mut resend = Resend::new(100);
        outbox.event(&event(1)).unwrap();
        outbox.event(&event(2)).unwrap();
        assert_eq!(drain(&mut resend, &outbox, 0).len(), 2);
        let mut again = Vec::new();
        for now_ms in (10..=120).step_by(10) {
            // The state is told and acknowledged all the time.
            outbox.state(&StateReport { starts: now_ms, ..StateReport::default() });
            let state = drain(&mut resend, &outbox, now_ms);
            again.extend(state.iter().filter(|(stream, _)| *stream == Stream::Event).copied());
            let (_, sequence) = *state.last().unwrap();
            let payload = outbox.next_after(Stream::State, sequence - 1).unwrap().payload;
            let Position { epoch, .. } = serde_json::from_slice::<Sequenced<StateReport>>(&payload).unwrap().position;
            assert!(outbox.acknowledged(&Ack { stream: Stream::State, epoch, sequence }));
            resend.answered(&outbox, now_ms);
            if resend.deadline_ms().is_some_and(|at_ms| at_ms <= now_ms) {
                resend.silent(&outbox, now_ms);
            }
        }
        assert_eq!(again, [(Stream::Event, 1), (Stream::Event, 2)]);
    }

    #[test]
    fn a_store_that_was_replaced_is_sent_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path(), Bounds { max_bytes: 1 << 20, max_events: 1_000 }, Metrics::new());
        let mut resend = Resend::new(100);
        for number in 0..20 {
            outbox.event(&event(number)).unwrap();
        }
        assert_eq!(drain(&mut resend, &outbox, 0).len(), 20);
        // Large messages go to files of their own, and one that cannot be written is damage.
        let blobs = folder.path().join("outbox/blobs");
        crate::files::remove(&blobs).unwrap();
        std::fs::write(&blobs, "in the way").unwrap();
        let large = DeviceEvent { detail: "x".repeat(40_000), ..event(0) };
        outbox.event(&large).unwrap_err();
        resend.answered(&outbox, 10);
        assert_eq!((drain(&mut resend, &outbox, 10), resend.deadline_ms()), (Vec::new(), None));
        let begun = std::time::Instant::now();
        while outbox.event(&event(99)).is_err() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(60), "it never opened again");
            std::thread::yield_now();
        }
        let oldest = outbox.oldest(Stream::Event).unwrap();
        let sent = drain(&mut resend, &outbox, 20);
        assert_eq!(sent.first(), Some(&(Stream::Event, oldest)));
        assert!(folder.path().join("outbox.damaged").exists() && resend.deadline_ms() == Some(120));
    }

    #[test]
    fn what_a_full_outbox_gives_up_is_no_acknowledgement() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path(), Bounds { max_bytes: 1 << 20, max_events: 3 }, Metrics::new());
        let mut resend = Resend::new(100);
        for number in 1..=3 {
            outbox.event(&event(number)).unwrap();
        }
        assert_eq!(drain(&mut resend, &outbox, 0).len(), 3);
        for now_ms in [30, 60, 90] {
            // Each takes the place of the oldest, and something is heard of another stream.
            outbox.event(&event(now_ms)).unwrap();
            drain(&mut resend, &outbox, now_ms);
            resend.answered(&outbox, now_ms);
        }
        assert_eq!(resend.deadline_ms(), Some(100));
        resend.silent(&outbox, 100);
        assert_eq!(drain(&mut resend, &outbox, 100), [4, 5, 6].map(|sequence| (Stream::Event, sequence)));
    }

    #[test]
    fn what_is_deferred_waits_and_holds_nothing_else_up() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path(), Bounds { max_bytes: 1 << 20, max_events: 1_000 }, Metrics::new());
        outbox.event(&event(1)).unwrap();
        outbox.state(&StateReport::default());
        let mut resend = Resend::new(100);
        assert_eq!(resend.next(&outbox, &[Stream::Event], 0).map(|m| m.stream), Some(Stream::State));
        assert_eq!(resend.next(&outbox, &[Stream::Event], 0), None);
        assert_eq!(drain(&mut resend, &outbox, 0), [(Stream::Event, 1)]);
    }

    #[test]
    fn a_connection_is_deaf_when_nothing_comes_in_however_often_something_goes_out() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(folder.path(), Bounds { max_bytes: 1 << 20, max_events: 1_000 }, Metrics::new());
        // 16 waits of 10 s are more than two minutes.
        let mut resend = Resend::new(10_000);
        let turn = |resend: &mut Resend, deferred: &[Stream], now_ms: u64| {
            let deaf = resend.is_deaf(now_ms);
            resend.silent(&outbox, now_ms);
            while resend.next(&outbox, deferred, now_ms).is_some() {}
            deaf
        };
        assert!(
            !turn(&mut resend, &[], 0) && !turn(&mut resend, &[], 1_000_000),
            "nothing was said, so nothing is missed"
        );
        outbox.event(&event(1)).unwrap();
        for now_ms in (1_000_000..1_160_000).step_by(1_000) {
            assert!(!turn(&mut resend, &[], now_ms), "{now_ms}");
        }
        assert!(turn(&mut resend, &[], 1_160_000), "it was sent again and again meanwhile");
        resend.heard(1_160_000);
        assert!(!turn(&mut resend, &[], 1_319_999) && turn(&mut resend, &[], 1_320_000));

        // What may not go for now is not missed, and counts from when it goes again.
        for now_ms in (1_320_000..2_000_000).step_by(10_000) {
            resend.silent(&outbox, now_ms);
            while resend.next(&outbox, &[Stream::Event], now_ms).is_some() {}
        }
        assert!(!turn(&mut resend, &[], 2_000_000) && !turn(&mut resend, &[], 2_159_999));
        assert!(turn(&mut resend, &[], 2_160_000));

        let first = outbox.next_after(Stream::Event, 0).unwrap();
        let Position { epoch, .. } = serde_json::from_slice::<Sequenced<DeviceEvent>>(&first.payload).unwrap().position;
        assert!(outbox.acknowledged(&Ack { stream: Stream::Event, epoch, sequence: 1 }));
        resend.answered(&outbox, 2_160_000);
        resend.heard(2_160_000);
        assert!(!turn(&mut resend, &[], 9_000_000));
        let quick = Resend { silent_since_ms: Some(0), ..Resend::new(100) };
        assert!(!quick.is_deaf(119_999) && quick.is_deaf(120_000), "one chunk may take long, whatever is set");
    }

    #[test]
    fn a_silent_controller_is_not_buried() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds { max_bytes: 1 << 20, max_events: 1_000 };
        let outbox = Outbox::open(folder.path(), bounds, Metrics::new());
        for n in 0..u64::from(UNANSWERED) + 10 {
            outbox.event(&event(n)).unwrap();
        }
        let mut resend = Resend::new(100);
        assert_eq!(drain(&mut resend, &outbox, 0).len(), UNANSWERED as usize);
        resend.answered(&outbox, 1);
        assert_eq!(drain(&mut resend, &outbox, 1).len(), 10);
    }
}
