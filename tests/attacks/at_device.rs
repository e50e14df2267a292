//! An attack on a device whose broker is the attacker's: what is sent, what the device says, and what it must not have done.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use muster_shared::messages::{
    AssignmentDelivery, CollectionsDelivery, Command, DeviceEvent, DeviceEventKind, RootDelivery,
};
use muster_tests::device::{Device, DeviceSetup};
use muster_tests::traffic::Traffic;
use muster_tests::wait;

use crate::attack::{AtDevice, Attack, Step, Told};
use crate::broker::{Answers, Broker};
use crate::forge::{Forge, digest_of};
use crate::listing::{self, Listing};
use crate::stage::{DEVICE, Ground, INCUMBENT, SETTINGS};

const PATIENCE: Duration = Duration::from_secs(30);
/// Requests that are answered after the attack is over.
const ANSWERS_AFTERWARDS: u64 = 20;
/// Twice what the agent needs when it is built for debugging; less than what the attacks on its memory unpack to.
const MOST_MEMORY_KIB: u64 = 80 * 1024;
/// What every life of an agent writes, besides what it is told: below the folder of the device.
const WRITTEN_BY_EVERY_LIFE: [&str; 8] = [
    "agent.log",
    "agent.toml",
    "data/outbox",
    "data/outbox.epoch",
    "data/run",
    "data/endpoints.json",
    "data/lock",
    // What the record said before, which it no longer does where it may change.
    "data/slots/record.json.before",
];
/// How long the device may take for a self-test before it is asked again.
const SAID_AGAIN: Duration = Duration::from_secs(3);
/// Nobody is to fill a device's log from afar.
const LONGEST_LOG_BYTES: usize = 64 * 1024;
const SELF_TEST: &str = "self-test passed";

/// The device under attack, and all that is known about it.
struct Victim<'a> {
    forge: Forge<'a>,
    scene: &'a AtDevice,
    broker: &'a mut Broker,
    device: Device,
    traffic: Traffic,
}

/// Carries `attack` out in `surroundings`, which must not be there yet.
///
/// # Errors
/// When the device does not withstand it as expected.
pub(crate) async fn run(
    ground: &Ground,
    broker: &mut Broker,
    attack: &Attack,
    scene: &AtDevice,
    surroundings: &Path,
) -> anyhow::Result<()> {
    let folder = surroundings.join("device");
    std::fs::create_dir_all(surroundings.join("neighbour"))?;
    std::fs::write(surroundings.join("neighbour/diary.txt"), "nobody else's business\n")?;
    listing::copy(&ground.baseline(), &folder.join("data"))?;
    let written: Vec<PathBuf> = WRITTEN_BY_EVERY_LIFE.iter().map(PathBuf::from).collect();
    let written: Vec<PathBuf> = written
        .into_iter()
        .chain(scene.writes.iter().map(|path| Path::new("data").join(path)))
        .map(|path| Path::new("device").join(path))
        .collect();
    let before = Listing::of(surroundings, &written)?;

    let mut victim = Victim::begin(ground, broker, attack, scene, surroundings).await?;
    victim.take_all().await?;
    victim.wait_refused().await?;
    victim.check_serving().await?;
    victim.end().await?;
    let changes = before.changes(&Listing::of(surroundings, &written)?);
    ensure!(changes.is_empty(), "written where nothing may be: {}", changes.join("; "));
    Ok(())
}

/// Carries out what is no attack, in the same way: the device must take it. Otherwise it would refuse attacks for the wrong reasons.
///
/// # Errors
/// When the device does not.
pub(crate) async fn control(
    ground: &Ground,
    broker: &mut Broker,
    genuine: &Attack,
    scene: &AtDevice,
    surroundings: &Path,
) -> anyhow::Result<()> {
    listing::copy(&ground.baseline(), &surroundings.join("device/data"))?;
    let mut victim = Victim::begin(ground, broker, genuine, scene, surroundings).await?;
    victim.take_all().await?;
    let on_trial = wait::until("a genuine update goes on trial", PATIENCE, async || {
        Ok(victim.told().iter().any(|event| event.kind == DeviceEventKind::Trial).then_some(()))
    });
    on_trial.await.with_context(|| format!("the device has told: {}", victim.words()))?;
    victim.end().await
}

/// How requests for chunks are answered: every bundle the attack delivers is known.
fn answers(forge: &Forge<'_>, scene: &AtDevice) -> anyhow::Result<Answers> {
    let mut answers = Answers { chunks: scene.chunks.clone(), ..Answers::default() };
    let Some(chunks) = &scene.chunks else { return Ok(answers) };
    if let Some(release) = &chunks.of {
        let (_, source) = forge.ground.releases.get(release).with_context(|| format!("no release {release:?}"))?;
        answers.source = Some(source.clone());
    }
    answers.body = chunks.body.as_ref().map(|name| forge.attack.file(name)).transpose()?;
    Ok(answers)
}

