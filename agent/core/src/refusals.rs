//! Which refusals are told: each once, and not endlessly many.
//!
//! Whoever can publish to the device can make it refuse as often as it likes. Each refusal told costs a flash write and a
//! place in the outbox, so repeats are left out and the rest is rationed.

use std::collections::VecDeque;

/// Refusals told per [`PERIOD_MS`].
pub const PER_PERIOD: usize = 16;
/// What the ration is for, in milliseconds.
pub const PERIOD_MS: u64 = 3_600_000;

/// The refusals told lately.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    told: VecDeque<(u64, String)>,
}

impl Refusals {
    /// Whether a refusal for `reason` is worth telling at `now_ms`; it counts as told then.
    pub fn tell(&mut self, reason: &str, now_ms: u64) -> bool {
        while self.told.front().is_some_and(|(at_ms, _)| now_ms.saturating_sub(*at_ms) >= PERIOD_MS) {
            self.told.pop_front();
        }
        if self.told.len() >= PER_PERIOD || self.told.iter().any(|(_, told)| told == reason) {
            return false;
        }
        self.told.push_back((now_ms, reason.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_left_out_until_the_period_is_over() {
        let mut refusals = Refusals::default();
        assert!(refusals.tell("too old", 0));
        assert!(!refusals.tell("too old", PERIOD_MS - 1));
        assert!(refusals.tell("too old", PERIOD_MS));
    }

    #[test]
    fn a_flood_is_rationed() {
        let mut refusals = Refusals::default();
        let told = (0..1_000u64).filter(|n| refusals.tell(&n.to_string(), *n)).count();
        assert_eq!(told, PER_PERIOD);
    }
}
