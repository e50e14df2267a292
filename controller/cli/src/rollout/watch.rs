//! `muster rollout watch`: a rollout followed to its end.
//!
//! At a terminal there is a bar for each wave; elsewhere every change is a line. Either way verdicts are told with
//! their checks as they arrive, and the exit code says how it ended.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use muster_shared::ids::RolloutId;
use muster_shared::rollout::{RolloutStatus, RolloutView};

use super::words;
use crate::api_client::ApiClient;
use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::output;

/// How long a controller that cannot be reached is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The rollout's id.
    id: RolloutId,
    #[command(flatten)]
    options: WatchOptions,
}

#[derive(Debug, Clone, Args)]
pub(super) struct WatchOptions {
    /// Stop with exit code 1 when the rollout pauses, too.
    #[arg(long)]
    until_settled: bool,
    /// Stop with exit code 1 after this, whatever the state.
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Millis>,
    /// Time between two looks.
    #[arg(long, default_value = "1s", value_name = "DURATION")]
    interval: Millis,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self { until_settled: false, timeout: None, interval: Millis(1_000) }
    }
}

/// What is to be told when `now` follows `before`, a line each.
fn changes(before: Option<&RolloutView>, now: &RolloutView, now_ms: u64) -> Vec<String> {
    let mut lines = Vec::new();
    let stamp = |text: String| format!("{}  {text}", output::time(now_ms));
    let state = |view: &RolloutView| (view.status, view.status_reason.clone());
    if before.map(state) != Some(state(now)) {
        lines.push(stamp(format!("{} {}: {}", now.id, now.status, now.status_reason)));
    }
    for (index, wave) in now.waves.iter().enumerate() {
        let known = before.and_then(|view| view.waves.get(index));
        let begun = wave.started_at_ms.is_some() || !wave.devices.is_empty();
        if begun && known.map(|wave| &wave.devices) != Some(&wave.devices) {
            let name = words::wave_name(index, now.waves.len(), now.spec.waves.get(index));
            let (done, of) = words::arrived(wave, now.status);
            lines.push(stamp(format!("{name}: {done}/{of}, {}", words::progress(wave))));
        }
    }
    let told = before.map_or(0, |view| view.verdicts.len());
    for verdict in now.verdicts.iter().skip(told) {
        let mut said = words::verdict(verdict).into_iter();
        lines.extend(said.next().map(stamp));
        lines.extend(said);
    }
    if !now.waiting.is_empty() && before.map(|view| &view.waiting) != Some(&now.waiting) {
        lines.push(stamp(format!("waiting: {}", words::all_waiting(now, now_ms))));
    }
    lines
}

/// Whether watching ends here, and how.
fn end(view: &RolloutView, until_settled: bool) -> Option<Result<(), Failure>> {
    let unmet = || Err(Failure::unmet(format!("{} is {}: {}", view.id, view.status, view.status_reason)));
    match view.status {
        RolloutStatus::Completed => Some(Ok(())),
        RolloutStatus::RolledBack | RolloutStatus::Stopped => Some(unmet()),
        RolloutStatus::Paused if until_settled => Some(unmet()),
        RolloutStatus::Draft
        | RolloutStatus::WaitingForApproval
        | RolloutStatus::Ready
        | RolloutStatus::Running
        | RolloutStatus::Paused
        | RolloutStatus::RollingBack => None,
    }
}

/// Where what happens is shown.
enum Screen {
    /// One line of JSON for each change.
    Json,
    /// Lines on standard output.
    Lines,
    /// Bars on standard error.
    Bars(Bars),
}

struct Bars {
    all: MultiProgress,
    status: ProgressBar,
    waves: Vec<ProgressBar>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let status = all.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}") {
            status.set_style(style);
        }
        status.enable_steady_tick(Duration::from_millis(120));
        Self { all, status, waves: Vec::new() }
    }

    fn update(&mut self, before: Option<&RolloutView>, now: &RolloutView, now_ms: u64) {
        while self.waves.len() < now.waves.len() {
            let bar = self.all.add(ProgressBar::new(0));
            if let Ok(style) = ProgressStyle::with_template("  {prefix:<28} [{bar:30}] {pos:>4}/{len:<4} {wide_msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            self.waves.push(bar);
        }
        for (index, (bar, wave)) in self.waves.iter().zip(&now.waves).enumerate() {
            let (done, of) = words::arrived(wave, now.status);
            bar.set_length(of);
            bar.set_position(done);
            bar.set_prefix(words::wave_name(index, now.waves.len(), now.spec.waves.get(index)));
            bar.set_message(output::clean(&words::progress(wave)));
        }
        self.status.set_prefix(format!("{} {} {}", now.id, now.spec.bundle, now.status));
        let waiting = words::all_waiting(now, now_ms);
        self.status.set_message(output::clean(if waiting.is_empty() { &now.status_reason } else { &waiting }));
        let told = before.map_or(0, |view| view.verdicts.len());
        for line in now.verdicts.iter().skip(told).flat_map(words::verdict) {
            // A terminal that is gone is no reason to stop watching.
            let _ = self.all.println(output::clean(&line));
        }
    }

    fn leave(&self) {
        self.status.finish();
        self.waves.iter().for_each(ProgressBar::abandon);
    }
}

impl Screen {
    fn choose(context: &Context) -> Self {
        if context.output.is_json() {
            Self::Json
        } else if std::io::stderr().is_terminal() {
            Self::Bars(Bars::new())
        } else {
            Self::Lines
        }
    }

