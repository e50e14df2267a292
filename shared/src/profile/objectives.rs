//! What requests are expected to keep to, beside what the reference sample says.
//!
//! How many requests did not is counted exactly, by [`crate::sketch::ObjectiveCounts`]. Nothing here says how many may.

use serde::{Deserialize, Serialize};

use crate::limits::MAX_LATENCY_OBJECTIVES;

/// Longest latency there can be an objective for, in microseconds: an hour.
const MAX_LATENCY_US: u64 = 3_600_000_000;

/// Objectives of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Objectives {
    /// Latencies that requests should not exceed, in microseconds, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency_us: Vec<u64>,
}

impl Objectives {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.latency_us.is_empty()
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.latency_us.len() > MAX_LATENCY_OBJECTIVES {
            return Err("at most 8 latencies are counted against");
        }
        if self.latency_us.iter().any(|edge| !(1..=MAX_LATENCY_US).contains(edge)) {
            return Err("a latency is from one microsecond to an hour");
        }
        if self.latency_us.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err("latencies must ascend");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_ascend_within_their_bounds() {
        let check = |latency_us: &[u64]| Objectives { latency_us: latency_us.to_vec() }.check();
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[1, 50_000, MAX_LATENCY_US]), Ok(()));
        assert!(check(&[0]).unwrap_err().contains("one microsecond"));
        assert!(check(&[MAX_LATENCY_US + 1]).unwrap_err().contains("an hour"));
        assert!(check(&[5, 5]).unwrap_err().contains("ascend"));
        assert!(check(&(1..10).collect::<Vec<_>>()).unwrap_err().contains("at most 8"));
    }
}
