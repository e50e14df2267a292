//! Names for inferences whose callers gave none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Gives out ids, each once. Cloning gives another handle to the same.
#[derive(Debug, Clone)]
pub(crate) struct InferenceIds {
    /// Chosen at random, so that ids of another start are never taken for these.
    start: u64,
    next: Arc<AtomicU64>,
}

impl Default for InferenceIds {
    fn default() -> Self {
        Self { start: getrandom::u64().unwrap_or_default(), next: Arc::default() }
    }
}

impl InferenceIds {
    /// Another id: 32 hexadecimal digits.
    pub(crate) fn make(&self) -> String {
        format!("{:016x}{:016x}", self.start, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_given_twice() {
        let ids = InferenceIds::default();
        let made = [ids.make(), ids.clone().make(), InferenceIds::default().make()];
        assert!(made[0] != made[1] && made[0] != made[2] && made.iter().all(|id| id.len() == 32), "{made:?}");
    }
}
