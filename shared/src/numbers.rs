//! Numbers that applications on a device send through its agent: line stops, a temperature, whatever a rollout is to watch.
//!
//! The agent adds them up by name, window by window, and nothing but these sums leaves the device. What they mean is the application's
//! matter; how a rollout scores devices by them is said by its guardrails ([`crate::rollout::Guardrail`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::MetricName;
use crate::limits::{MAX_METRIC_VALUE, MAX_METRICS};

/// Why numbers are not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NumbersError {
    /// Nothing was sent.
    #[error("no metric is named: send {{\"metrics\": {{\"line_stops\": 3}}}}")]
    Nothing,
    /// A number that cannot be added up.
    #[error("metric {0}: a number from -1e15 to 1e15 is expected")]
    Value(MetricName),
    /// One name too many.
    #[error("metric {name}: {MAX_METRICS} others were sent in this window, and no more are kept")]
    Names {
        /// The first that has no room.
        name: MetricName,
    },
}

/// The numbers of one name, added up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many came; at least 1.
    pub count: u64,
    /// All of them together.
    pub sum: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The one that came last.
    pub last: f64,
}

impl Summary {
    /// That of one number.
    #[must_use]
    pub const fn of(value: f64) -> Self {
        Self { count: 1, sum: value, min: value, max: value, last: value }
    }

    /// Adds a number that came later.
    pub fn add(&mut self, value: f64) {
        self.count = self.count.saturating_add(1);
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.last = value;
    }

    /// Whether it can be that of numbers that are taken, as far as can be told.
    fn is_possible(&self) -> bool {
        let greatest = self.min.abs().max(self.max.abs());
        // A sum is rounded each time that a number is added.
        let most = greatest * self.count as f64 * (1.0 + 1e-6);
        self.count > 0
            && greatest <= MAX_METRIC_VALUE
            && (self.min..=self.max).contains(&self.last)
            && self.sum.abs() <= most
    }
}

/// What was sent in one window, by name: at most [`MAX_METRICS`]. What is read and cannot be such numbers is left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, Summary>")]
pub struct Numbers(BTreeMap<MetricName, Summary>);

impl Numbers {
    /// Takes in what one request sent: all of it, or nothing.
    ///
    /// # Errors
    /// [`NumbersError`] with the first that cannot be taken.
    pub fn add(&mut self, sent: &BTreeMap<MetricName, f64>) -> Result<(), NumbersError> {
        if sent.is_empty() {
            return Err(NumbersError::Nothing);
        }
        if let Some((name, _)) = sent.iter().find(|(_, value)| value.is_nan() || value.abs() > MAX_METRIC_VALUE) {
            return Err(NumbersError::Value(name.clone()));
        }
        let room = MAX_METRICS.saturating_sub(self.0.len());
        if let Some(name) = sent.keys().filter(|name| !self.0.contains_key(*name)).nth(room) {
            return Err(NumbersError::Names { name: name.clone() });
        }
        for (name, value) in sent {
            self.0.entry(name.clone()).and_modify(|sum| sum.add(*value)).or_insert_with(|| Summary::of(*value));
        }
        Ok(())
    }

    /// Names and sums, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&MetricName, &Summary)> {
        self.0.iter()
    }

    /// Whether nothing was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<BTreeMap<String, Summary>> for Numbers {
    fn from(read: BTreeMap<String, Summary>) -> Self {
        let possible = read.into_iter().filter(|(_, summary)| summary.is_possible());
        let named = possible.filter_map(|(name, summary)| Some((MetricName::new(name).ok()?, summary)));
        Self(named.take(MAX_METRICS).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> MetricName {
        MetricName::new(text).unwrap()
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_numbers(values in prop::collection::vec(-1e15f64..1e15, 1..50)) {
            let mut numbers = Numbers::default();
            for value in &values {
                numbers.add(&BTreeMap::from([(name("stops"), *value)])).unwrap();
            }
            let (_, sum) = numbers.iter().next().unwrap();
            let sorted = { let mut all = values.clone(); all.sort_by(f64::total_cmp); all };
            prop_assert_eq!((sum.count, sum.min, sum.max), (values.len() as u64, sorted[0], sorted[values.len() - 1]));
            prop_assert_eq!((sum.last, sum.sum), (values[values.len() - 1], values.iter().sum::<f64>()));
            // What was sent is what is read.
            let read: Numbers = serde_json::from_slice(&serde_json::to_vec(&numbers).unwrap()).unwrap();
            prop_assert_eq!(read.iter().count(), 1);
        }

        #[test]
        fn what_is_read_is_bounded(
            summaries in prop::collection::btree_map("[a-z.:]{0,3}", (any::<u64>(), any::<[f64; 4]>()), 0..60),
        ) {
            let of = |(count, [sum, min, max, last]): (u64, [f64; 4])| Summary { count, sum, min, max, last };
            let numbers = Numbers::from(summaries.into_iter().map(|(name, parts)| (name, of(parts))).collect::<BTreeMap<_, _>>());
            prop_assert!(numbers.iter().count() <= MAX_METRICS);
            for (_, sum) in numbers.iter() {
                prop_assert!(sum.count > 0 && (sum.sum / sum.count as f64).abs() <= 1.000_001 * MAX_METRIC_VALUE);
            }
        }
    }

    #[test]
    fn a_request_is_taken_whole_or_not_at_all() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.add(&BTreeMap::new()), Err(NumbersError::Nothing));
        for bad in [f64::NAN, f64::INFINITY, -2e15] {
            let sent = BTreeMap::from([(name("a"), 1.0), (name("b"), bad)]);
            assert_eq!(numbers.add(&sent), Err(NumbersError::Value(name("b"))));
        }
        assert!(numbers.is_empty());
        let many = |from: usize, n: usize| (from..from + n).map(|at| (name(&format!("m{at:03}")), 1.0)).collect();
        assert_eq!(numbers.add(&many(0, 33)), Err(NumbersError::Names { name: name("m032") }));
        numbers.add(&many(0, 30)).unwrap();
        assert_eq!(numbers.add(&many(29, 4)), Err(NumbersError::Names { name: name("m032") }));
        assert_eq!(numbers.iter().count(), 30, "nothing of it was taken");
        numbers.add(&many(28, 4)).unwrap();
        numbers.add(&many(0, 32)).unwrap();
        assert_eq!(numbers.iter().map(|(_, sum)| sum.count).sum::<u64>(), 30 + 4 + 32);
    }
}
