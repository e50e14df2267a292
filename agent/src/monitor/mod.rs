//! Watching what a model is asked and what it answers, one window at a time.
//!
//! Windows tumble at multiples of their length and also end when the model changes. Each is about one manifest under one
//! generation; a request is counted for the model that answered it, even when another has taken over meanwhile. Nothing but
//! counts is kept: cells are [`muster_shared::sketch`]'s, values are found by [`muster_inference::ColumnExtractor`]. Storing and
//! sending closed windows is left to the caller of [`Monitor::close_due`].

mod watch;
mod window;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_inference::quality::Findings;
use muster_inference::{Images, Tensor};
use muster_shared::ids::MetricName;
use muster_shared::labels::LabelSpec;
use muster_shared::limits::MAX_METRIC_REQUESTS_PER_S;
use muster_shared::messages::{RequestCounts, Resources};
use muster_shared::numbers::{Numbers, NumbersError};
use muster_shared::sketch::{Comparison, LabelSketch, OutlierCounts};

pub(crate) use self::watch::ModelWatch;
pub(crate) use self::window::ClosedWindow;
use self::window::{OpenWindow, next_boundary_ms};
#[cfg(test)]
use crate::host::ServedModel;

/// Closed windows kept until they are fetched; beyond, the oldest is given up.
const MAX_CLOSED: usize = 64;
/// How long a window stays open for requests that outlive their model's turn, in milliseconds.
const AFTERMATH_MS: u64 = 1_000;
/// Requests of more elements than this are counted apart and merged, so that they hold up nobody else.
const MAX_ELEMENTS_UNDER_LOCK: usize = 4_096;

/// A request the model served.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Served<'a> {
    /// What was asked.
    pub(crate) inputs: &'a [Tensor],
    /// What was measured of the images among it.
    pub(crate) images: &'a Images,
    /// What the model answered; nothing when it failed.
    pub(crate) outputs: &'a [Tensor],
    /// Whether the model gave an error.
    pub(crate) failed: bool,
    /// Whether an output held NaN or an infinity.
    pub(crate) non_finite: bool,
    /// Time from the request's last byte to its answer's first.
    pub(crate) latency: Duration,
    /// Which of the rows asked are unlike the reference, where the model's profile says what is.
    pub(crate) outliers: Option<OutlierCounts>,
    /// What was found wrong with the inputs, where a schema says what to expect.
    pub(crate) quality: Option<&'a InputQuality>,
}

/// What was found wrong with a request's inputs.
#[derive(Debug, Clone, Default)]
pub(crate) struct InputQuality {
    /// What the data schema did not expect.
    pub(crate) findings: Findings,
    /// Whether a rule rejected the request.
    pub(crate) rejected: bool,
    /// Whether a tensor had another type or shape than the model's.
    pub(crate) malformed: bool,
}

/// Counts requests into windows. Cloning gives another handle to the same windows.
#[derive(Clone)]
pub(crate) struct Monitor {
    window_ms: u64,
    state: Arc<Mutex<State>>,
}

/// Why a request for a model was turned away before the model saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    /// The caller's input did not fit.
    Rejected,
    /// All workers were busy.
    Overloaded,
}

/// Why numbers that an application sent were not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum NumbersRefused {
    /// They are none that can be added up, or there is no room for another name.
    #[error(transparent)]
    Numbers(#[from] NumbersError),
    /// They come too often.
    #[error(
        "metrics came {MAX_METRIC_REQUESTS_PER_S} times within this second: send several in one request, and less often"
    )]
    TooOften,
}

#[derive(Default)]
struct State {
    /// The window of the model that answers requests.
    current: Option<OpenWindow>,
    /// Windows of models that have been replaced, for requests that were under way.
    aftermath: Vec<OpenWindow>,
    /// Closed, and not yet fetched. Their resources are filled in then.
    closed: VecDeque<ClosedWindow>,
    /// Windows closed since the start.
    closed_total: u64,
    /// What the current model was asked since it took over.
    since_watch: RequestCounts,
    /// Numbers that applications sent in the window before.
    sent_before: Numbers,
    /// The second in which applications sent numbers last, since the Unix epoch, and how often in it.
    sent_in_second: (u64, u32),
}

