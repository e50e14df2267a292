//! Waiting for something to become true, never for a time.

use std::time::{Duration, Instant};

use anyhow::bail;

const POLL: Duration = Duration::from_millis(25);

/// Asks `probe` again and again until it answers `Some`, at most for `limit`.
///
/// # Errors
/// What `probe` fails with, or that `what` did not happen in time, with its last answer of `None` explained by
/// `explain`.
pub async fn until_explained<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
    explain: impl AsyncFn() -> String,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe().await? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {} s. {}", limit.as_secs(), explain().await);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// [`until_explained`] without an explanation.
///
/// # Errors
/// What `probe` fails with, or that `what` did not happen in time.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    until_explained(what, limit, probe, async || String::new()).await
}
