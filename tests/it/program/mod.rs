//! A device is told to run other programs than its package's: good ones, and every bad one.

mod broker;
mod damage;
mod supervisor;
mod waves;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use muster_shared::bundle::{BundleFile, Manifest, PROGRAM_PATH};
use muster_shared::ids::{DeviceId, Digest};
use muster_shared::messages::{AssignmentDelivery, TrackReport, UpdateState};
use muster_shared::trust::{Assignment, DocumentKind, SigningKey, Track, WatchPolicy, sign_document};
use muster_tests::binaries::Binaries;
use muster_tests::fixtures::{self, Image};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::{keys, mosquitto, traffic, wait};

use self::broker::{Broker, Content};
use self::supervisor::Supervisor;
use crate::stage;

/// A program that does what the agent does, under another version.
const GOOD: &str = "exec \"$AGENT\" \"$@\"";
/// As long as a chunk and more, so that there are several.
const PADDING: usize = 150_000;
/// When manifests expire: the same for each, so that the same program has the same digest.
const FAR_MS: u64 = 10_000_000_000_000;
/// After how long an assignment is said again.
const SAID_AGAIN: Duration = Duration::from_secs(1);

/// One device with a model, whose controller the test plays from now on.
struct Scene {
    // Dropped in this order: the agent before its broker.
    supervisor: Supervisor,
    broker: Broker,
    agent: PathBuf,
    device: DeviceId,
    inference_url: String,
    folder: PathBuf,
    release: SigningKey,
    director: SigningKey,
    image: Image,
    generation: u64,
    _fleet: Fleet,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// A program of `version` that does `what` in place of `agent`, and what describes it.
fn program(agent: &Path, version: &str, what: &str) -> anyhow::Result<(String, Manifest)> {
    let script = format!(
        "#!/bin/sh\nAGENT={agent:?}\ncase \"$1\" in\n--version) echo muster-agent {version}; exit;;\n\
         check-config) exec \"$AGENT\" \"$@\";;\nesac\n{what}\nexit\n#{}\n",
        "x".repeat(PADDING),
    );
    let manifest: Manifest = serde_json::from_value(serde_json::json!({
        "name": "muster-agent", "version": version, "release_counter": 1, "security_floor": 0,
        "created_at_ms": 1, "expires_ms": FAR_MS,
        "requirements": {"architectures": [std::env::consts::ARCH]}, "budgets": {},
        "files": [BundleFile::describe(PROGRAM_PATH, script.as_bytes())],
        "signature": {"inputs": [], "outputs": []}, "profile": muster_shared::profile::Profile::default(), "lineage": {},
        "program": {"target": "any", "takes_over_from": "0.1.0"},
    }))?;
    Ok((script, manifest))
}

impl Scene {
    async fn begin(binaries: &Binaries, folder: &Path, mosquitto: &Path, watches: bool) -> anyhow::Result<Self> {
        let mut fleet = stage::fleet(binaries, folder, 1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        drop(traffic);
        let (home, inference_url, device) = {
            let device = fleet.device("dev-1")?;
            device.process_mut().stop().await?;
            (device.folder().to_path_buf(), device.inference_url.clone(), device.id.parse()?)
        };
        fleet.controller.process_mut().stop().await?;
        let data = fleet.controller.folder().join("data");
        let release = keys::read(&fleet.folder.join("keys/release.key"))?;
        let director = keys::read(&data.join("director.key"))?;
        let port = fleet.controller.endpoints.broker_port;
        let broker = Broker::start(mosquitto, &folder.join("broker"), &data.join("pki"), port).await?;
        let supervisor = Supervisor::start(&binaries.agent, &home, watches)?;
        let image = fixtures::held_out()?.into_iter().next().context("no image")?;
        let agent = binaries.agent.clone();
        let scene = Self {
            supervisor,
            broker,
            agent,
            device,
            inference_url,
            folder: home,
            release,
            director,
            image,
            generation: 0,
            _fleet: fleet,
        };
        scene.until("it says which program it runs", |report| report.package_version == "0.1.0").await?;
        Ok(scene)
    }

    /// Says that the device shall run a program of `version` that does `what`; gives the digest of its manifest.
    async fn assign(&mut self, version: &str, what: &str) -> anyhow::Result<Digest> {
        let (script, manifest) = program(&self.agent, version, what)?;
        let envelope = sign_document(DocumentKind::Manifest, &manifest, std::slice::from_ref(&self.release))?;
        let digest = Digest::of(&envelope.payload_bytes()?);
        self.broker.known().bundles.insert(digest, Content { manifest, file: script.into_bytes() });
        self.say(Some((digest, envelope))).await?;
        Ok(digest)
    }

    /// Says it until the device has taken it: what is said to one that is just starting again is lost.
    async fn say(&mut self, manifest: Option<(Digest, muster_shared::trust::Envelope)>) -> anyhow::Result<()> {
        self.generation += 1;
        let assignment = Assignment {
            device: self.device.clone(),
            rollout: "r-program".parse()?,
            manifest: manifest.as_ref().map(|(digest, _)| *digest),
            generation: self.generation,
            issued_at_ms: now_ms(),
            expires_ms: now_ms() + 86_400_000,
            watch: WatchPolicy { probation_ms: 500, ..WatchPolicy::default() },
            delivery: Default::default(),
            stage: Default::default(),
            activation: Default::default(),
            track: Track::Program,
        };
        let assignment = sign_document(DocumentKind::Assignment, &assignment, std::slice::from_ref(&self.director))?;
        let delivery = AssignmentDelivery { assignment, manifest: manifest.map(|(_, envelope)| envelope) };
        let delivery = serde_json::to_vec(&delivery)?;
        let mut said: Option<Instant> = None;
        wait::until("the assignment is taken", PATIENCE, async || {
            if said.is_none_or(|at| at.elapsed() > SAID_AGAIN) {
                self.broker.assign(&self.device, delivery.clone()).await?;
                said = Some(Instant::now());
            }
            Ok((self.report().generation == self.generation).then_some(()))
        })
        .await
    }

    fn report(&self) -> TrackReport {
        self.broker.known().state.as_ref().and_then(|state| state.program.clone()).unwrap_or_default()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&TrackReport) -> bool) -> anyhow::Result<TrackReport> {
        wait::until_explained(
            what,
            PATIENCE,
            async || Ok(Some(self.report()).filter(|report| is_so(report))),
            async || format!("It says {:?}", self.report()),
        )
        .await
    }

