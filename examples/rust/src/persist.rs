//! Asking until there is an answer, a number of times.

use bytes::Bytes;

use crate::ask::Agent;
use crate::backoff;
use crate::verdict::{Prediction, Verdict, verdict};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum GivenUp {
    /// To ask again would change nothing.
    #[error("{0}")]
    Refused(String),
    /// It did not pass in time.
    #[error("given up after {attempts} attempts: {reason}")]
    Exhausted {
        /// How often it was tried.
        attempts: u32,
        /// What was wrong at last.
        reason: String,
    },
}

/// Asks `agent` at most `attempts` times, with pauses in between; `report` hears of each and why. To stop it, drop it.
///
/// # Errors
/// [`GivenUp`].
pub async fn persist(
    agent: &Agent,
    body: Bytes,
    attempts: u32,
    report: impl Fn(std::time::Duration, &str),
) -> Result<Prediction, GivenUp> {
    let mut attempt = 1;
    loop {
        match verdict(&agent.ask(body.clone()).await) {
            Verdict::Answered(prediction) => return Ok(prediction),
            Verdict::Never(reason) => return Err(GivenUp::Refused(reason)),
            Verdict::Later(reason) if attempt >= attempts => {
                return Err(GivenUp::Exhausted { attempts, reason });
            }
            Verdict::Later(reason) => {
                let pause = backoff::pause(attempt, backoff::chance());
                report(pause, &reason);
                tokio::time::sleep(pause).await;
                attempt += 1;
            }
        }
    }
}
