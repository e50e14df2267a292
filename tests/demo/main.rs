//! `cargo demo`: the whole story of a model on a fleet, told with the real programs.
//!
//! This file builds the programs, finds a place for them and ends with the story's outcome; the story itself is in
//! [`story`], what the terminal shows in [`stage`], what stays behind for other programs in [`summary`].

mod stage;
mod story;
mod summary;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser;
use muster_tests::binaries::Binaries;

use crate::stage::Stage;

/// Tell the whole story of a model on a fleet of devices, with real processes on this machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// End when the story is told, with status 0 only if every step was seen to be true.
    #[arg(long)]
    exit: bool,
    /// Keep everything in this folder, with `demo.json` telling other programs where to connect.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How many devices the fleet has.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(12..=200))]
    devices: u16,
    /// Run this agent instead of the one built here, as target/dist/muster-agent.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // reqwest is built without a provider of its own.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    let stage = Stage::new();
    match run(&arguments, &stage) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            stage.failed(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, stage: &Stage) -> anyhow::Result<()> {
    stage.say("Building the controller, the agent and the command line");
    Binaries::build_with_workspace()?;
    let mut binaries = Binaries::beside_this_one()?;
    if let Some(agent) = &arguments.agent {
        binaries.agent = agent.canonicalize().with_context(|| format!("--agent {}", agent.display()))?;
    }
    let temporary = tempfile::Builder::new().prefix("muster-demo-").tempdir()?;
    let folder = match &arguments.data_dir {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
            let folder = folder.canonicalize()?;
            let empty = std::fs::read_dir(&folder)?.next().is_none();
            ensure!(empty, "{} is not empty: name a new folder with --data-dir", folder.display());
            folder
        }
        None => temporary.path().to_path_buf(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let cast = story::tell(stage, &binaries, &folder, usize::from(arguments.devices)).await?;
        summary::write(&cast, &folder)?;
        if !arguments.exit {
            stage.stays_up(&summary::for_people(&cast, &folder));
            tokio::signal::ctrl_c().await?;
        }
        anyhow::Ok(())
    })
}
