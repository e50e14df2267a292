//! `muster-bench`: what Muster costs, measured on the real programs and held against what it promises.
//!
//! It prints tables and judges nothing: a figure beyond its goal is a figure, and the status tells only whether everything
//! could be measured. This file builds the programs and runs the parts asked for; each part has a file of its own, and
//! [`report`] is the only one that prints.

mod agent;
mod around;
mod controller;
mod crowd;
mod delivery;
mod drift;
mod flash;
mod footprint;
mod forests;
mod gate;
mod http;
mod inference;
mod monitoring;
mod pairs;
mod pass;
mod planner;
mod programs;
mod report;
mod samples;
mod simulated;
mod stage;
mod usage;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use muster_tests::binaries::Binaries;

use crate::report::Table;

/// Measure what Muster costs, and print it beside what it promises.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum, default_value_t = Part::All)]
    part: Part,
    /// Simulated devices of the controller's, the delivery and the drift part.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Requests of each kind in the inference part; draws of each setting in the false-alarms and gate parts.
    #[arg(long, default_value_t = 6_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    requests: u32,
    /// How long something is watched at rest, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    window_s: u64,
    /// An empty or new folder for the programs' data; a temporary one otherwise. Bytes written are only counted on a real
    /// disk.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// With `delivery`: folders of pairs that tests/fixtures/make_pairs.py made, to measure how much of each really travels, in place
    /// of many devices.
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pairs: Vec<PathBuf>,
    /// Measure this agent instead of the release build, as target/dist/muster-agent.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The agent at rest: memory, processor, size, bytes written.
    Agent,
    /// Inference over HTTP beside the engine alone and onnxruntime.
    Inference,
    /// Forests of 100 trees beside onnxruntime, the engine alone; also a part of inference.
    Forests,
    /// The controller with many devices.
    Controller,
    /// Bundles on their way to 1, 100 and many devices, beside mosquitto.
    Delivery,
    /// What the agent writes to its disk, at rest and for an update; takes some minutes.
    Flash,
    /// The agent's figures, sizes of programs and packages and what is written to flash, beside what others publish; takes some minutes.
    Footprint,
    /// Merging and scoring the windows of many devices, as the controller does.
    Drift,
    /// How often drift is seen where there is none; takes some minutes.
    FalseAlarms,
    /// How often a rollout's gate is wrong, and sees a loss, beside rules in common use; takes some minutes.
    Gate,
    /// One tick of the planner over 1,000 to 1,000,000 devices, and of 100 rollouts at once.
    Planner,
    /// A whole pass of the controller over 1,000 to 100,000 devices, and over 100 rollouts, beside planning alone; builds the controller's tests.
    Pass,
    /// Checking a bundle's signature and files on one core, beside sha256sum and openssl.
    Verify,
    /// Counting an inference, beside other sketching libraries.
    Monitoring,
    /// All of it.
    All,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // reqwest and rumqttc are built without a provider of their own.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::line(&format!("nothing could be measured: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the parts asked for and tells whether all of them could be measured.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    // What needs no program is measured without building any.
    let alone = match arguments.part {
        Part::Drift => Some(drift::measure(arguments.devices)?),
        Part::FalseAlarms => Some(drift::false_alarms(arguments.requests)?),
        Part::Gate => Some(gate::measure(arguments.requests)?),
        Part::Planner => Some(planner::measure()?),
        Part::Pass => Some(pass::measure()?),
        Part::Monitoring => Some(monitoring::measure(tempfile::tempdir()?.path())?),
        Part::Forests => Some(inference::forests(tempfile::tempdir()?.path())?),
        Part::Agent
        | Part::Inference
        | Part::Controller
        | Part::Delivery
        | Part::Flash
        | Part::Footprint
        | Part::Verify
        | Part::All => None,
    };
    if let Some(tables) = alone {
        tables.iter().for_each(Table::print);
        return Ok(true);
    }
    let simulated = arguments.pairs.is_empty() && matches!(arguments.part, Part::Controller | Part::Delivery);
    let with_agent = arguments.agent.is_none() && !simulated;
    programs::build(with_agent)?;
    let mut binaries = Binaries::beside_this_one()?;
    if let Some(agent) = &arguments.agent {
        binaries.agent = agent.canonicalize().with_context(|| format!("--agent {}", agent.display()))?;
    }
    if cfg!(debug_assertions) {
        report::line("This is a debug build: its figures say little. Use cargo run --release.");
    }
    programs::raise_file_limit(arguments.devices)?;
    let temporary = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
    let folder = arguments.folder.as_deref().unwrap_or_else(|| temporary.path());
    std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let window = Duration::from_secs(arguments.window_s);
    let mut complete = true;
    for part in [
        Part::Agent,
        Part::Inference,
        Part::Controller,
        Part::Delivery,
        Part::Flash,
        Part::Footprint,
        Part::Verify,
        Part::Drift,
        Part::Monitoring,
    ] {
        // A footprint is made of other parts.
        let is_among_all = arguments.part == Part::All && part != Part::Footprint;
        if arguments.part != part && !is_among_all {
            continue;
        }
        let name = part.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let place = empty_folder(&folder.join(&name))?;
        let measured = runtime.block_on(async {
            match part {
                Part::Agent | Part::All => agent::measure(&binaries, &place, window).await,
                Part::Inference => inference::measure(&binaries, &place, arguments.requests).await,
                Part::Controller => controller::measure(&binaries, &place, arguments.devices, window).await,
                Part::Delivery if arguments.pairs.is_empty() => {
                    delivery::measure(&binaries, &place, arguments.devices).await
                }
                Part::Delivery => pairs::measure(&binaries, &place, &arguments.pairs).await,
                Part::Monitoring => monitoring::measure(&place),
                Part::Verify => verify::measure(&binaries, &place).await,
                Part::Drift | Part::FalseAlarms | Part::Gate | Part::Planner | Part::Pass => {
                    drift::measure(arguments.devices)
                }
                Part::Forests => inference::forests(&place),
                Part::Flash => flash::measure(&binaries, &place, window).await,
                Part::Footprint => footprint::measure(&binaries, &place, window).await,
            }
        });
        match measured {
            Ok(tables) => tables.iter().for_each(Table::print),
            Err(error) => {
                complete = false;
                report::line(&format!("\n{name}: could not be measured: {error:#}"));
            }
        }
    }
    Ok(complete)
}

fn empty_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    let empty = std::fs::read_dir(folder)?.next().is_none();
    anyhow::ensure!(empty, "{} is not empty: name a new folder with --folder", folder.display());
    Ok(folder.to_path_buf())
}
