//! Takes closed windows from the monitor to the outbox, and reminds the outbox of what it could not store.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use crate::monitor::{ClosedWindow, Monitor};
use crate::outbox::Outbox;
use crate::pressure::Pressed;
use crate::program::KnownAs;
use crate::resources;
use crate::system::System;
use crate::time::{Steady, wall_ms};

/// The longest pause between looks at the monitor, in milliseconds: a change of model closes a window at any time.
const LOOK_MS: u64 = 1_000;

/// Carries windows over.
#[derive(Clone)]
pub(crate) struct Pump {
    /// Of the model that answers, and of one beside it.
    pub(crate) monitors: [Monitor; 2],
    pub(crate) outbox: Outbox,
    pub(crate) data_dir: PathBuf,
    pub(crate) started: Steady,
    pub(crate) system: System,
    pub(crate) pressed: Pressed,
    /// The program that counts.
    pub(crate) program: KnownAs,
}

impl Pump {
    /// Runs until `stop` becomes true.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let now_ms = wall_ms();
            match self.next_close_ms() {
                Some(at_ms) if at_ms <= now_ms => {
                    let resources = resources::now(&self.system, self.started, &self.data_dir, &self.pressed);
                    let windows: Vec<_> =
                        self.monitors.iter().flat_map(|monitor| monitor.close_due(now_ms, resources)).collect();
                    // What is due may still wait for requests under way; then the pause below must not be left out.
                    if !windows.is_empty() {
                        self.keep(windows);
                        continue;
                    }
                }
                Some(_) | None => {}
            }
            tokio::task::block_in_place(|| self.outbox.retry());
            let due_in_ms = self.next_close_ms().map_or(LOOK_MS, |at| at.saturating_sub(now_ms));
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(due_in_ms.clamp(10, LOOK_MS))) => {}
                _ = stop.changed() => {}
            }
        }
    }

    /// Closes every window, over or not: the agent stops.
    pub(crate) fn close_all(&self) {
        let resources = resources::now(&self.system, self.started, &self.data_dir, &self.pressed);
        self.keep(self.monitors.iter().flat_map(|monitor| monitor.close_all(wall_ms(), resources)).collect());
    }

    fn next_close_ms(&self) -> Option<u64> {
        self.monitors.iter().filter_map(Monitor::next_close_ms).min()
    }

    fn keep(&self, windows: Vec<ClosedWindow>) {
        // Making them durable blocks this thread; the runtime gives the others' work to another.
        tokio::task::block_in_place(|| {
            passing!(WindowClosed);
            for mut window in windows {
                window.telemetry.program = self.program.get();
                self.outbox.window(&window);
            }
        });
    }
}
