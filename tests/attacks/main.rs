//! The attack corpus: each directory beside this file is one attack, carried out against real processes.
//!
//! Run with `cargo test --workspace --test attacks`, or `... --test attacks -- NAME` for those whose names have that in them.
//! `README.md` says how to add one.

#![expect(clippy::print_stdout, reason = "what cargo test shows of other tests is printed as well")]

mod at_controller;
mod at_device;
mod attack;
mod broker;
mod forge;
mod listing;
mod stage;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use muster_tests::binaries::Binaries;

use crate::attack::{Attack, Scene};
use crate::broker::Broker;
use crate::stage::Ground;

/// How long one attack may take before it counts as a failure.
const LONGEST: Duration = Duration::from_secs(90);

/// What went wrong, by the attack's directory.
type Failures = Vec<(String, anyhow::Error)>;

/// Which attacks are asked for, in the words that libtest takes.
#[derive(Default)]
struct Chosen {
    words: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    list: bool,
    /// Only what is left out otherwise is asked for: there is no such attack.
    ignored: bool,
}

impl Chosen {
    fn by(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut chosen = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => chosen.list = true,
                "--exact" => chosen.exact = true,
                "--ignored" => chosen.ignored = true,
                "--skip" => chosen.skipped.extend(arguments.next()),
                // How to run is decided here, and their values are no names.
                "--test-threads" | "--format" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => {
                    drop(arguments.next());
                }
                other if other.starts_with('-') => {}
                _ => chosen.words.push(argument),
            }
        }
        chosen
    }

    fn includes(&self, name: &str) -> bool {
        let has = |word: &String| if self.exact { name == word } else { name.contains(word.as_str()) };
        !self.ignored && !self.skipped.iter().any(has) && (self.words.is_empty() || self.words.iter().any(has))
    }
}

fn main() -> ExitCode {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("attacks");
    let chosen = Chosen::by(std::env::args().skip(1));
    let mut attacks = match Attack::all(&corpus) {
        Ok(attacks) => attacks,
        Err(error) => {
            eprintln!("the attack corpus cannot be read: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    attacks.retain(|attack| chosen.includes(&attack.name));
    if chosen.list {
        attacks.iter().for_each(|attack| println!("{}: test", attack.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} attacks", attacks.len());
    if attacks.is_empty() {
        return ExitCode::SUCCESS;
    }
    let Some(mosquitto) = muster_tests::mosquitto::program() else {
        println!("LEFT OUT: mosquitto is not installed (on Debian: apt-get install mosquitto)");
        return ExitCode::SUCCESS;
    };
    let folder = match tempfile::Builder::new().prefix("muster-attacks-").tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("no folder for the attacks: {error}");
            return ExitCode::FAILURE;
        }
    };
    match carry_out(&corpus, &attacks, &mosquitto, folder.path()) {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            for (name, error) in &failures {
                eprintln!("\ntests/attacks/{name}: {error:#}");
            }
            eprintln!("\n{} attacks were not withstood as expected; see {}", failures.len(), folder.keep().display());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!(
                "\nthe attacks could not be set up: {error:#}\nThe processes' logs are in {}",
                folder.keep().display()
            );
            ExitCode::FAILURE
        }
    }
}

/// What comes of an attack, at most after [`LONGEST`].
async fn in_time(attack: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::time::timeout(LONGEST, attack).await.context("it does not come to an end")?
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn carry_out(corpus: &Path, attacks: &[Attack], mosquitto: &Path, folder: &Path) -> anyhow::Result<Failures> {
    // Nothing else in this process installs one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let began = Instant::now();
    let mut ground = Ground::prepare(&Binaries::beside_this_one()?, &folder.join("fleet")).await?;
    println!("the fleet is set up after {:.1} s", began.elapsed().as_secs_f64());
    let mut failures = Failures::new();
    let mut note = |attack: &Attack, outcome: anyhow::Result<()>, began: Instant| {
        let word = if outcome.is_ok() { "refused" } else { "FAILED" };
        println!("attack {} ... {word} ({:.1} s)", attack.name, began.elapsed().as_secs_f64());
        failures.extend(outcome.err().map(|error| (attack.name.clone(), error)));
    };
    for attack in attacks {
        if let Scene::Controller(scene) = &attack.plan.scene {
            let began = Instant::now();
            note(attack, in_time(at_controller::run(&ground, attack, scene)).await, began);
        }
    }
    ground.hand_over().await?;
    let pki: PathBuf = ground.fleet.controller.folder().join("data/pki");
    let port = ground.fleet.controller.endpoints.broker_port;
    let mut broker = Broker::start(mosquitto, &folder.join("broker"), &pki, port).await.context("the broker")?;
    let genuine = Attack::control(corpus)?;
    if let Scene::Device(scene) = &genuine.plan.scene {
        let surroundings = folder.join("control");
        let run = at_device::control(&ground, &mut broker, &genuine, scene, &surroundings);
        in_time(run).await.context("what is no attack is not taken, so no refusal says anything")?;
    }
    for attack in attacks {
        if let Scene::Device(scene) = &attack.plan.scene {
            let began = Instant::now();
            let surroundings = folder.join("attacks").join(&attack.name);
            let run = at_device::run(&ground, &mut broker, attack, scene, &surroundings);
            note(attack, in_time(run).await, began);
        }
    }
    println!("all of it took {:.1} s", began.elapsed().as_secs_f64());
    Ok(failures)
}
