//! How long to wait before another try.

/// The wait after `failures` tries that failed, in milliseconds: `first_ms`, twice as long after each further one, never above
/// `most_ms`; of that the second half by chance, so that many who failed together do not come back together. `random` is any number.
#[must_use]
pub fn retry_wait_ms(failures: u32, first_ms: u64, most_ms: u64, random: u64) -> u64 {
    let doubled = 1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
    let wait_ms = first_ms.saturating_mul(doubled).min(most_ms);
    let half = wait_ms / 2;
    (wait_ms - half) + if half == 0 { 0 } else { random % (half + 1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_within_their_bounds(failures: u32, first_ms in 1..10_000_u64, more_ms in 0..1_000_000_u64, random: u64) {
            let most_ms = first_ms + more_ms;
            let wait_ms = retry_wait_ms(failures, first_ms, most_ms, random);
            prop_assert!(wait_ms <= most_ms && wait_ms >= first_ms / 2);
            let next_ms = retry_wait_ms(failures.saturating_add(1), first_ms, most_ms, random);
            // Chance may take back half of what doubling gives, no more.
            prop_assert!(next_ms >= wait_ms / 2);
        }
    }

    #[test]
    fn it_doubles_up_to_its_bound() {
        let without_chance = |failures| retry_wait_ms(failures, 1_000, 60_000, 500 * 512);
        assert!((500..=1_000).contains(&without_chance(1)));
        assert!((1_000..=2_000).contains(&without_chance(2)));
        assert!((30_000..=60_000).contains(&without_chance(30)));
        assert!((30_000..=60_000).contains(&without_chance(u32::MAX)));
    }
}
