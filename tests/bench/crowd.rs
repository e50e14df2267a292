//! Many simulated devices at once, and what they see.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use muster_shared::ids::DeviceId;
use muster_shared::token::EnrolmentToken;
use muster_tests::fleet::{Fleet, PATIENCE};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::samples::Samples;
use crate::simulated::{self, Fetching, Note, Papers};

/// Requests to enrol that are under way at once.
const ENROLLING: usize = 8;
/// Devices that connect at once.
const CONNECTING: usize = 64;
/// All fetch at the same pace, so that none may be through for as long as all of it takes.
const FETCH_PATIENCE: Duration = Duration::from_secs(1_800);

/// Gives papers to `devices` devices.
///
/// # Errors
/// When the controller refuses one.
pub(crate) async fn enrol(fleet: &Fleet, client: &reqwest::Client, devices: u32) -> anyhow::Result<Vec<Papers>> {
    let token: EnrolmentToken = fleet.enrolment_token(usize::try_from(devices)?).await?.parse()?;
    stream::iter(1..=devices)
        .map(|number| {
            let token = &token;
            async move { simulated::enrol(client, token, DeviceId::new(format!("sim-{number:06}"))?).await }
        })
        .buffer_unordered(ENROLLING)
        .try_collect()
        .await
}

/// When something came to all, and how many bytes that were.
pub(crate) struct Reached {
    pub(crate) times: Samples,
    pub(crate) payload_bytes: u64,
}

/// All simulated devices. They end when it is dropped.
pub(crate) struct Crowd {
    notes: mpsc::UnboundedReceiver<Note>,
    pub(crate) repeated: u32,
    pub(crate) lost: u32,
    pub(crate) last_lost: Option<String>,
    /// Holds the devices; a dropped set ends its tasks.
    _devices: JoinSet<()>,
}

impl Crowd {
    /// Connects all of them.
    pub(crate) fn gather(papers: Vec<Papers>, fetching: Fetching) -> Self {
        let (sender, notes) = mpsc::unbounded_channel();
        let connecting = Arc::new(Semaphore::new(CONNECTING));
        let mut devices = JoinSet::new();
        for one in papers {
            devices.spawn(simulated::live(one, fetching, Arc::clone(&connecting), sender.clone()));
        }
        Self { notes, repeated: 0, lost: 0, last_lost: None, _devices: devices }
    }

    /// The next note that `pick` takes; notes that only count are counted.
    async fn next<T>(
        &mut self,
        what: &str,
        patience: Duration,
        pick: impl Fn(&Note) -> Option<T>,
    ) -> anyhow::Result<T> {
        loop {
            let note = tokio::time::timeout(patience, self.notes.recv())
                .await
                .with_context(|| {
                    let lost = self.last_lost.as_deref().unwrap_or("none lost its connection");
                    format!(
                        "no simulated device {what} for {} s; {} connections were lost: {lost}",
                        patience.as_secs(),
                        self.lost
                    )
                })?
                .context("every simulated device has ended")?;
            if let Some(picked) = pick(&note) {
                return Ok(picked);
            }
            match note {
                Note::Known | Note::Assigned { .. } | Note::Fetched { .. } => {}
                Note::AssignedAgain => self.repeated += 1,
                Note::Lost { reason } => {
                    self.lost += 1;
                    self.last_lost = Some(reason);
                }
                Note::GaveUp { reason } => bail!("a simulated device gave up: {reason}"),
            }
        }
    }

    /// Waits until the controller has stored the state of each.
    ///
    /// # Errors
    /// When that does not happen.
    pub(crate) async fn wait_known(&mut self, devices: u32) -> anyhow::Result<()> {
        for _ in 0..devices {
            self.next("became known", PATIENCE, |note| matches!(note, Note::Known).then_some(())).await?;
        }
        Ok(())
    }

    /// Waits until each has an assignment, and gives the times since `started`.
    ///
    /// # Errors
    /// When that does not happen.
    pub(crate) async fn wait_assigned(&mut self, devices: u32, started: Instant) -> anyhow::Result<Reached> {
        let assigned = |note: &Note| match note {
            Note::Assigned { at, payload_bytes } => Some((*at, *payload_bytes as u64)),
            Note::Known | Note::AssignedAgain | Note::Fetched { .. } | Note::Lost { .. } | Note::GaveUp { .. } => None,
        };
        self.wait_all("got an assignment", PATIENCE, devices, started, assigned).await
    }

    /// Waits until each has the whole bundle, and gives the times since `started`.
    ///
    /// # Errors
    /// When that does not happen.
    pub(crate) async fn wait_fetched(&mut self, devices: u32, started: Instant) -> anyhow::Result<Reached> {
        let fetched = |note: &Note| match note {
            Note::Fetched { at, bytes } => Some((*at, *bytes)),
            Note::Known | Note::Assigned { .. } | Note::AssignedAgain | Note::Lost { .. } | Note::GaveUp { .. } => None,
        };
        self.wait_all("had fetched its bundle", FETCH_PATIENCE, devices, started, fetched).await
    }

    async fn wait_all(
        &mut self,
        what: &str,
        patience: Duration,
        devices: u32,
        started: Instant,
        pick: impl Fn(&Note) -> Option<(Instant, u64)>,
    ) -> anyhow::Result<Reached> {
        let mut reached = Reached { times: Samples::default(), payload_bytes: 0 };
        for _ in 0..devices {
            let (at, bytes) = self.next(what, patience, &pick).await?;
            reached.times.push(at.saturating_duration_since(started));
            reached.payload_bytes += bytes;
        }
        Ok(reached)
    }
}
