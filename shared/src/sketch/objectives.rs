//! How many requests took longer than a bundle's latency objectives, counted one by one and not estimated.

use serde::{Deserialize, Serialize};

use super::counts::add;
use super::latency::LatencySketch;
use crate::limits::MAX_LATENCY_OBJECTIVES;
use crate::profile::Objectives;

/// Requests held against one latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LatencyCount {
    /// That latency, in microseconds.
    pub edge_us: u64,
    /// Requests served.
    pub served: u64,
    /// Those of them that took longer.
    pub above: u64,
}

/// Requests held against every latency of a bundle's [`Objectives`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<LatencyCount>", into = "Vec<LatencyCount>")]
pub struct ObjectiveCounts(Vec<LatencyCount>);

/// Why a list is not counts against objectives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "counts at latency objectives are of at most {MAX_LATENCY_OBJECTIVES} latencies, ascending, none with more above it than served"
)]
pub struct ObjectiveCountsError;

impl ObjectiveCounts {
    /// Nothing counted yet.
    #[must_use]
    pub fn empty(objectives: &Objectives) -> Self {
        let edges = objectives.latency_us.iter().take(MAX_LATENCY_OBJECTIVES);
        Self(edges.map(|edge_us| LatencyCount { edge_us: *edge_us, served: 0, above: 0 }).collect())
    }

    /// Counts a request that was served.
    pub fn add(&mut self, latency_us: u64) {
        for count in &mut self.0 {
            add(&mut count.served, 1);
            add(&mut count.above, u64::from(latency_us > count.edge_us));
        }
    }

    /// Adds what was counted elsewhere, latency by latency. Beyond as many latencies as a bundle may have, further ones are left out.
    pub fn merge(&mut self, other: &Self) {
        for theirs in &other.0 {
            match self.0.binary_search_by_key(&theirs.edge_us, |count| count.edge_us) {
                Ok(at) => self.0[at].merge(theirs),
                Err(at) if self.0.len() < MAX_LATENCY_OBJECTIVES => self.0.insert(at, *theirs),
                Err(_) => {}
            }
        }
    }

    /// The counts, ascending by latency.
    pub fn iter(&self) -> impl Iterator<Item = &LatencyCount> {
        self.0.iter()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The share of requests that took longer than `edge_us`; `None` where that is no objective, or nothing was served.
    #[must_use]
    pub fn share_above(&self, edge_us: u64) -> Option<f64> {
        self.0.iter().find(|count| count.edge_us == edge_us).and_then(LatencyCount::share_above)
    }

    /// Whether they are of the latencies of `objectives`, or none at all.
    #[must_use]
    pub fn fits(&self, objectives: &Objectives) -> bool {
        self.is_empty() || self.0.iter().map(|count| count.edge_us).eq(objectives.latency_us.iter().copied())
    }
}

impl LatencyCount {
    /// The requests of a window held against `edge_us`: as they were counted where `objectives` have that latency; else as `latency_us` has
    /// them, whose cells are counted whole.
    #[must_use]
    pub fn of_window(edge_us: u64, objectives: &ObjectiveCounts, latency_us: &LatencySketch) -> Self {
        let counted = objectives.iter().find(|count| count.edge_us == edge_us).copied();
        counted.unwrap_or_else(|| {
            let served = latency_us.count();
            Self { edge_us, served, above: served.saturating_sub(latency_us.count_up_to(edge_us as f64)) }
        })
    }

    /// Adds what was held against the same latency elsewhere.
    pub fn merge(&mut self, other: &Self) {
        add(&mut self.served, other.served);
        add(&mut self.above, other.above);
    }