impl Monitor {
    /// A monitor whose windows are `window_ms` long (at least 1), watching nothing yet.
    pub(crate) fn new(window_ms: u64) -> Self {
        Self { window_ms: window_ms.max(1), state: Arc::new(Mutex::new(State::default())) }
    }

    /// Watches `model` from `now_ms` on.
    #[cfg(test)]
    pub(crate) fn watch(&self, model: &ServedModel, now_ms: u64) -> Arc<ModelWatch> {
        let watch = Arc::new(ModelWatch::new(model));
        self.begin(&watch, now_ms);
        watch
    }

    /// How long a window is, in milliseconds.
    pub(crate) fn window_ms(&self) -> u64 {
        self.window_ms
    }

    /// Watches the model of `watch` from `now_ms` on. The window of the model before it ends here.
    pub(crate) fn begin(&self, watch: &Arc<ModelWatch>, now_ms: u64) {
        let first = OpenWindow::new(Arc::clone(watch), now_ms, next_boundary_ms(now_ms, self.window_ms));
        let mut state = self.state();
        state.retire(now_ms, self.window_ms);
        state.since_watch = RequestCounts::default();
        state.current = Some(first);
    }

    /// Watches no model from `now_ms` on.
    pub(crate) fn unwatch(&self, now_ms: u64) {
        let mut state = self.state();
        state.retire(now_ms, self.window_ms);
        state.since_watch = RequestCounts::default();
    }

    /// Counts a request that the model of `watch` served.
    pub(crate) fn served(&self, watch: &Arc<ModelWatch>, now_ms: u64, served: &Served<'_>) {
        self.count_served(watch, now_ms, served, None);
    }

    /// The same for a model beside the one that answers; `comparison` is what the request showed of the two.
    pub(crate) fn served_beside(
        &self,
        watch: &Arc<ModelWatch>,
        now_ms: u64,
        served: &Served<'_>,
        comparison: &Comparison,
    ) {
        self.count_served(watch, now_ms, served, Some(comparison));
    }

    fn count_served(&self, watch: &Arc<ModelWatch>, now_ms: u64, served: &Served<'_>, comparison: Option<&Comparison>) {
        let elements: usize = served.inputs.iter().chain(served.outputs).map(Tensor::element_count).sum();
        let apart = (elements > MAX_ELEMENTS_UNDER_LOCK).then(|| {
            let mut counted = watch.nothing_counted();
            watch.count(&mut counted, served);
            counted
        });
        let counts = RequestCounts {
            served: 1,
            failed: u64::from(served.failed),
            non_finite: u64::from(served.non_finite),
            ..RequestCounts::default()
        };
        let mut state = self.state();
        let window = state.count(watch, now_ms, self.window_ms, &counts);
        if let Some(quality) = served.quality {
            window.count_quality(quality);
        }
        if let Some(outliers) = &served.outliers {
            window.count_outliers(outliers);
        }
        window.count_latency(u64::try_from(served.latency.as_micros()).unwrap_or(u64::MAX));
        match apart {
            Some(counted) => window.merge_rows(&counted),
            None => window.count_rows(served),
        }
        if let Some(comparison) = comparison {
            window.compare(comparison);
        }
    }

    /// Lets `count` count labels, or answers that may get one, of the model of `watch`, whose labels are those of `spec`. The window is that of
    /// the moment; a model that has been replaced gets one of its own, until the other windows end.
    pub(crate) fn labelled(
        &self,
        watch: &Arc<ModelWatch>,
        now_ms: u64,
        spec: &LabelSpec,
        count: impl FnOnce(&mut LabelSketch),
    ) {
        let mut state = self.state();
        let until_ms = next_boundary_ms(now_ms, self.window_ms);
        count(state.window(watch, now_ms, self.window_ms, until_ms).labels(spec));
    }

    /// Counts what labels said of the model of `watch` and the one it ran beside. The window is that of [`Self::labelled`].
    pub(crate) fn compared(&self, watch: &Arc<ModelWatch>, now_ms: u64, comparison: &Comparison) {
        let until_ms = next_boundary_ms(now_ms, self.window_ms);
        self.state().window(watch, now_ms, self.window_ms, until_ms).compare(comparison);
    }