    /// Waits until the present generation has ended in `state`, and the device answers by its model again.
    async fn ended(&self, state: UpdateState) -> anyhow::Result<TrackReport> {
        let generation = self.generation;
        let what = format!("generation {generation} is {state:?}");
        let report = self
            .until(&what, |report| report.update.generation == generation && report.update.state.is_final())
            .await?;
        ensure!(report.update.state == state, "{report:?}");
        let url = format!("{}/v2/models/digits/infer", self.inference_url);
        let client = reqwest::Client::new();
        let version = wait::until("the model answers", PATIENCE, async || {
            Ok(traffic::ask(&client, &url, &self.image).await.ok().map(|(version, _)| version))
        })
        .await?;
        ensure!(version == "1.0.0", "digits {version} answers");
        Ok(report)
    }

    /// The present generation falls back to `expected`, for a reason with `says` in it, and stays there.
    async fn falls_back(&self, expected: Option<&str>, says: &str) -> anyhow::Result<()> {
        let report = self.ended(UpdateState::Reverted).await?;
        let reason = report.update.reason.unwrap_or_default();
        ensure!(reason.contains(says), "it says {reason:?} and not {says:?}");
        let runs = |report: &TrackReport| report.running.as_ref().map(|running| running.bundle.version.to_string());
        // The report of the program that gave itself up comes before the one that takes over.
        self.until("what was committed runs", |report| runs(report).as_deref() == expected).await?;
        let starts = self.supervisor.starts();
        self.supervisor.cut()?;
        wait::until("it is started again", PATIENCE, async || Ok((self.supervisor.starts() > starts).then_some(())))
            .await?;
        let report = self.ended(UpdateState::Reverted).await?;
        ensure!(runs(&report).as_deref() == expected, "{report:?}");
        Ok(())
    }
}

fn with_scene<F: Future<Output = anyhow::Result<()>>>(test: impl FnOnce(Scene) -> F) {
    with_scene_of(Ok, true, test);
}

#[expect(clippy::print_stdout, reason = "a test that looks at nothing says so")]
fn with_scene_of<F: Future<Output = anyhow::Result<()>>>(
    binaries_of: impl FnOnce(Binaries) -> anyhow::Result<Binaries>,
    watches: bool,
    test: impl FnOnce(Scene) -> F,
) {
    let Some(mosquitto) = mosquitto::program() else {
        println!("LEFT OUT: mosquitto is not installed (on Debian: apt-get install mosquitto)");
        return;
    };
    stage::run(async |binaries, folder| {
        test(Scene::begin(&binaries_of(binaries)?, &folder, &mosquitto, watches).await?).await
    });
}

fn version(report: &TrackReport) -> Option<String> {
    report.running.as_ref().map(|running| running.bundle.version.to_string())
}

#[test]
fn a_good_program_is_committed_and_bad_ones_give_way_once() {
    with_scene(async |mut scene| {
        let starts = scene.supervisor.starts();
        scene.assign("0.2.0", GOOD).await?;
        let report = scene.ended(UpdateState::Committed).await?;
        ensure!(version(&report).as_deref() == Some("0.2.0"), "{report:?}");
        // Nobody waits for the service manager.
        ensure!(scene.supervisor.starts() == starts && scene.supervisor.handovers() == 1, "it was started again");

        scene.assign("0.3.0", "exit 1").await?;
        scene.falls_back(Some("0.2.0"), "3 starts of this program ended").await?;
        scene.assign("0.3.1", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done").await?;
        scene.falls_back(Some("0.2.0"), "3 starts of this program ended").await?;
        scene.assign("0.3.2", "exec sleep 1000").await?;
        scene.falls_back(Some("0.2.0"), "3 starts of this program ended").await?;

        // The same settings, and a broker that nobody is.
        let config = scene.folder.join("agent.toml");
        let nowhere = scene.folder.join("nowhere.toml");
        let text: String = std::fs::read_to_string(&config)?
            .lines()
            .map(|line| if line.starts_with("port = ") { "port = 1\n".to_owned() } else { format!("{line}\n") })
            .collect();
        ensure!(text.contains("port = 1\n"), "the device has no port of its own");
        std::fs::write(&nowhere, text)?;
        // It has been handed over as often as may be, so it ends, and is started as the service says.
        let left = scene.supervisor.left();
        scene.assign("0.3.3", &format!("MUSTER_AGENT_HANDOVERS=4 exec \"$AGENT\" --config {nowhere:?}")).await?;
        scene.falls_back(Some("0.2.0"), "there is no link to the broker").await?;
        ensure!(scene.supervisor.left() == left + 1, "it did not end for another program");

        // Back to the package, and to what is still there: nothing is fetched for either.
        scene.say(None).await?;
        let report = scene.ended(UpdateState::Committed).await?;
        ensure!(report.running.is_none(), "{report:?}");
        let digest = scene.assign("0.2.0", GOOD).await?;
        let sent = scene.broker.known().sent.get(&digest).copied();
        let report = scene.ended(UpdateState::Committed).await?;
        ensure!(version(&report).as_deref() == Some("0.2.0"), "{report:?}");
        ensure!(scene.broker.known().sent.get(&digest).copied() == sent, "it was fetched again");
        Ok(())
    });
}

#[test]
fn a_program_that_cannot_take_the_configuration_is_never_started() {
    with_scene(async |mut scene| {
        let handovers = scene.supervisor.handovers();
        // It says no version at all, as a program for another machine would.
        scene.assign("0.2.0", GOOD).await?;
        scene.ended(UpdateState::Committed).await?;
        ensure!(scene.supervisor.handovers() > handovers);
        let (starts, handovers) = (scene.supervisor.starts(), scene.supervisor.handovers());
        std::fs::write(
            scene.folder.join("agent.toml"),
            std::fs::read_to_string(scene.folder.join("agent.toml"))? + "\n[not-a-section]\n",
        )?;
        scene.assign("0.3.0", GOOD).await?;
        let report = scene.ended(UpdateState::Failed).await?;
        let reason = report.update.reason.unwrap_or_default();
        ensure!(reason.contains("cannot take the configuration"), "{reason}");
        let began = (scene.supervisor.starts(), scene.supervisor.handovers());
        ensure!(began == (starts, handovers), "it was started all the same");
        Ok(())
    });
}

/// The steps of an update of the program at which the power is cut, and whether the start that is to reach it is the one of the trial.
const DEATHS: [(&str, bool); 8] = [
    ("program-manifest-stored", false),
    ("program-slot-prepared", false),
    ("program-record-stored", false),
    ("program-barrier-stored", false),
    ("program-rehearsed", false),
    ("program-answered", false),
    ("program-start-spent", true),
    ("program-launching", true),
];

#[test]
fn the_power_may_be_cut_at_any_step() {
    // Without a watchdog each exchange is a start of the service manager's, which can be told to die.
    with_scene_of(Binaries::with_crashing_agent, false, async |mut scene| {
        let listed = std::process::Command::new(&scene.agent).env("MUSTER_AGENT_CRASH_AT", "list").output()?;
        let listed = String::from_utf8(listed.stdout)?;
        for step in listed.lines().filter(|step| step.starts_with("program-")) {
            ensure!(DEATHS.iter().any(|(known, _)| *known == step), "nothing dies at {step}");
        }
        for (number, (step, in_trial)) in DEATHS.iter().enumerate() {
            let deaths = scene.supervisor.deaths();
            scene.supervisor.plan_death(step)?;
            if !in_trial {
                scene.supervisor.cut()?;
            }
            scene.assign(&format!("0.2.{number}"), GOOD).await.with_context(|| (*step).to_owned())?;
            let report = scene.ended(UpdateState::Committed).await.with_context(|| (*step).to_owned())?;
            ensure!(version(&report) == Some(format!("0.2.{number}")), "{step}: {report:?}");
            let died = scene.supervisor.deaths() - deaths;
            ensure!(died == 1 + u64::from(!in_trial), "{step}: it died {died} times");
            ensure!(scene.supervisor.handovers() == 0 && scene.supervisor.left() > 0, "{step}: nobody watches");
        }
        Ok(())
    });
}
