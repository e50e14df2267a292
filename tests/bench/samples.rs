//! Times of many repetitions, and where the middle and the tail of them lie.

use std::time::Duration;

/// Times of repetitions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Times `run`; what it gives back is kept alive until the clock has stopped.
    pub(crate) fn time<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let started = std::time::Instant::now();
        let result = run();
        self.0.push(started.elapsed());
        result
    }

    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The least time that `percent` of the repetitions did not exceed; zero without any.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    pub(crate) fn median_us(&self) -> f64 {
        self.percentile(50).as_secs_f64() * 1e6
    }

    pub(crate) fn p99_us(&self) -> f64 {
        self.percentile(99).as_secs_f64() * 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        assert_eq!(Samples::default().percentile(50), Duration::ZERO);
        let samples = Samples((1..=100).rev().map(Duration::from_micros).collect());
        assert_eq!(samples.percentile(50), Duration::from_micros(50));
        assert_eq!(samples.percentile(99), Duration::from_micros(99));
        assert_eq!(samples.percentile(100), Duration::from_micros(100));
        assert_eq!(Samples(vec![Duration::from_micros(7)]).percentile(1), Duration::from_micros(7));
    }
}