    fn update(&mut self, context: &Context, before: Option<&RolloutView>, now: &RolloutView) -> Result<(), Failure> {
        let now_ms = output::now_ms();
        match self {
            Self::Json => match before == Some(now) {
                true => Ok(()),
                false => context.output.show_line(now, |_| String::new()),
            },
            Self::Lines => changes(before, now, now_ms).iter().try_for_each(|line| output::print(line)),
            Self::Bars(bars) => {
                bars.update(before, now, now_ms);
                Ok(())
            }
        }
    }

    /// Says something that is no part of the rollout.
    fn remark(&self, text: &str) {
        match self {
            Self::Json | Self::Lines => output::warn(text),
            Self::Bars(bars) => bars.status.set_message(output::clean(text)),
        }
    }

    fn leave(self, view: &RolloutView) -> Result<(), Failure> {
        match self {
            Self::Json | Self::Lines => Ok(()),
            Self::Bars(bars) => {
                bars.leave();
                // The bars leave the cursor behind the last of them.
                output::note("");
                output::print(&format!("{} {}: {}", view.id, view.status, view.status_reason))
            }
        }
    }
}

async fn watch(context: &Context, client: &ApiClient, id: &RolloutId, options: &WatchOptions) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut screen = Screen::choose(context);
    let mut before: Option<RolloutView> = None;
    let mut silent_since: Option<Instant> = None;
    loop {
        match client.get::<RolloutView>(&["rollouts", id.as_str()], &[]).await {
            Ok(now) => {
                silent_since = None;
                screen.update(context, before.as_ref(), &now)?;
                if let Some(result) = end(&now, options.until_settled) {
                    screen.leave(&now)?;
                    return result;
                }
                before = Some(now);
            }
            // One that was never reached is a wrong address; one that went away is likely to come back.
            Err(failure) if failure.is_unavailable() && before.is_some() => {
                let since = *silent_since.get_or_insert_with(|| {
                    screen.remark(&format!("{failure}; trying again"));
                    Instant::now()
                });
                if since.elapsed() > PATIENCE {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
        let timeout = options.timeout.map(|timeout| Duration::from_millis(timeout.0));
        if timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            let state = before.as_ref().map_or("unknown", |view| view.status.as_str());
            return Err(Failure::unmet(format!("{id} is still {state} after {}", Millis(timeout.map_or(0, as_ms)))));
        }
        tokio::time::sleep(Duration::from_millis(options.interval.0.max(50))).await;
    }
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Follows the rollout `id` to its end.
///
/// # Errors
/// [`Failure`] when it does not complete, or cannot be followed.
pub(super) fn follow(
    context: &Context,
    client: &ApiClient,
    id: &RolloutId,
    options: &WatchOptions,
) -> Result<(), Failure> {
    block_on(watch(context, client, id, options))
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the rollout does not complete, or cannot be followed.
pub(super) fn run(context: &Context, args: &WatchArgs) -> Result<(), Failure> {
    follow(context, &context.client()?, &args.id, &args.options)
}

#[cfg(test)]
mod tests {
    use muster_shared::rollout::{DeviceProgress, Waiting};

    use super::super::words::tests::{failed, running};
    use super::*;

    #[test]
    fn only_changes_are_told() {
        let first = running();
        let lines = changes(None, &first, 0);
        assert_eq!(
            lines,
            [
                "1970-01-01T00:00:00Z  r1 running: started",
                "1970-01-01T00:00:00Z  wave 1/2 (2): 1/2, 1 committed, 1 trial",
                "1970-01-01T00:00:00Z  waiting: soaking until 1970-01-01T00:01:30Z (1m 30s left); 12 of 100 requests",
            ]
        );
        assert_eq!(changes(Some(&first), &first, 5), Vec::<String>::new());

        let mut next = first.clone();
        next.waves[0].devices.values_mut().for_each(|progress| *progress = DeviceProgress::Committed);
        next.waiting = vec![Waiting::TooFewRequests { have: 50, need: 100 }];
        let lines = changes(Some(&first), &next, 0);
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].ends_with("wave 1/2 (2): 2/2, 2 committed") && lines[1].ends_with("waiting: 50 of 100 requests")
        );

        let mut failing = next.clone();
        failing.status = RolloutStatus::RollingBack;
        failing.status_reason = "verdict".into();
        failing.waiting.clear();
        failing.verdicts.push(failed());
        let lines = changes(Some(&next), &failing, 0);
        assert!(lines[0].ends_with("r1 rolling_back: verdict"));
        assert!(lines.iter().any(|line| line.contains("prediction PSI 3.41 > 0.25")));
    }

    #[test]
    fn the_end_is_told_by_the_exit_code() {
        let mut view = running();
        let mut code = |status, until_settled| {
            view.status = status;
            end(&view, until_settled).map(|result| result.map_or_else(|failure| failure.exit_code(), |()| 0))
        };
        assert_eq!(code(RolloutStatus::Completed, false), Some(0));
        assert_eq!(code(RolloutStatus::RolledBack, false), Some(1));
        assert_eq!(code(RolloutStatus::Stopped, false), Some(1));
        assert_eq!(code(RolloutStatus::Paused, false), None);
        assert_eq!(code(RolloutStatus::Paused, true), Some(1));
        assert_eq!(code(RolloutStatus::RollingBack, true), None);
    }
}
