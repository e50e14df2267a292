//! How many chunks are asked for at once, given how fast the last ones came.
//!
//! Everything else on the connection waits behind a window, the answer to a ping among it: on a line of 16 kbit/s eight chunks take
//! four minutes, after which both ends take it for dead. So a connection begins with one chunk, and a window grows only as far as
//! it is through in about [`WINDOW_MS`].

use muster_shared::limits::CHUNK_WINDOW;

/// How long a window should take, in milliseconds.
const WINDOW_MS: u64 = 10_000;
/// The longest a chunk may keep everybody waiting, as a multiple of what the last ones took.
const PATIENCE: u64 = 4;

/// What is known of the connection's speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    window: usize,
    chunk_ms: u64,
    asked: usize,
    came: usize,
    since_ms: u64,
}

impl Pace {
    /// Nothing is known.
    pub(crate) fn new() -> Self {
        Self { window: 1, chunk_ms: 0, asked: 0, came: 0, since_ms: 0 }
    }

    /// How many chunks to ask for.
    pub(crate) fn window(&self) -> usize {
        self.window
    }

    /// How long to wait for the next chunk, at least `least_ms` milliseconds.
    pub(crate) fn wait_ms(&self, least_ms: u64) -> u64 {
        self.chunk_ms.saturating_mul(PATIENCE).max(least_ms)
    }

    /// So many chunks are asked for at `now_ms`.
    pub(crate) fn asked(&mut self, chunks: usize, now_ms: u64) {
        (self.asked, self.came, self.since_ms) = (chunks, 0, now_ms);
    }

    /// One of them is not asked for after all.
    pub(crate) fn spared(&mut self) {
        self.asked = self.asked.saturating_sub(1);
    }

    /// One of them has come at `now_ms`.
    pub(crate) fn came(&mut self, now_ms: u64) {
        self.came += 1;
        if self.came != self.asked {
            return;
        }
        let chunk_ms = now_ms.saturating_sub(self.since_ms) / self.asked.max(1) as u64;
        // Slower is believed at once, faster after a while: chunks differ in size.
        self.chunk_ms = chunk_ms.max(self.chunk_ms.midpoint(chunk_ms));
        let through = usize::try_from(WINDOW_MS / self.chunk_ms.max(1)).unwrap_or(CHUNK_WINDOW);
        self.window = through.clamp(1, CHUNK_WINDOW).min(self.window * 2);
    }

    /// They did not come in time, or the connection is another one.
    pub(crate) fn begin_again(&mut self) {
        *self = Self { chunk_ms: self.chunk_ms, ..Self::new() };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Windows asked for on a line that takes `latency_ms` and `chunk_ms` for each chunk.
    fn windows(rounds: usize, latency_ms: u64, chunk_ms: u64) -> Vec<usize> {
        let (mut pace, mut now_ms) = (Pace::new(), 0);
        (0..rounds)
            .map(|_| {
                let window = pace.window();
                pace.asked(window, now_ms);
                now_ms += latency_ms;
                for _ in 0..window {
                    now_ms += chunk_ms;
                    pace.came(now_ms);
                }
                window
            })
            .collect()
    }

    #[test]
    fn a_window_grows_where_the_line_is_fast_and_stays_small_where_it_is_slow() {
        assert_eq!(windows(5, 20, 5), [1, 2, 4, 8, 8]);
        // 64 KiB at 16 kbit/s.
        assert_eq!(windows(4, 100, 33_000), [1, 1, 1, 1]);
        // Two seconds each way hold nothing up once several are asked for together.
        assert_eq!(windows(5, 4_000, 1), [1, 2, 3, 4, 6]);
        assert_eq!(windows(12, 4_000, 1).last(), Some(&CHUNK_WINDOW));
    }

    #[test]
    fn a_slow_line_is_waited_for() {
        let mut pace = Pace::new();
        assert_eq!(pace.wait_ms(5_000), 5_000);
        pace.asked(1, 0);
        pace.came(33_000);
        assert_eq!(pace.wait_ms(5_000), 132_000);
        pace.begin_again();
        assert_eq!((pace.window(), pace.wait_ms(5_000)), (1, 132_000));
    }

    proptest! {
        #[test]
        fn a_window_is_never_empty_nor_above_the_bound(
            rounds in prop::collection::vec((0usize..20, 0usize..20, any::<u64>()), 0..40),
        ) {
            let mut pace = Pace::new();
            for (asked, came, now_ms) in rounds {
                pace.asked(asked, now_ms / 2);
                (0..came).for_each(|_| pace.came(now_ms));
                prop_assert!((1..=CHUNK_WINDOW).contains(&pace.window()));
                prop_assert!(pace.wait_ms(7) >= 7);
            }
        }
    }
}
