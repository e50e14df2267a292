//! Kills real agents at every named step of an update and at random moments, damages and fills their disks, and holds them to what
//! they promise: each start serves the committed bundle or the new one, each update ends, and what was asked is counted once.
//!
//! Run with `cargo test --workspace --test crashes -- --kills 500`, add `--seed N` to plan the same again, or name a scenario.
//! `README.md` says what is held against what.

#![expect(clippy::print_stdout, reason = "what cargo test shows of other tests is printed as well")]

mod api;
mod asked;
mod beside;
mod disks;
mod folder;
mod ledger;
mod life;
mod plan;
mod random;
mod stage;
mod subject;
mod torn;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context as _;
use muster_tests::binaries::Binaries;

use crate::asked::Asked;
use crate::plan::Plan;
use crate::random::Random;
use crate::stage::Stage;
use crate::subject::Subject;

/// Devices that are killed side by side.
const VICTIMS: usize = 8;
/// What the names of the steps begin with that `tests/it/program.rs` kills an agent at.
const OF_PROGRAMS: &str = "program-";

/// What a scenario has done, in words.
type Outcome = anyhow::Result<String>;

fn main() -> ExitCode {
    let asked = match Asked::by(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    if asked.list {
        asked.scenarios().iter().for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} crash scenarios", asked.scenarios().len());
    if asked.scenarios().is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("seed {} (to plan the same again: --seed {0})", asked.seed);
    let folder = match tempfile::Builder::new().prefix("muster-crashes-").tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("no folder for the scenarios: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let carried_out = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let scenarios = carry_out(&asked, folder.path());
        runtime.block_on(tokio::task::LocalSet::new().run_until(scenarios))
    });
    match carried_out {
        Ok(0) => ExitCode::SUCCESS,
        Ok(findings) => {
            eprintln!("\n{findings} findings; see {}", folder.keep().display());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nthe scenarios could not be set up: {error:#}\nThe logs are in {}", folder.keep().display());
            ExitCode::FAILURE
        }
    }
}

/// Carries out what is asked for, all of it side by side, and says how many findings there were.
async fn carry_out(asked: &Asked, folder: &Path) -> anyhow::Result<usize> {
    // Nothing else in this process installs one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let began = Instant::now();
    let binaries = Binaries::beside_this_one()?.with_crashing_agent()?;
    let steps = life::steps(&binaries.agent)?;
    let mut stage = Stage::found(&binaries, folder).await?;
    let mut random = Random::new(asked.seed);
    let (of_beside, steps): (Vec<String>, Vec<String>) = steps
        .into_iter()
        .filter(|step| !step.starts_with(OF_PROGRAMS))
        .partition(|step| step.starts_with(beside::PREFIX));
    let plan = Arc::new(Mutex::new(Plan::new(steps, asked.kills, &mut random)));
    let wanted = |name: &str| asked.scenarios().contains(&name);
    let mut devices = Vec::new();
    for index in 1..=if wanted("kills") { VICTIMS } else { 0 } {
        devices.push(stage.device(&format!("victim-{index}")).await?);
    }
    let second = if wanted("beside") { Some(stage.device("second").await?) } else { None };
    let torn = if wanted("torn-writes") { Some(stage.device("torn").await?) } else { None };
    let full = if wanted("full-disk") { disks::device(&mut stage, "full").await? } else { None };
    let frozen = if wanted("read-only-disk") { disks::device(&mut stage, "frozen").await? } else { None };
    stage.first_version().await?;
    println!("the fleet is set up after {:.1} s", began.elapsed().as_secs_f64());
    let stage = Arc::new(stage);

    let mut running = Vec::new();
    for device in devices {
        let (subject, plan) = (Subject::new(&stage, device, random.fork())?, Arc::clone(&plan));
        running.push(("kills", tokio::task::spawn_local(subject.be_killed(plan))));
    }
    if let Some(device) = second {
        running.push(("beside", tokio::task::spawn_local(beside::run(Arc::clone(&stage), device, of_beside))));
    }
    if let Some(device) = torn {
        let subject = Subject::new(&stage, device, random.fork())?;
        running.push(("torn-writes", tokio::task::spawn_local(torn::run(subject, asked.kills / 10))));
    }
    if let Some((device, disk)) = full {
        let subject = Subject::new(&stage, device, random.fork())?;
        running.push(("full-disk", tokio::task::spawn_local(disks::run_full(subject, disk, asked.kills / 50))));
    }
    if let Some((device, disk)) = frozen {
        let subject = Subject::new(&stage, device, random.fork())?;
        running
            .push(("read-only-disk", tokio::task::spawn_local(disks::run_read_only(subject, disk, asked.kills / 50))));
    }
    let mut findings = Vec::new();
    for (scenario, task) in running {
        let outcome: Outcome = task.await.context("it ended with a panic").and_then(|outcome| outcome);
        match outcome {
            Ok(done) => println!("crashes {scenario} ... ok: {done} ({:.1} s)", began.elapsed().as_secs_f64()),
            Err(error) => {
                println!("crashes {scenario} ... FAILED ({:.1} s)", began.elapsed().as_secs_f64());
                findings.push(format!("{scenario}: {error:#}"));
            }
        }
    }
    if wanted("kills") && findings.is_empty() {
        let plan = plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        println!("{}", plan.summary());
        findings.extend(plan.never_reached().map(|step| format!("kills: the step {step} was never reached")));
    }
    findings.iter().for_each(|finding| eprintln!("\n{finding}"));
    println!("all of it took {:.1} s", began.elapsed().as_secs_f64());
    Ok(findings.len())
}
