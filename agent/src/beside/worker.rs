//! The thread a shadow runs on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use muster_inference::{Images, Tensor};
use muster_shared::messages::PressureLevel;
use muster_shared::sketch::Comparison;

use super::follower::{Following, Ran};
use super::{Answered, Comparer};
use crate::host::Active;
use crate::metrics::{BesideOutcome, Metrics};
use crate::monitor::{Served, has_non_finite};
use crate::pressure::Pressed;
use crate::time;

/// The lowest priority there is.
const NICE: i32 = 19;

/// How the thread is woken from its rest when its work is over.
#[derive(Default)]
pub(super) struct Rest {
    ended: Mutex<bool>,
    wake: Condvar,
}

impl Rest {
    /// Ends the work.
    pub(super) fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }

    /// Rests for `pause`; false when the work is over.
    fn take(&self, pause: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = self.wake.wait_timeout_while(ended, pause, |ended| !*ended);
        !*rested.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// What the thread needs.
pub(super) struct Worker {
    pub(super) active: Arc<Active>,
    pub(super) comparer: Comparer,
    pub(super) following: Following,
    pub(super) metrics: Metrics,
    pub(super) waiting: Receiver<Answered>,
    pub(super) waiting_bytes: Arc<AtomicUsize>,
    pub(super) rest: Arc<Rest>,
    pub(super) max_cpu_percent: u32,
    pub(super) pressed: Pressed,
}

impl Worker {
    /// Runs until nobody can send requests any more.
    pub(super) fn run(self) {
        // On Linux this is about the calling thread alone.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::warn!(%error, "a shadow runs with the priority of everything else");
        }
        while let Ok(answered) = self.waiting.recv() {
            self.waiting_bytes.fetch_sub(answered.bytes(), Ordering::Relaxed);
            // What waited when the device came to be pressed is given up, too.
            if self.pressed.level() > PressureLevel::None {
                self.active.watch.skip(true);
                self.metrics.beside(BesideOutcome::Paused, None);
                self.following.hand_over(Ran::not_at_all(answered));
                continue;
            }
            let began = Instant::now();
            let (outputs, disagreeing) = self.run_again(&answered);
            let took = began.elapsed();
            self.following.hand_over(Ran { answered, was_run: true, outputs, disagreeing });
            if !self.rest.take(pause(took, self.max_cpu_percent)) {
                return;
            }
        }
    }

    /// Runs one request, and counts it. Gives what the model answered, if it did, and the columns in which the two disagree.
    fn run_again(&self, answered: &Answered) -> (Option<Vec<Tensor>>, Vec<String>) {
        let Active { served: model, watch, monitor, first_failure, .. } = &*self.active;
        // What its schema would have refused it has failed, as the incumbent answered.
        let checked = model.quality.as_ref().map(|gate| gate.check(&answered.inputs));
        let refused = checked.as_ref().and_then(|checked| checked.rejection.as_ref()).map(ToString::to_string);
        let inputs = checked.as_ref().and_then(|checked| checked.inputs.as_ref()).unwrap_or(&answered.inputs);
        let mut images = Images::NONE;
        let began = Instant::now();
        let outputs = refused.map_or_else(
            || {
                let run = || watch.run(&*model.model, inputs, &mut images).map_err(|error| error.to_string());
                catch_unwind(AssertUnwindSafe(run))
            },
            |refused| Ok(Err(refused)),
        );
        let latency = began.elapsed();
        let outputs: Result<Vec<Tensor>, String> = match outputs {
            Ok(outputs) => outputs,
            Err(_) => Err("it panicked".to_owned()),
        };
        let mut comparison = Comparison::empty(self.comparer.against());
        // For every request that was run, as the candidate's own time is: the two are held against each other.
        comparison.incumbent_us.add(u64::try_from(answered.run.as_micros()).unwrap_or(u64::MAX));
        let none = Vec::new();
        let (answers, outcome) = match &outputs {
            Ok(outputs) => {
                comparison.compared = 1;
                comparison.columns = self.comparer.compare(&answered.outputs, outputs);
                (outputs, BesideOutcome::Compared)
            }
            Err(error) => {
                first_failure.call_once(|| {
                    tracing::warn!(bundle = %model.bundle, generation = model.generation, %error, "the shadow failed a request");
                });
                comparison.failed = 1;
                (&none, BesideOutcome::Failed)
            }
        };
        let disagreeing: Vec<String> = comparison.disagreeing().map(str::to_owned).collect();
        self.metrics.beside(outcome, Some(latency));
        self.metrics.beside_disagreed(!disagreeing.is_empty());
        let now_ms = time::wall_ms();
        let non_finite = answers.iter().any(has_non_finite);
        let outliers = watch.outliers(&answered.inputs, &images).map(|found| found.counts);
        let (inputs, images, failed) = (&answered.inputs, &images, outcome == BesideOutcome::Failed);
        let served = Served { inputs, images, outputs: answers, failed, non_finite, latency, outliers, quality: None };
        monitor.served_beside(watch, now_ms, &served, &comparison);
        passing!(BesideRun);
        (outputs.ok(), disagreeing)
    }
}

/// How long to rest after `took` of work, so that no more than `percent` of the time is work.
fn pause(took: Duration, percent: u32) -> Duration {
    let percent = percent.clamp(1, 100);
    took.saturating_mul(100 - percent) / percent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_keeps_the_share() {
        let took = Duration::from_millis(100);
        for (percent, rest_ms) in [(25, 300), (50, 100), (100, 0), (1, 9_900), (0, 9_900), (400, 0)] {
            assert_eq!(pause(took, percent), Duration::from_millis(rest_ms), "{percent} %");
        }
        assert_eq!(pause(Duration::MAX, 1), Duration::MAX);
    }

    #[test]
    fn a_rest_is_cut_short_when_the_work_is_over() {
        let rest = Rest::default();
        assert!(rest.take(Duration::ZERO));
        rest.end();
        assert!(!rest.take(Duration::MAX / 4));
    }
}
