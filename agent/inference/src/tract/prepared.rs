//! The shapes a model stays prepared for.
//!
//! The shapes from loading stay for ever; of others, the most recently used stay. A shape is prepared once however many
//! requests wait for it, one shape at a time, so that a burst of unusual requests costs the memory of one preparation. A shape
//! that cannot be prepared is remembered like any other.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::plan::Plan;
use crate::guard::Stopped;

/// Why a shape could not be prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unprepared {
    /// tract refused, with these words.
    Refused(String),
    /// It panicked, took too long or got no thread.
    Stopped(Stopped),
}

#[derive(Debug)]
struct Slot {
    shapes: Vec<Vec<usize>>,
    plan: OnceLock<Result<Plan, Unprepared>>,
}

/// A reference to a plan that stays valid when its shape is dropped meanwhile.
#[derive(Debug, Clone)]
pub(super) struct Found(Arc<Slot>);

impl Found {
    /// The plan, unless its shape cannot be prepared.
    pub(super) fn plan(&self) -> Result<&Plan, Unprepared> {
        match self.0.plan.get() {
            Some(Ok(plan)) => Ok(plan),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Unprepared::Refused("it was not prepared".into())),
        }
    }
}

/// Plans by the shapes of their inputs.
#[derive(Debug)]
pub(super) struct Prepared {
    first: Arc<Slot>,
    /// Most recently used first.
    others: Mutex<Vec<Arc<Slot>>>,
    max_others: usize,
    preparing: Mutex<()>,
}

impl Prepared {
    /// Keeps `plan` for `shapes` and room for `max_others` besides.
    pub(super) fn new(shapes: Vec<Vec<usize>>, plan: Plan, max_others: usize) -> Self {
        let first = Arc::new(Slot { shapes, plan: OnceLock::from(Ok(plan)) });
        Self { first, others: Mutex::default(), max_others: max_others.max(1), preparing: Mutex::default() }
    }

    /// The plan for `shapes`, made by `prepare` when there is none yet. No lock is held when this returns.
    pub(super) fn find<'a>(
        &self,
        shapes: impl Iterator<Item = &'a [usize]> + Clone,
        prepare: impl FnOnce(Vec<Vec<usize>>) -> Result<Plan, Unprepared>,
    ) -> Found {
        let is_for = |slot: &Slot| slot.shapes.iter().map(Vec::as_slice).eq(shapes.clone());
        if is_for(&self.first) {
            return Found(Arc::clone(&self.first));
        }
        let slot = {
            let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
            match others.iter().position(|slot| is_for(slot)) {
                Some(at) => others[..=at].rotate_right(1),
                None => {
                    let shapes = shapes.map(<[usize]>::to_vec).collect();
                    others.insert(0, Arc::new(Slot { shapes, plan: OnceLock::new() }));
                    others.truncate(self.max_others);
                }
            }
            Arc::clone(&others[0])
        };
        slot.plan.get_or_init(|| {
            let _one_at_a_time = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
            prepare(slot.shapes.clone())
        });
        let found = Found(slot);
        if let Err(Unprepared::Stopped(Stopped::NoThread(_))) = found.plan() {
            // Another time there may be one.
            self.others.lock().unwrap_or_else(PoisonError::into_inner).retain(|slot| !Arc::ptr_eq(slot, &found.0));
        }
        found
    }

    /// The shapes kept besides the first, most recently used first.
    #[cfg(test)]
    pub(super) fn kept(&self) -> Vec<Vec<Vec<usize>>> {
        self.others.lock().unwrap().iter().map(|slot| slot.shapes.clone()).collect()
    }
}