    /// Counts numbers that an application sent while the model of `watch` serves, all of them or none. The window is that of [`Self::labelled`].
    pub(crate) fn sent(
        &self,
        watch: &Arc<ModelWatch>,
        now_ms: u64,
        numbers: &BTreeMap<MetricName, f64>,
    ) -> Result<(), NumbersRefused> {
        let mut state = self.state();
        let (second, times) = &mut state.sent_in_second;
        if *second != now_ms / 1_000 {
            (*second, *times) = (now_ms / 1_000, 0);
        }
        if *times >= MAX_METRIC_REQUESTS_PER_S {
            return Err(NumbersRefused::TooOften);
        }
        *times += 1;
        let until_ms = next_boundary_ms(now_ms, self.window_ms);
        Ok(state.window(watch, now_ms, self.window_ms, until_ms).count_numbers(numbers)?)
    }

    /// What applications sent last under each name, in this window or the one before.
    pub(crate) fn last_sent(&self) -> BTreeMap<MetricName, f64> {
        let state = self.state();
        let now = state.current.iter().flat_map(|window| window.numbers().iter());
        state.sent_before.iter().chain(now).map(|(name, sum)| (name.clone(), sum.last)).collect()
    }

    /// Counts a request for the model of `watch` that it never saw, and what was found wrong with its inputs if anybody looked.
    pub(crate) fn turned_away(
        &self,
        watch: &Arc<ModelWatch>,
        now_ms: u64,
        why: TurnedAway,
        quality: Option<&InputQuality>,
    ) {
        let counts = match why {
            TurnedAway::Rejected => RequestCounts { rejected: 1, ..RequestCounts::default() },
            TurnedAway::Overloaded => RequestCounts { overloaded: 1, ..RequestCounts::default() },
        };
        let mut state = self.state();
        let window = state.count(watch, now_ms, self.window_ms, &counts);
        if let Some(quality) = quality {
            window.count_quality(quality);
        }
    }

    /// Closes every window that is over at `now_ms` and gives it away, with those that a change of model has closed.
    /// `resources` are the agent's own at this moment.
    pub(crate) fn close_due(&self, now_ms: u64, resources: Resources) -> Vec<ClosedWindow> {
        let mut state = self.state();
        state.tumble(now_ms, self.window_ms);
        state.end_aftermath(|window| window.end_ms <= now_ms || window.starts_long_after(now_ms, AFTERMATH_MS));
        state.fetch(resources)
    }

    /// Closes every window at `now_ms`, over or not, and gives it away. The current model's next window starts here.
    pub(crate) fn close_all(&self, now_ms: u64, resources: Resources) -> Vec<ClosedWindow> {
        let mut state = self.state();
        if let Some(watch) = state.close_current(now_ms, self.window_ms) {
            state.current = Some(OpenWindow::new(watch, now_ms, next_boundary_ms(now_ms, self.window_ms)));
        }
        state.end_aftermath(|_| true);
        state.fetch(resources)
    }

    /// When [`Monitor::close_due`] has something to give; a time in the past when it has already. `None` while nothing is
    /// watched.
    pub(crate) fn next_close_ms(&self) -> Option<u64> {
        let state = self.state();
        let closed = state.closed.iter().map(|window| window.telemetry.key.start_ms);
        let open = state.current.iter().chain(&state.aftermath).map(|window| window.end_ms);
        closed.chain(open).min()
    }

    /// What the current model was asked since it took over.
    pub(crate) fn counts_since_watch(&self) -> RequestCounts {
        self.state().since_watch
    }