impl<'a> Victim<'a> {
    /// Starts the device on the data folder that is in `surroundings` already.
    async fn begin(
        ground: &'a Ground,
        broker: &'a mut Broker,
        attack: &'a Attack,
        scene: &'a AtDevice,
        surroundings: &'a Path,
    ) -> anyhow::Result<Self> {
        let forge = Forge { ground, attack, surroundings };
        broker.begin(answers(&forge, scene)?);
        let settings = format!("{SETTINGS}chunk-timeout-ms = 500\n[samples]\nallow = true\n");
        let setup = DeviceSetup { id: DEVICE, token: &ground.token, window_ms: 500, settings: &settings };
        let device = Device::start(&ground.fleet.binaries, &surroundings.join("device"), &setup, None).await?;
        let mut traffic = Traffic::new(ground.images.clone(), Duration::from_millis(10));
        traffic.start(DEVICE, &device.inference_url);
        traffic.expect(DEVICE, true);
        let mut victim = Self { forge, scene, broker, device, traffic };
        victim.wait_online(1).await?;
        Ok(victim)
    }

    async fn take_all(&mut self) -> anyhow::Result<()> {
        for (number, step) in self.scene.steps.iter().enumerate() {
            self.take(step).await.with_context(|| format!("step {}", number + 1))?;
        }
        Ok(())
    }

    async fn wait_online(&mut self, arrivals: usize) -> anyhow::Result<()> {
        wait::until("the device is online", PATIENCE, async || {
            self.device.process_mut().ensure_running()?;
            let heard = self.broker.heard();
            Ok((heard.online && heard.arrivals >= arrivals).then_some(()))
        })
        .await
    }

    async fn take(&mut self, step: &Step) -> anyhow::Result<()> {
        let forge = &self.forge;
        match step {
            Step::Assign { assignment, manifest } => {
                let delivered = manifest.as_ref().map(|manifest| forge.make(manifest, None)).transpose()?;
                let delivery =
                    AssignmentDelivery { assignment: forge.make(assignment, delivered.as_ref())?, manifest: delivered };
                if let (Some(document), Some(envelope)) = (manifest, &delivery.manifest)
                    && let Some(content) = forge.content(document, envelope)?
                {
                    self.broker.offer(digest_of(envelope)?, content);
                }
                self.broker.say("assignment", serde_json::to_vec(&delivery)?).await
            }
            Step::Roots(documents) => {
                let roots = documents.iter().map(|document| forge.make(document, None)).collect::<Result<_, _>>()?;
                self.broker.say("root", serde_json::to_vec(&RootDelivery { roots })?).await
            }
            Step::Collect(document) => {
                let collections = forge.make(document, None)?;
                self.broker.say("samples", serde_json::to_vec(&CollectionsDelivery { collections })?).await
            }
            Step::Say { kind, file, fill_bytes, times, over_and_over: _ } => {
                let piece = self.forge.attack.file(file)?;
                let length = piece.len().max(*fill_bytes);
                let payload: Vec<u8> = piece.into_iter().cycle().take(length).collect();
                for _ in 0..*times {
                    self.broker.say(kind, payload.clone()).await?;
                }
                Ok(())
            }
            Step::Restart => {
                self.self_test().await?;
                let arrivals = self.broker.heard().arrivals;
                self.traffic.expect(DEVICE, false);
                self.device.kill()?;
                self.device.restart().await?;
                self.traffic.expect(DEVICE, true);
                self.wait_online(arrivals + 1).await
            }
        }
    }

    async fn say_again(&mut self) -> anyhow::Result<()> {
        for step in &self.scene.steps {
            if matches!(step, Step::Say { over_and_over: true, .. }) {
                self.take(step).await?;
            }
        }
        Ok(())
    }

    fn told(&self) -> Vec<DeviceEvent> {
        self.broker.heard().events.into_values().collect()
    }

    fn words(&self) -> String {
        let told: Vec<String> = self.told().iter().map(|event| format!("{:?}: {}", event.kind, event.detail)).collect();
        told.join("; ")
    }

