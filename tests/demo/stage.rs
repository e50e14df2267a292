//! What the terminal shows: numbered steps, live bars while something moves, and facts as they are observed.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The terminal.
pub(crate) struct Stage {
    bars: MultiProgress,
    started: Instant,
    step: std::cell::Cell<u32>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)),
            started: Instant::now(),
            step: std::cell::Cell::new(0),
        }
    }

    fn line(&self, text: &str) {
        self.bars.suspend(|| print(text));
    }

    /// A remark before or between steps.
    pub(crate) fn say(&self, text: &str) {
        self.line(text);
    }

    /// A new step begins.
    pub(crate) fn step(&self, title: &str) {
        self.step.set(self.step.get() + 1);
        self.line(&format!("\n[{:>3} s] {}. {title}", self.started.elapsed().as_secs(), self.step.get()));
    }

    /// Something was observed to be true.
    pub(crate) fn observed(&self, fact: &str) {
        self.line(&format!("        ✓ {fact}"));
    }

    /// Something worth reading below a fact.
    pub(crate) fn detail(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("            {line}"));
        }
    }

    /// The story went wrong.
    pub(crate) fn failed(&self, why: &str) {
        self.line(&format!("\n        ✗ {why}"));
    }

    /// The story is told and the fleet stays.
    pub(crate) fn stays_up(&self, text: &str) {
        self.line(text);
    }

    /// A bar that fills up to `length`.
    pub(crate) fn bar(&self, length: u64, what: &str) -> ProgressBar {
        let style = ProgressStyle::with_template("        {spinner} {msg:<52} [{bar:30}] {pos}/{len}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("█▉░");
        let bar = self.bars.add(ProgressBar::new(length)).with_style(style).with_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }
}

#[expect(clippy::print_stdout, reason = "the demo's purpose is to tell a story on the terminal")]
fn print(text: &str) {
    println!("{text}");
}
