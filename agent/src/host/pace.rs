//! Whether a model is quick enough to run where the request was read.
//!
//! Handing a request to another thread and back costs tens of microseconds: more than many small models take. So a model
//! that has shown itself quick for inputs of the same shapes runs at once on the thread that read the request, and everything else, a
//! shape seen for the first time included, goes to the threads for blocking work. So does what comes while a request is computed like that:
//! a model that has been quick may hang all the same, and must not take the last thread with it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_inference::Tensor;

/// The longest a request may hold up the others that the same thread serves, in microseconds.
const QUICK_US: u32 = 500;
/// Shapes remembered at once; beyond, all are measured anew.
const MAX_SHAPES: usize = 64;

/// The shapes of a request's inputs, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shapes(u64);

impl Shapes {
    /// Of these inputs, in this order.
    pub(crate) fn of(inputs: &[Tensor]) -> Self {
        let mut hasher = DefaultHasher::new();
        for input in inputs {
            input.shape().hash(&mut hasher);
        }
        Self(hasher.finish())
    }
}

/// How long one model has taken, by the shapes of its inputs.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Moving averages, in microseconds.
    averages_us: Mutex<HashMap<Shapes, u32>>,
}

impl Pace {
    /// Whether a run with these shapes is expected to be over before anyone else on the thread would notice.
    pub(crate) fn is_quick(&self, shapes: Shapes) -> bool {
        let averages_us = self.averages_us.lock().unwrap_or_else(PoisonError::into_inner);
        averages_us.get(&shapes).is_some_and(|average_us| *average_us <= QUICK_US)
    }

    /// Takes in how long a run with these shapes took.
    pub(crate) fn took(&self, shapes: Shapes, duration: Duration) {
        // A day is long enough to tell slow from quick, and leaves room for the sum below.
        let took_us = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX).min(u32::MAX / 8);
        let mut averages_us = self.averages_us.lock().unwrap_or_else(PoisonError::into_inner);
        if averages_us.len() >= MAX_SHAPES && !averages_us.contains_key(&shapes) {
            averages_us.clear();
        }
        averages_us
            .entry(shapes)
            .and_modify(|average_us| *average_us = (*average_us * 7 + took_us) / 8)
            .or_insert(took_us);
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::bundle::DataType;

    use super::*;

    fn shapes(rows: usize) -> Shapes {
        Shapes::of(&[Tensor::new("x", DataType::Uint8, vec![rows, 1], vec![0; rows]).unwrap()])
    }

    #[test]
    fn a_shape_is_quick_once_it_has_been_seen_to_be() {
        let pace = Pace::default();
        assert!(!pace.is_quick(shapes(1)), "nothing is known yet");
        pace.took(shapes(1), Duration::from_micros(40));
        assert!(pace.is_quick(shapes(1)));
        assert!(!pace.is_quick(shapes(2)), "another shape may have to be prepared first");
    }

    #[test]
    fn one_slow_run_is_forgiven_and_slowness_is_not() {
        let pace = Pace::default();
        pace.took(shapes(1), Duration::from_micros(40));
        pace.took(shapes(1), Duration::from_millis(2));
        assert!(pace.is_quick(shapes(1)));
        for _ in 0..8 {
            pace.took(shapes(1), Duration::from_millis(2));
        }
        assert!(!pace.is_quick(shapes(1)));
        pace.took(shapes(1), Duration::MAX);
        assert!(!pace.is_quick(shapes(1)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let pace = Pace::default();
        for rows in 0..1_000 {
            pace.took(shapes(rows), Duration::from_micros(1));
        }
        assert!(pace.averages_us.lock().unwrap().len() <= MAX_SHAPES);
    }
}