    /// What is expected and has not come about yet.
    fn missing(&self) -> anyhow::Result<Vec<String>> {
        let told = self.told();
        let has = |text: &str, words: &[String]| words.iter().all(|word| text.contains(word.as_str()));
        let mut missing = Vec::new();
        for Told { kind, says } in &self.scene.refusals {
            if !told.iter().any(|event| event.kind == *kind && has(&event.detail, says)) {
                missing.push(format!("an event {kind:?} that says {says:?}"));
            }
        }
        let log = std::fs::read_to_string(self.device.folder().join("agent.log"))?;
        for words in &self.scene.log {
            if !log.lines().any(|line| has(line, words)) {
                missing.push(format!("a line of its log that says {words:?}"));
            }
        }
        let state = self.broker.heard().state.map(|(_, raw)| raw).unwrap_or_default();
        for (pointer, expected) in &self.scene.reported {
            if state.pointer(pointer) != Some(expected) {
                missing.push(format!("{expected} at {pointer} of its state report"));
            }
        }
        Ok(missing)
    }

    async fn wait_refused(&mut self) -> anyhow::Result<()> {
        let refused = wait::until("the attack is refused as expected", PATIENCE, async || {
            self.device.process_mut().ensure_running()?;
            if let Some(event) = self.told().into_iter().find(|event| event.kind == DeviceEventKind::Trial) {
                bail!("the attack SUCCEEDED: {:?} went on trial", event.bundle);
            }
            let missing = self.missing()?;
            if !missing.is_empty() {
                self.say_again().await?;
            }
            Ok(missing.is_empty().then_some(()))
        })
        .await;
        let Err(error) = refused else { return Ok(()) };
        bail!("{error:#} Missing: {}. The device has told: {}", self.missing()?.join("; "), self.words())
    }

    /// Lets the device run its golden examples. As it does one thing after another, everything said before has been dealt
    /// with by then.
    async fn self_test(&mut self) -> anyhow::Result<()> {
        let passed = |told: &[DeviceEvent]| told.iter().filter(|event| event.detail.contains(SELF_TEST)).count();
        let before = passed(&self.told());
        let command = serde_json::to_vec(&Command::SelfTest)?;
        let mut said: Option<Instant> = None;
        wait::until("the incumbent passes its self-test", PATIENCE, async || {
            self.device.process_mut().ensure_running()?;
            // What is said to a device that is just coming back is lost.
            if said.is_none_or(|at| at.elapsed() > SAID_AGAIN) {
                self.broker.say("command", command.clone()).await?;
                said = Some(Instant::now());
            }
            Ok((passed(&self.told()) > before).then_some(()))
        })
        .await
    }

    /// The incumbent runs, is what the device falls back to, and has given every answer, all of them right.
    async fn check_serving(&mut self) -> anyhow::Result<()> {
        // A device that was made to hang up comes back.
        self.wait_online(1).await?;
        if self.scene.self_test {
            self.self_test().await?;
        }
        let incumbent = self.forge.ground.incumbent()?;
        let (state, _) = self.broker.heard().state.context("the device has not reported its state")?;
        for (what, installed) in [("runs", state.running), ("has committed", state.committed)] {
            let manifest = installed.map(|installed| installed.manifest);
            ensure!(manifest == Some(incumbent), "the device {what} {manifest:?}, not its incumbent {incumbent}");
        }
        let answered = self.traffic.seen_by(DEVICE).answered;
        wait::until("the incumbent goes on answering", PATIENCE, async || {
            Ok((self.traffic.seen_by(DEVICE).answered >= answered + ANSWERS_AFTERWARDS).then_some(()))
        })
        .await?;
        let seen = self.traffic.seen_by(DEVICE);
        ensure!(seen.failed == 0, "{} requests were not answered: {:?}", seen.failed, seen.last_failure);
        ensure!(seen.right == seen.answered, "{} of {} answers were wrong", seen.answered - seen.right, seen.answered);
        let others: Vec<&String> =
            seen.by_version.keys().filter(|version| format!("digits-{version}") != INCUMBENT).collect();
        ensure!(others.is_empty(), "other versions than the incumbent have answered: {others:?}");
        Ok(())
    }

    async fn end(mut self) -> anyhow::Result<()> {
        let process = self.device.process_mut();
        process.ensure_running()?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()))?;
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        let peak: u64 = peak.context("the system does not tell the peak of memory")?;
        ensure!(
            peak <= MOST_MEMORY_KIB,
            "the agent took {peak} KiB of memory, and {MOST_MEMORY_KIB} are expected at most"
        );
        let log = std::fs::read_to_string(self.device.folder().join("agent.log"))?;
        ensure!(log.len() <= LONGEST_LOG_BYTES, "the agent has filled its log with {} bytes", log.len());
        ensure!(!log.contains("panicked"), "the agent panicked: see {}", self.forge.surroundings.display());
        drop(self.traffic);
        self.device.kill()?;
        // Nothing of this life is heard after the broker has spoken its will.
        wait::until("the broker knows that the device is gone", PATIENCE, async || {
            Ok((!self.broker.heard().online).then_some(()))
        })
        .await
    }
}
