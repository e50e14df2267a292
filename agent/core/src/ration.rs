//! At most so many of something in a while: for what anybody who reaches the device can ask for, and the device pays for.

use std::collections::VecDeque;

/// What is left of a ration.
#[derive(Debug, Clone)]
pub struct Ration {
    most: usize,
    period_ms: u64,
    taken_ms: VecDeque<u64>,
}

impl Ration {
    /// `most` in any `period_ms` milliseconds.
    #[must_use]
    pub fn new(most: usize, period_ms: u64) -> Self {
        Self { most, period_ms, taken_ms: VecDeque::new() }
    }

    /// Takes one at `now_ms`; false when there is none left.
    pub fn take(&mut self, now_ms: u64) -> bool {
        while self.taken_ms.front().is_some_and(|at_ms| now_ms.saturating_sub(*at_ms) >= self.period_ms) {
            self.taken_ms.pop_front();
        }
        let left = self.taken_ms.len() < self.most;
        if left {
            self.taken_ms.push_back(now_ms);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_period_has_more_than_its_ration(
            most in 0usize..6,
            period_ms in 1u64..50,
            pauses_ms in prop::collection::vec(0u64..20, 0..100),
        ) {
            let mut ration = Ration::new(most, period_ms);
            let mut now_ms = 0;
            let mut taken: Vec<u64> = Vec::new();
            for pause_ms in pauses_ms {
                now_ms += pause_ms;
                let lately = taken.iter().filter(|at_ms| now_ms - **at_ms < period_ms).count();
                prop_assert_eq!(ration.take(now_ms), lately < most);
                if lately < most {
                    taken.push(now_ms);
                }
            }
        }
    }
}