    /// The share of requests that took longer; `None` where nothing was served.
    #[must_use]
    pub fn share_above(&self) -> Option<f64> {
        (self.served > 0).then(|| self.above as f64 / self.served as f64)
    }
}

impl From<ObjectiveCounts> for Vec<LatencyCount> {
    fn from(counts: ObjectiveCounts) -> Self {
        counts.0
    }
}

impl TryFrom<Vec<LatencyCount>> for ObjectiveCounts {
    type Error = ObjectiveCountsError;
    fn try_from(counts: Vec<LatencyCount>) -> Result<Self, ObjectiveCountsError> {
        let ascend = counts.windows(2).all(|pair| pair[0].edge_us < pair[1].edge_us);
        let fits = counts.len() <= MAX_LATENCY_OBJECTIVES && counts.iter().all(|count| count.above <= count.served);
        if ascend && fits { Ok(Self(counts)) } else { Err(ObjectiveCountsError) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn objectives(latency_us: &[u64]) -> Objectives {
        Objectives { latency_us: latency_us.to_vec() }
    }

    fn counted(latencies_us: &[u64]) -> ObjectiveCounts {
        let mut counts = ObjectiveCounts::empty(&objectives(&[50, 100]));
        latencies_us.iter().for_each(|latency_us| counts.add(*latency_us));
        counts
    }

    #[test]
    fn a_latency_at_the_edge_keeps_to_it() {
        let counts = counted(&[49, 50, 51, 100, 101]);
        assert_eq!((counts.share_above(50), counts.share_above(100)), (Some(0.6), Some(0.2)));
        assert_eq!((counts.share_above(75), counted(&[]).share_above(50)), (None, None));
        assert!(counts.fits(&objectives(&[50, 100])) && !counts.fits(&objectives(&[50])));
        assert!(ObjectiveCounts::default().fits(&objectives(&[50])), "an agent that does not count them says nothing");
    }

    #[test]
    fn what_was_counted_goes_before_what_a_sketch_makes_of_it() {
        let (mut counts, mut sketch) = (ObjectiveCounts::empty(&objectives(&[10_000])), LatencySketch::default());
        for latency_us in [100, 9_000, 10_001, 10_002, 50_000] {
            counts.add(latency_us);
            sketch.add(latency_us);
        }
        let exact = LatencyCount::of_window(10_000, &counts, &sketch);
        assert_eq!(exact, LatencyCount { edge_us: 10_000, served: 5, above: 3 });
        // 10,001 shares the cell of 10,000.
        let rough = LatencyCount::of_window(10_000, &ObjectiveCounts::default(), &sketch);
        assert_eq!(rough, LatencyCount { edge_us: 10_000, served: 5, above: 1 });
        // No objective is at 1 ms.
        let mut sum = LatencyCount::of_window(1_000, &counts, &sketch);
        assert_eq!(sum, LatencyCount { edge_us: 1_000, served: 5, above: 4 });
        sum.merge(&LatencyCount { edge_us: 1_000, served: u64::MAX, above: 1 });
        assert_eq!((sum.served, sum.above), (u64::MAX, 5));
    }

    #[test]
    fn what_no_device_can_have_counted_is_refused() {
        let parse = |json: &str| serde_json::from_str::<ObjectiveCounts>(json);
        assert!(parse(r#"[{"edge_us":5,"served":2,"above":3}]"#).is_err());
        assert!(parse(r#"[{"edge_us":5,"served":2,"above":1},{"edge_us":5,"served":2,"above":1}]"#).is_err());
        let many = (0..9).map(|edge_us| LatencyCount { edge_us, served: 0, above: 0 }).collect::<Vec<_>>();
        assert!(parse(&serde_json::to_string(&many).unwrap()).is_err());
        let mut sum = ObjectiveCounts::default();
        for edge_us in 0..100 {
            sum.merge(&ObjectiveCounts(vec![LatencyCount { edge_us, served: u64::MAX, above: 1 }]));
        }
        sum.merge(&sum.clone());
        assert_eq!(sum.iter().map(|count| (count.served, count.above)).collect::<Vec<_>>(), [(u64::MAX, 2); 8]);
    }

    proptest! {
        #[test]
        fn merging_equals_counting_the_union(
            a in prop::collection::vec(0..150_u64, 0..30), b in prop::collection::vec(any::<u64>(), 0..30),
        ) {
            let (mut ab, mut ba) = (counted(&a), counted(&b));
            ab.merge(&counted(&b));
            ba.merge(&counted(&a));
            let union = counted(&[a, b].concat());
            prop_assert_eq!(&ab, &union);
            prop_assert_eq!(&ba, &union);
            let json = serde_json::to_string(&ab).unwrap();
            prop_assert_eq!(serde_json::from_str::<ObjectiveCounts>(&json).unwrap(), ab);
        }
    }
}
