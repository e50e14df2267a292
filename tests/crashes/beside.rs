//! A model beside the incumbent, whose agent dies where it begins, runs and ends.
//!
//! The incumbent must answer after every death, what was to run beside it must run again or have ended, and nothing may be counted twice.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use muster_shared::messages::UpdateState;
use muster_shared::rollout::RolloutStatus;
use muster_tests::fleet::PATIENCE;
use muster_tests::wait;

use crate::Outcome;
use crate::life::{Answer, Client, Life};
use crate::plan::{End, Target};
use crate::stage::{Stage, Taken, VERSIONS};

/// What the names of the steps begin with that belong here.
pub(crate) const PREFIX: &str = "beside-";
/// Asked in a life that is left alone, all of which must be counted.
const CALM: u64 = 20;

/// How the second model runs, and at which step the agent dies meanwhile.
struct Death {
    step: &'static str,
    part: &'static [&'static str],
    /// The rollout is taken back before.
    at_the_end: bool,
}

const SHADOW: &[&str] = &["--stage", "shadow"];
const SPLIT: &[&str] = &["--stage", "split", "--share", "50%", "--experiment", "crashes"];

const DEATHS: [Death; 7] = [
    Death { step: "beside-stored", part: SHADOW, at_the_end: false },
    Death { step: "beside-begun", part: SHADOW, at_the_end: false },
    Death { step: "beside-run", part: SHADOW, at_the_end: false },
    Death { step: "beside-ended", part: SHADOW, at_the_end: true },
    Death { step: "beside-begun", part: SPLIT, at_the_end: false },
    Death { step: "beside-answered", part: SPLIT, at_the_end: false },
    Death { step: "beside-ended", part: SPLIT, at_the_end: true },
];

/// A device and what was asked of it.
struct Subject {
    stage: Arc<Stage>,
    device: Taken,
    client: Client,
    /// Answers of the incumbent in lives that were left alone, in all lives, and requests without an answer.
    calm: u64,
    answered: u64,
    unanswered: u64,
    /// The same for requests that fell to the second model, as far as they were answered in its name.
    by_second: u64,
}

/// Kills one device at every step of `steps` that is about a model beside another.
pub(crate) async fn run(stage: Arc<Stage>, device: Taken, steps: Vec<String>) -> Outcome {
    let unknown = steps.iter().find(|step| step.starts_with(PREFIX) && DEATHS.iter().all(|death| death.step != **step));
    ensure!(unknown.is_none(), "nothing dies at {unknown:?}");
    let client = Client::new(&device.url)?;
    let mut subject = Subject { stage, device, client, calm: 0, answered: 0, unanswered: 0, by_second: 0 };
    for death in &DEATHS {
        subject.die(death).await.with_context(|| format!("{} in {:?}", death.step, death.part))?;
    }
    subject.reckon().await?;
    Ok(format!("{} deaths, {} answers", DEATHS.len(), subject.answered + subject.by_second))
}

impl Subject {
    fn begin(&self, end: End) -> anyhow::Result<Life> {
        Life::begin(&self.device.id, &self.stage.fleet.binaries.agent, &self.device.home, end)
    }

    /// Asks once; whether there was an answer.
    async fn ask(&mut self, is_split: bool) -> anyhow::Result<bool> {
        let example = self.stage.example(VERSIONS[0], 0)?;
        match self.client.infer(example).await {
            Answer::Given { version, outputs } if version == VERSIONS[0] => {
                self.stage.check(&version, example, &outputs)?;
                self.answered += 1;
                return Ok(true);
            }
            Answer::Given { version, .. } => {
                ensure!(is_split && version == VERSIONS[1], "{version} answers");
                self.by_second += 1;
                return Ok(true);
            }
            Answer::Lost => self.unanswered += 1,
            Answer::Refused(_) | Answer::NotSent => {}
        }
        Ok(false)
    }

    async fn is_beside(&self, generation: u64) -> anyhow::Result<bool> {
        let reported = self.stage.api.device(&self.device.id).await?.reported;
        Ok(reported
            .is_some_and(|report| (report.update.generation, report.update.state) == (generation, UpdateState::Beside)))
    }

    async fn take_back(&self, rollout: &str, is_split: bool) -> anyhow::Result<()> {
        // Both end what runs beside.
        let how = if is_split { "rollback" } else { "abort" };
        self.stage.fleet.operator.run(&["rollout", how, rollout]).await.map(drop)
    }

    async fn die(&mut self, death: &Death) -> anyhow::Result<()> {
        let is_split = std::ptr::eq(death.part, SPLIT);
        let end = End::At(Target::first(death.step));
        let mut life = self.begin(end)?;
        let (rollout, generation) = self.stage.assign_beside(&self.device.id, VERSIONS[1], death.part).await?;
        let mut taken_back = false;
        wait::until("the agent dies where it is to", PATIENCE, async || {
            self.ask(is_split).await?;
            if death.at_the_end && !taken_back && self.is_beside(generation).await? {
                self.take_back(&rollout, is_split).await?;
                taken_back = true;
            }
            Ok(life.has_died()?.then_some(()))
        })
        .await
        .with_context(|| life.log_tail())?;
        drop(life);

        let mut life = self.begin(End::Open)?;
        wait::until("it answers again", PATIENCE, async || Ok(self.ask(is_split).await?.then_some(()))).await?;
        if !death.at_the_end {
            wait::until("it runs beside again", PATIENCE, async || Ok(self.is_beside(generation).await?.then_some(())))
                .await
                .with_context(|| life.log_tail())?;
        }
        let before = self.answered;
        let mut asked = 0;
        while asked < CALM {
            asked += u64::from(self.ask(is_split && !death.at_the_end).await?);
        }
        self.calm += self.answered - before;
        if !death.at_the_end {
            self.take_back(&rollout, is_split).await?;
        }
        self.stage.fleet.wait_rollout(&rollout, RolloutStatus::RolledBack).await.with_context(|| life.log_tail())?;
        self.quiet().await?;
        ensure!(!life.has_died()?, "it died unasked");
        life.kill()
    }

    /// Waits until everything asked is in closed windows, and these are delivered.
    async fn quiet(&self) -> anyhow::Result<()> {
        let mut since = None;
        wait::until("everything is delivered", PATIENCE, async || {
            let Some(gauges) = self.client.gauges().await else { return Ok(None) };
            let first = *since.get_or_insert(gauges.windows_closed);
            Ok((gauges.windows_closed >= first + 6 && gauges.waiting == 0).then_some(()))
        })
        .await
    }

    /// Holds what the controller has counted against what was asked.
    async fn reckon(&self) -> anyhow::Result<()> {
        let counted = self.stage.api.counted(&self.device.id, &VERSIONS[..1]).await?;
        let incumbent = counted.get(VERSIONS[0]).copied().unwrap_or_default();
        let most = self.answered + self.unanswered;
        ensure!(
            (self.calm..=most).contains(&incumbent),
            "{incumbent} of the incumbent's answers are counted, which must be {} to {most}",
            self.calm
        );
        let (requests, compared) = self.stage.api.beside(&self.device.id, VERSIONS[1]).await?;
        // Every answer may have been shadowed, and each request that fell to the second model is its own.
        let most = most + self.by_second;
        ensure!(requests > 0 && requests <= most, "{requests} requests of the second model, of {most}");
        ensure!(compared > 0 && compared <= self.answered + self.unanswered, "{compared} requests compared");
        Ok(())
    }
}
