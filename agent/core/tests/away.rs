//! A broker that is away for days, in virtual time: what waits is bounded and arrives once, nobody is hammered, and what ends
//! meanwhile is told once.

use std::collections::BTreeSet;

use muster_agent_core::backoff::{Backoff, Pauses};
use muster_agent_core::fetch::{FetchPlan, Step};
use muster_agent_core::freshness::Freshness;
use muster_agent_core::outbox::{Bounds, Ledger};
use muster_agent_core::renewal::{Now, Renewal, Validity};
use muster_shared::chunk::{Accepts, ChunkSet};
use muster_shared::messages::Stream;
use proptest::prelude::*;

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
const START_MS: u64 = 1_790_000_000_000;
/// As agents have it by default.
const PAUSES: Pauses = Pauses { first_ms: 500, longest_ms: MINUTE_MS };
const CHUNKS: u32 = 300;

/// The times at which the broker cannot be reached, by the steady clock.
#[derive(Debug, Clone)]
struct Outage {
    from_ms: u64,
    until_ms: u64,
}

fn outages() -> impl Strategy<Value = Vec<Outage>> {
    let one = (MINUTE_MS..6 * HOUR_MS, MINUTE_MS..36 * HOUR_MS);
    prop::collection::vec(one, 1..4).prop_map(|spans| {
        let mut at_ms = 0;
        let mut outages: Vec<Outage> = spans
            .into_iter()
            .map(|(before_ms, lasts_ms)| {
                let from_ms = at_ms + before_ms;
                at_ms = from_ms + lasts_ms;
                Outage { from_ms, until_ms: at_ms }
            })
            .collect();
        // One of them is a day at least.
        if let Some(last) = outages.last_mut() {
            last.until_ms = last.from_ms + DAY_MS.max(last.until_ms - last.from_ms);
        }
        outages
    })
}

/// What a controller has stored of one stream: it takes messages in their order, each once.
#[derive(Debug, Default)]
struct Stored {
    contiguous: u64,
    taken: Vec<u64>,
}

