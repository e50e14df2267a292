//! Takes a changed configuration while the agent runs, on SIGHUP: what can be changed is, the rest waits for the next start and is
//! said to. A file that cannot be used changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::sync::watch;

use crate::causes::with_source;
use crate::condition::Condition;
use crate::config::Config;
use crate::log::LogHandle;
use crate::notify;
use crate::time::wall_ms;

/// Where the configuration comes from, and the log whose filter it sets.
pub(crate) struct Source {
    /// Its file; none where all is as it comes.
    pub(crate) file: Option<PathBuf>,
    /// The log.
    pub(crate) log: LogHandle,
}

/// Reads the configuration again whenever it is told to.
pub(crate) struct Reloader {
    /// Where from.
    pub(crate) source: Source,
    /// Takes what takes effect at once.
    pub(crate) settings: watch::Sender<Arc<Config>>,
    /// Shows what came of it.
    pub(crate) condition: Condition,
}

impl Reloader {
    /// Runs as long as there are signals. `status` is what the service manager shows afterwards.
    pub(crate) async fn run(self, mut hangup: Signal, status: String) {
        while hangup.recv().await.is_some() {
            notify::reloading();
            tokio::task::block_in_place(|| self.reload());
            notify::ready(&status);
        }
    }

    fn reload(&self) {
        let Some(file) = &self.source.file else {
            return tracing::warn!("there is nothing to read again: the agent was started without --config");
        };
        let running = Arc::clone(&self.settings.borrow());
        let taken = Config::load(file).and_then(|next| {
            self.source.log.change_filter(&next.log)?;
            Ok(next)
        });
        let next = match taken {
            Ok(next) => next,
            Err(error) => {
                let why = with_source(&error);
                tracing::error!(error = %why, "the configuration is refused: what was in force before still is");
                return self.condition.configure(|configuration| configuration.refused = Some(why));
            }
        };
        let changes = running.changes(&next);
        self.settings.send_replace(Arc::new(running.with_changes_at_once(&next)));
        let words = |names: &[&str]| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        tracing::info!(changed = words(&changes.at_once), "the configuration was read again");
        if !changes.at_restart.is_empty() {
            tracing::warn!(
                waiting = words(&changes.at_restart),
                "a part of the configuration takes effect when the agent is started again"
            );
        }
        self.condition.configure(|configuration| {
            configuration.loaded_at_ms = wall_ms();
            configuration.restart_needed = changes.at_restart;
            configuration.refused = None;
        });
    }
}