    /// Windows closed since the start.
    pub(crate) fn closed_total(&self) -> u64 {
        self.state().closed_total
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Adds `counts` to the window that is open for `watch` at `now_ms`, and gives that window.
    fn count(
        &mut self,
        watch: &Arc<ModelWatch>,
        now_ms: u64,
        window_ms: u64,
        counts: &RequestCounts,
    ) -> &mut OpenWindow {
        self.tumble(now_ms, window_ms);
        if self.current.as_ref().is_some_and(|window| Arc::ptr_eq(&window.watch, watch)) {
            self.since_watch.merge(counts);
        }
        let window = self.window(watch, now_ms, window_ms, now_ms.saturating_add(AFTERMATH_MS));
        window.count_requests(counts);
        window
    }

    /// The window that is open for `watch` at `now_ms`; that of a model that has been replaced ends at `end_ms` if it is opened here.
    fn window(&mut self, watch: &Arc<ModelWatch>, now_ms: u64, window_ms: u64, end_ms: u64) -> &mut OpenWindow {
        self.tumble(now_ms, window_ms);
        match &mut self.current {
            Some(window) if Arc::ptr_eq(&window.watch, watch) => window,
            Some(_) | None => {
                let known = self.aftermath.iter().position(|window| Arc::ptr_eq(&window.watch, watch));
                let at = known.unwrap_or_else(|| {
                    self.aftermath.push(OpenWindow::new(Arc::clone(watch), now_ms, end_ms));
                    self.aftermath.len() - 1
                });
                &mut self.aftermath[at]
            }
        }
    }

    /// Closes the current window if it is over at `now_ms`, and opens the next.
    fn tumble(&mut self, now_ms: u64, window_ms: u64) {
        let Some(window) = &self.current else { return };
        // A clock set back would otherwise keep the window open until it has caught up.
        let set_back = window.starts_long_after(now_ms, window_ms);
        if now_ms < window.end_ms && !set_back {
            return;
        }
        let end_ms = if set_back { window.start_ms } else { window.end_ms };
        let next_end_ms = next_boundary_ms(now_ms, window_ms);
        let next = OpenWindow::new(Arc::clone(&window.watch), next_end_ms.saturating_sub(window_ms), next_end_ms);
        if let Some(over) = self.current.replace(next) {
            self.sent_before = over.numbers().clone();
            self.close(over, end_ms);
        }
    }

    /// Closes the current window at `now_ms`, leaves none open and gives back what it was about.
    fn close_current(&mut self, now_ms: u64, window_ms: u64) -> Option<Arc<ModelWatch>> {
        self.tumble(now_ms, window_ms);
        let window = self.current.take()?;
        let watch = Arc::clone(&window.watch);
        self.sent_before = window.numbers().clone();
        if now_ms > window.start_ms || !window.is_silent() {
            self.close(window, now_ms);
        }
        Some(watch)
    }

    /// Closes the current window, whose model is being replaced, and opens one for requests that are under way.
    fn retire(&mut self, now_ms: u64, window_ms: u64) {
        if let Some(watch) = self.close_current(now_ms, window_ms) {
            self.aftermath.push(OpenWindow::new(watch, now_ms, now_ms.saturating_add(AFTERMATH_MS)));
        }
    }

    /// Closes the windows of replaced models that are `over`; silent ones leave no trace.
    fn end_aftermath(&mut self, over: impl Fn(&OpenWindow) -> bool) {
        let (over, open) = self.aftermath.drain(..).partition(|window| over(window));
        self.aftermath = open;
        let over: Vec<OpenWindow> = over;
        for window in over {
            if !window.is_silent() {
                let end_ms = window.end_ms;
                self.close(window, end_ms);
            }
        }
    }

    fn close(&mut self, window: OpenWindow, end_ms: u64) {
        if self.closed.len() >= MAX_CLOSED {
            self.closed.pop_front();
            tracing::warn!("closed monitoring windows are not being fetched: the oldest was given up");
        }
        self.closed.push_back(window.close(end_ms));
        self.closed_total = self.closed_total.saturating_add(1);
    }

    fn fetch(&mut self, resources: Resources) -> Vec<ClosedWindow> {
        let fill = |mut window: ClosedWindow| {
            window.telemetry.resources = resources;
            window
        };
        self.closed.drain(..).map(fill).collect()
    }
}

/// Whether a value of `tensor` is NaN or an infinity.
pub(crate) fn has_non_finite(tensor: &Tensor) -> bool {
    tensor.datatype().is_float() && tensor.values().any(|value| !value.is_finite())
}

#[cfg(test)]
mod tests;