impl Stored {
    fn take(&mut self, sequence: u64, oldest: u64) {
        let before = self.contiguous.max(oldest - 1);
        if sequence == before + 1 {
            self.taken.push(sequence);
            self.contiguous = sequence;
        } else {
            self.contiguous = before;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Windows close every hour, in good days and bad ones. What the bound leaves room for arrives, once, and in order.
    #[test]
    fn what_waits_is_bounded_and_arrives_once(
        outages in outages(),
        max_bytes in 10_000u64..200_000,
        sizes in prop::collection::vec((500u64..6_000, 0usize..3), 150..200),
    ) {
        let mut ledger = Ledger::new(Bounds { max_bytes, max_events: 64 });
        let (mut telemetry, mut events) = (Stored::default(), Stored::default());
        let (mut given_up, mut told) = (0, 0);
        for (hour, (bytes, happened)) in (0u64..).zip(sizes) {
            let now_ms = hour * HOUR_MS;
            let mut adds = vec![(Stream::Telemetry, bytes)];
            adds.extend(std::iter::repeat_n((Stream::Event, 200), happened));
            for (stream, bytes) in adds {
                given_up += ledger.add(stream, bytes).unwrap().given_up;
                told += 1;
                prop_assert!(ledger.bytes() <= max_bytes && ledger.count(Stream::Event) <= 64);
            }
            if outages.iter().any(|outage| (outage.from_ms..outage.until_ms).contains(&now_ms)) {
                continue;
            }
            for (stream, stored) in [(Stream::Telemetry, &mut telemetry), (Stream::Event, &mut events)] {
                // Each message twice: what was on its way when a connection broke comes again.
                let mut sequence = 0;
                while let Some(next) = ledger.next_after(stream, sequence) {
                    stored.take(next, ledger.oldest(stream));
                    stored.take(next, ledger.oldest(stream));
                    sequence = next;
                }
                ledger.acknowledged(stream, stored.contiguous);
                prop_assert_eq!(ledger.count(stream), 0);
            }
        }
        let waiting = ledger.count(Stream::Telemetry) + ledger.count(Stream::Event);
        let arrived = telemetry.taken.len() + events.taken.len();
        prop_assert_eq!(arrived as u64 + given_up + waiting as u64, told);
        for stored in [telemetry, events] {
            prop_assert!(stored.taken.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", stored.taken);
        }
    }

    /// A device neither hammers a broker that is away nor misses for long that it is back.
    #[test]
    fn connecting_is_tried_now_and_then_and_soon_after_the_return(outages in outages(), jitters in prop::collection::vec(0u16..=1_000, 64)) {
        let mut backoff = Backoff::new(PAUSES);
        let mut jitter = jitters.iter().copied().cycle();
        for outage in outages {
            let (mut now_ms, mut attempts) = (outage.from_ms, 0u64);
            while now_ms < outage.until_ms {
                now_ms += backoff.failed(jitter.next().unwrap_or_default());
                attempts += 1;
            }
            let lasted_ms = outage.until_ms - outage.from_ms;
            // Never more often than at half the longest pause, once it is reached.
            prop_assert!(attempts <= lasted_ms / (PAUSES.longest_ms / 2) + 12, "{} attempts in {} ms", attempts, lasted_ms);
            prop_assert!(now_ms - outage.until_ms <= PAUSES.longest_ms);
            backoff.succeeded();
        }
    }

    /// A download that is interrupted for days asks for nothing meanwhile, and afterwards for what it lacks.
    #[test]
    fn a_download_goes_on_where_it_was(outages in outages(), chunk_ms in 1u64..40 * SECOND_MS) {
        let mut plan = FetchPlan::new(ChunkSet::empty(CHUNKS), Accepts::Plain, 45 * SECOND_MS, true);
        let (mut now_ms, mut deliveries, mut breaks, mut connected) = (0, 0u64, 0u64, true);
        let (mut durable, mut came_twice) = (BTreeSet::new(), 0u64);
        let mut most_in_flight = 0;
        for _ in 0..200_000 {
            let up = !outages.iter().any(|outage| (outage.from_ms..outage.until_ms).contains(&now_ms));
            if up != connected {
                connected = up;
                breaks += u64::from(!up);
                plan.connection(up);
            }
            match plan.next(now_ms, 500) {
                Step::Request { first, wanted, .. } => {
                    prop_assert!(connected);
                    let asked: Vec<u32> = wanted.iter().map(|offset| first + offset).collect();
                    let (window, late) = asked.split_at(plan.window().min(asked.len()));
                    late.iter().for_each(|index| plan.not_asked(*index));
                    most_in_flight = most_in_flight.max(window.len());
                    for index in window {
                        now_ms += chunk_ms;
                        if outages.iter().any(|outage| (outage.from_ms..outage.until_ms).contains(&now_ms)) {
                            break;
                        }
                        deliveries += 1;
                        came_twice += u64::from(!plan.arrived(*index, now_ms));
                    }
                }
                Step::Flush => {
                    for index in plan.durable() {
                        prop_assert!(durable.insert(index), "{} was fetched twice", index);
                    }
                }
                Step::WaitUntil(at_ms) => {
                    prop_assert!(at_ms > now_ms);
                    // The link is looked at meanwhile.
                    now_ms = at_ms.min(now_ms + 5 * SECOND_MS);
                }
                Step::Disconnected => now_ms += MINUTE_MS,
                Step::Done => break,
                step @ Step::GiveUp { .. } => prop_assert!(false, "{:?}", step),
            }
        }
        prop_assert_eq!(durable.len(), CHUNKS as usize);
        prop_assert_eq!(came_twice, 0);
        prop_assert!(deliveries <= u64::from(CHUNKS) + breaks * most_in_flight as u64);
    }

    /// An assignment that ends while nobody can renew it is told once, and a certificate is renewed soon after the return.
    #[test]
    fn what_ends_meanwhile_is_told_once_and_renewed_on_return(
        outages in outages(),
        valid_for_ms in HOUR_MS..3 * DAY_MS,
        life_ms in 2 * HOUR_MS..6 * DAY_MS,
        jitter in 0u16..=1_000,
    ) {
        let now = |at_ms: u64| Now { wall_ms: START_MS + at_ms, floor_ms: START_MS, steady_ms: at_ms };
        let mut freshness = Freshness::default();
        let mut ends_ms = START_MS + valid_for_ms;
        let _ = freshness.renewed(START_MS, ends_ms, START_MS);
        let validity = |at_ms: u64| Validity { not_before_ms: START_MS + at_ms, not_after_ms: START_MS + at_ms + life_ms };
        let (mut certificate, mut renewal) = (validity(0), Renewal::given(validity(0), now(0), jitter));
        let last_ms = outages.last().map_or(0, |outage| outage.until_ms) + 2 * HOUR_MS;
        let (mut news, mut ended, mut attempts) = (0, 0, 0u64);
        let mut was_stale = false;
        let mut at_ms = 0;
        while at_ms < last_ms {
            let up = !outages.iter().any(|outage| (outage.from_ms..outage.until_ms).contains(&at_ms));
            // A controller renews when a quarter of the time has passed.
            if up && START_MS + at_ms + valid_for_ms * 3 / 4 >= ends_ms {
                ends_ms = START_MS + at_ms + valid_for_ms;
                let _ = freshness.renewed(START_MS + at_ms, ends_ms, START_MS + at_ms);
            }
            let is_stale = freshness.stale_since_ms(START_MS + at_ms).is_some();
            ended += u32::from(is_stale && !was_stale);
            was_stale = is_stale;
            news += u32::from(freshness.news(START_MS + at_ms).is_some());
            if renewal.wait_ms(now(at_ms)) == 0 {
                attempts += 1;
                if up {
                    certificate = validity(at_ms);
                    renewal = Renewal::given(certificate, now(at_ms), jitter);
                } else {
                    renewal.failed(now(at_ms), jitter);
                }
            }
            at_ms += 10 * SECOND_MS;
        }
        prop_assert_eq!(news, ended);
        prop_assert!(!was_stale, "it is renewed on return");
        // After the return there was time for the longest pause.
        let longest_ms = (life_ms / 24).min(HOUR_MS);
        let age_ms = START_MS + last_ms - certificate.not_before_ms;
        let oldest_ms = (life_ms * 2 / 3 + life_ms / 24).max(2 * HOUR_MS);
        prop_assert!(age_ms <= oldest_ms + longest_ms + 20 * SECOND_MS, "{} ms old of {}", age_ms, life_ms);
        prop_assert!(attempts <= last_ms / (longest_ms / 2).max(1) + 16, "{} attempts", attempts);
    }
}
