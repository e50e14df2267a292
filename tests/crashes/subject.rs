//! A device that is made to die, asked between its deaths, and brought from release to release.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use muster_shared::messages::UpdateState;
use muster_tests::fleet::PATIENCE;
use muster_tests::wait;

use crate::Outcome;
use crate::folder::{self, Record};
use crate::ledger::Ledger;
use crate::life::{Answer, Client, Life};
use crate::plan::{End, Plan};
use crate::random::Random;
use crate::stage::{Stage, Taken, VERSIONS};

/// Pause between two things asked of a device.
const PAUSE: Duration = Duration::from_millis(8);
/// Pause between looks at what the controller knows of it.
const LOOK: Duration = Duration::from_millis(60);
/// Windows that close before all that was asked lies in closed ones: the last of a model that was replaced, and the current one.
const CLOSING: u64 = 2;
/// Windows that close before those are stored for certain: three that come of a change of model, and one to which the agent comes only
/// after storing what it had.
const STORING: u64 = 4;

/// What a device is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// It answers.
    Answer,
    /// The controller knows it to have committed this generation.
    Committed(u64),
    /// Everything asked has settled and been delivered.
    Quiet,
}

/// Why watching ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The goal was reached.
    Reached,
    /// The agent died, as it was to.
    Died,
    /// The device has given the update up, in its words.
    GaveUp(String),
}

/// A device and everything known of it.
pub(crate) struct Subject {
    pub(crate) stage: Arc<Stage>,
    pub(crate) id: String,
    pub(crate) home: PathBuf,
    pub(crate) random: Random,
    pub(crate) life: Option<Life>,
    client: Client,
    ledger: Ledger,
    /// The version that answered last: whose examples are asked next.
    version: String,
    asked: usize,
    /// Where in [`VERSIONS`] the device stands.
    at: usize,
    /// The last life was seen to answer.
    answered: bool,
    last_try: bool,
    /// Chunks that were not durable at the last death, and the generation of their update.
    missing: Option<(u64, u32)>,
    pub(crate) updates: u32,
    /// What it ran may be lost to damage; then it falls back to whatever its other slot holds.
    pub(crate) falls_back: bool,
}

impl Subject {
    pub(crate) fn new(stage: &Arc<Stage>, taken: Taken, random: Random) -> anyhow::Result<Self> {
        Ok(Self {
            stage: Arc::clone(stage),
            client: Client::new(&taken.url)?,
            id: taken.id,
            home: taken.home,
            random,
            life: None,
            ledger: Ledger::default(),
            version: VERSIONS[0].to_owned(),
            asked: 0,
            at: 0,
            answered: true,
            last_try: false,
            missing: None,
            updates: 0,
            falls_back: false,
        })
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Dies again and again while it is brought from release to release, until enough has died.
    pub(crate) async fn be_killed(mut self, plan: Arc<Mutex<Plan>>) -> Outcome {
        let lock = || plan.lock().unwrap_or_else(PoisonError::into_inner);
        let mut deaths = 0;
        while !lock().is_done() {
            let (rollout, generation) = self.next_update().await?;
            for goal in [Goal::Committed(generation), Goal::Quiet] {
                loop {
                    if self.life.is_none() {
                        self.revive(|random| lock().next(random)).await?;
                    }
                    match self.live(goal).await? {
                        Stop::Reached => break,
                        Stop::GaveUp(why) => bail!("{}: generation {generation} was given up: {why}", self.id),
                        Stop::Died => {
                            deaths += 1;
                            let all = lock().died(&self.bury()?);
                            if all.is_multiple_of(50) {
                                println!("{all} kills");
                            }
                        }
                    }
                }
            }
            self.reckon(true).await?;
            self.stage.end_rollout(&rollout).await?;
            if let Some(life) = &mut self.life {
                life.updates += 1;
                match life.end.clone() {
                    End::At(target) if life.updates >= 2 => {
                        lock().missed(target);
                        life.end_with(Plan::at_random(&mut self.random));
                    }
                    End::Open => life.end_with(Plan::at_random(&mut self.random)),
                    End::At(_) | End::After(..) => {}
                }
            }
        }
        let (requests, risked) = self.ledger.total();
        Ok(format!(
            "{} died {deaths} times in {} updates, and {requests} requests add up, {risked} of which were at risk",
            self.id, self.updates
        ))
    }

    /// Has the next release assigned; gives the rollout and the generation.
    pub(crate) async fn next_update(&mut self) -> anyhow::Result<(String, u64)> {
        self.at = (self.at + 1) % VERSIONS.len();
        self.updates += 1;
        self.assign_again().await
    }

    /// Has the release it is to have assigned once more.
    pub(crate) async fn assign_again(&self) -> anyhow::Result<(String, u64)> {
        self.stage.assign(&self.id, VERSIONS[self.at]).await
    }

    /// Lives until it has committed what `rollout` assigned under `generation`. An update that is given up (for want of room, or because what the
    /// device had is damaged), which it says, is brought out again by its operator; counted in `repeated`. Gives the last rollout.
    pub(crate) async fn see_through(
        &mut self,
        mut rollout: String,
        mut generation: u64,
        repeated: &mut usize,
    ) -> anyhow::Result<String> {
        loop {
            match self.live(Goal::Committed(generation)).await? {
                Stop::Reached => return Ok(rollout),
                Stop::Died => bail!("{} died by itself", self.id),
                Stop::GaveUp(_) => {
                    *repeated += 1;
                    self.stage.end_rollout(&rollout).await?;
                    (rollout, generation) = self.assign_again().await?;
                }
            }
        }
    }

    /// Starts the agent.
    pub(crate) fn begin(&mut self, end: End) -> anyhow::Result<()> {
        let mut life = Life::begin(&self.id, &self.stage.fleet.binaries.agent, &self.home, end)?;
        life.missing = self.missing.take();
        self.life = Some(life);
        Ok(())
    }

    /// Starts the agent, to end as `next` says. A life that follows on one that was too short to answer, or that is the last the bundle
    /// gets, is left alone until it has answered, and in the second case for as long as the update takes.
    async fn revive(&mut self, next: impl FnOnce(&mut Random) -> End) -> anyhow::Result<()> {
        if self.answered && !self.last_try {
            let end = next(&mut self.random);
            return self.begin(end);
        }
        self.begin(End::Open)?;
        self.live(Goal::Answer).await?;
        if let (Some(life), false) = (&mut self.life, self.last_try) {
            life.end_with(Plan::at_random(&mut self.random));
        }
        Ok(())
    }

    /// Notes a death; gives how it had been planned.
    pub(crate) fn bury(&mut self) -> anyhow::Result<End> {
        let life = self.life.take().context("nobody has died")?;
        self.ledger.died();
        self.answered = life.answered;
        let record = Record::read(&self.data())?;
        self.last_try = record.is_at_its_last_try();
        self.missing = record.missing();
        Ok(life.end.clone())
    }

    /// What is durable was changed since the last death: how many chunks are missing is not known any more.
    pub(crate) fn forget_missing(&mut self) {
        self.missing = None;
    }

    /// Whether another death would be one too many for the bundle under test.
    pub(crate) fn is_at_its_last_try(&self) -> bool {
        self.last_try
    }

    /// Asks the device, and watches it, until `goal` is reached or it has died.
    pub(crate) async fn live(&mut self, goal: Goal) -> anyhow::Result<Stop> {
        let (began, mut looked) = (Instant::now(), None::<Instant>);
        let mut to_ask = 3 + self.random.below(12);
        let mut settling = None::<(u64, Option<u64>)>;
        loop {
            let life = self.life.as_mut().context("nobody lives")?;
            if life.has_died().with_context(|| format!("{} {:?}", self.id, life.end))? {
                return Ok(Stop::Died);
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "{}: {goal:?} was not reached in {} s. Its log ends:\n{}",
                self.id,
                PATIENCE.as_secs(),
                life.log_tail()
            );
            if !life.answered || to_ask > 0 && goal != Goal::Quiet {
                self.ask().await?;
                to_ask = to_ask.saturating_sub(1);
            } else if let Some(gauges) = self.client.gauges().await {
                let closed = gauges.windows_closed;
                let (from, stored_from) = settling.get_or_insert((closed, None));
                if closed >= *from + CLOSING && closed >= *stored_from.get_or_insert(closed) + STORING {
                    self.ledger.settle();
                    if goal == Goal::Quiet && gauges.waiting == 0 {
                        return Ok(Stop::Reached);
                    }
                    settling = None;
                    to_ask = 3 + self.random.below(12);
                }
            }
            let answered = self.life.as_ref().is_some_and(|life| life.answered);
            match goal {
                Goal::Answer if answered => return Ok(Stop::Reached),
                Goal::Committed(generation) if answered && looked.is_none_or(|at| at.elapsed() >= LOOK) => {
                    looked = Some(Instant::now());
                    if let Some(stop) = self.look(generation).await? {
                        return Ok(stop);
                    }
                }
                Goal::Answer | Goal::Committed(_) | Goal::Quiet => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What the controller knows of `generation`, where that is the end of it.
    async fn look(&mut self, generation: u64) -> anyhow::Result<Option<Stop>> {
        let reported = self.stage.api.device(self.id.as_str()).await?.reported;
        let Some(reported) = reported.filter(|reported| reported.update.generation == generation) else {
            return Ok(None);
        };
        match reported.update.state {
            UpdateState::Committed => {}
            UpdateState::Failed | UpdateState::Reverted => {
                return Ok(Some(Stop::GaveUp(reported.update.reason.unwrap_or_default())));
            }
            UpdateState::Idle
            | UpdateState::Fetching
            | UpdateState::Verified
            | UpdateState::Beside
            | UpdateState::Trial
            | UpdateState::Other => return Ok(None),
        }
        let committed = reported.committed.with_context(|| format!("{} has committed nothing", self.id))?;
        let version = committed.bundle.version.to_string();
        ensure!(
            committed.generation == generation && version == VERSIONS[self.at],
            "{} has committed {committed:?} where {} was assigned under {generation}",
            self.id,
            VERSIONS[self.at]
        );
        let gauges = self.client.gauges().await;
        if let (Some(life), Some(gauges)) = (&self.life, gauges)
            && let Some((_, missing)) = life.missing.filter(|(of, _)| *of == generation && life.updates == 0)
        {
            ensure!(
                gauges.chunks == u64::from(missing),
                "{} took {} chunks after its last start where {missing} were not durable yet",
                self.id,
                gauges.chunks
            );
        }
        Ok(Some(Stop::Reached))
    }

    /// Asks once, and holds the answer against the golden examples of the version it claims to be from.
    async fn ask(&mut self) -> anyhow::Result<()> {
        self.asked += 1;
        let example = self.stage.example(&self.version, self.asked)?.clone();
        let answer = self.client.infer(&example).await;
        let life = self.life.as_mut().context("nobody lives")?;
        match answer {
            Answer::Given { version, outputs } => {
                life.answered = true;
                self.ledger.answered(&version);
                // The example is another version's: the next one will be this version's own.
                if version == self.version {
                    self.stage.check(&version, &example, &outputs).with_context(|| self.id.clone())?;
                }
                let around = [VERSIONS[self.at], VERSIONS[(self.at + VERSIONS.len() - 1) % VERSIONS.len()]];
                ensure!(
                    around.contains(&version.as_str()) || self.falls_back,
                    "{}: {version} answers, which is neither the incumbent nor its successor: {around:?}",
                    self.id
                );
                self.version = version;
            }
            Answer::Lost => self.ledger.unanswered(),
            // Before it is ready it may say so; afterwards it has no reason to.
            Answer::Refused(why) => {
                let may = !life.answered || matches!(life.end, End::After(_, Some(_)));
                ensure!(may, "{}: a request was turned away: {why}", self.id);
            }
            Answer::NotSent => {}
        }
        Ok(())
    }

    /// Holds what the controller has counted, and what is left in the data folder, against what must be. The device must be quiet.
    pub(crate) async fn reckon(&mut self, nothing_was_damaged: bool) -> anyhow::Result<()> {
        let counted = self.stage.api.counted(&self.id, &VERSIONS).await?;
        self.ledger.reckon(counted, nothing_was_damaged).map_err(|why| anyhow::anyhow!("{}: {why}", self.id))?;
        let data = self.data();
        let explain = async || format!("{:?}", folder::leftovers(&data, !nothing_was_damaged));
        let what = format!("nothing is left over in {}", data.display());
        wait::until_explained(
            &what,
            Duration::from_secs(10),
            async || {
                // Whoever dies meanwhile may well leave something, and is looked at after the next update.
                let dead = self.life.as_mut().is_none_or(|life| life.has_died().unwrap_or(true));
                let left = folder::leftovers(&data, !nothing_was_damaged).unwrap_or_default();
                Ok((dead || left.is_empty()).then_some(()))
            },
            explain,
        )
        .await
    }
}
