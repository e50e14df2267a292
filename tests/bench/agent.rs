//! The agent at rest: a real one, enrolled and connected, without and with the digits model, and nobody asking it anything. Beside that what it
//! takes while it is asked, and what a start costs.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use muster_tests::binaries::Binaries;
use muster_tests::fixtures;
use muster_tests::traffic::Traffic;

use crate::report::{Table, mebibytes};
use crate::stage;
use crate::usage::{self, Memory};

const GOAL_PSS_MIB: f64 = 14.0;
const GOAL_START_CPU_MS: f64 = 300.0;
const GOAL_CPU_PERCENT: f64 = 0.5;
const GOAL_BINARY_MIB: f64 = 22.0;
/// How long a fresh process is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(3);
/// Pause between requests of the one application that asks.
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) async fn measure(binaries: &Binaries, folder: &Path, window: Duration) -> anyhow::Result<Vec<Table>> {
    let mut fleet = stage::one_device(binaries, folder).await?;

    // Both restarts are there to compare like with like: a process that has neither enrolled nor fetched anything.
    let without = settled(&mut fleet, false).await?;
    stage::commit_digits(&fleet).await?;
    let process = stage::device(&mut fleet)?.process_id();
    let at_rest = usage::over(process, window).await?;
    let after_update = usage::memory(process)?;
    stage::restart(stage::device(&mut fleet)?, true).await?;
    let start = usage::spent(stage::device(&mut fleet)?.process_id())?;
    let with = settled(&mut fleet, true).await?;
    let (asked, answered) = under_load(&mut fleet, window).await?;

    let mut table = Table::new(format!(
        "Agent at rest: connected over mTLS, digits {} committed, watched for {:.0} s",
        stage::VERSION,
        at_rest.wall.as_secs_f64()
    ));
    memory_rows(&mut table, "no model", &without, None);
    memory_rows(&mut table, "model loaded", &with, Some(GOAL_PSS_MIB));
    let model = mebibytes(with.pss_bytes) - mebibytes(without.pss_bytes);
    table.figure("  of which the model and what serving it needs", model, "MiB");
    memory_rows(&mut table, "model loaded, in the process that fetched it", &after_update, Some(GOAL_PSS_MIB));
    memory_rows(
        &mut table,
        &format!("asked {answered} times in {:.0} s", window.as_secs_f64()),
        &asked,
        Some(GOAL_PSS_MIB),
    );
    table.goal(
        "a start until it answers with the model, processor time",
        start.cpu().as_secs_f64() * 1e3,
        GOAL_START_CPU_MS,
        "ms",
    );
    table.goal("processor at rest, share of one core", at_rest.cpu_percent(), GOAL_CPU_PERCENT, "%");
    let resolution = 100.0 * usage::cpu_resolution().as_secs_f64() / at_rest.wall.as_secs_f64();
    table.figure("  smallest share this window can tell", resolution, "%");
    table.figure("bytes written to disk meanwhile", at_rest.written_bytes as f64, "");
    let bytes = std::fs::metadata(&binaries.agent).with_context(|| format!("{}", binaries.agent.display()))?.len();
    table.goal("size of the binary", mebibytes(bytes), GOAL_BINARY_MIB, "MiB");
    table.text("  it is", &binaries.agent.display().to_string());
    Ok(vec![table])
}

/// Memory while an application asks without a rest for `window`, and how many answers it got.
async fn under_load(fleet: &mut muster_tests::fleet::Fleet, window: Duration) -> anyhow::Result<(Memory, u64)> {
    let device = stage::device(fleet)?;
    let mut traffic = Traffic::new(fixtures::held_out()?, PAUSE);
    traffic.start(&device.id, &device.inference_url);
    tokio::time::sleep(window).await;
    let memory = usage::memory(device.process_id())?;
    let answered = traffic.finish().await.values().map(|seen| seen.answered).sum();
    Ok((memory, answered))
}

/// Restarts the agent and reads its memory once it has settled.
async fn settled(fleet: &mut muster_tests::fleet::Fleet, with_model: bool) -> anyhow::Result<Memory> {
    stage::restart(stage::device(fleet)?, with_model).await?;
    tokio::time::sleep(SETTLE).await;
    fleet.wait_online(1).await?;
    usage::memory(stage::device(fleet)?.process_id())
}

fn memory_rows(table: &mut Table, state: &str, memory: &Memory, goal_mib: Option<f64>) {
    let what = format!("PSS, {state}");
    let measured = mebibytes(memory.pss_bytes);
    match goal_mib {
        Some(goal) => table.goal(&what, measured, goal, "MiB"),
        None => table.figure(&what, measured, "MiB"),
    }
    table.text(
        "  own data + mapped files; resident",
        &format!(
            "{:.1} + {:.1}; {:.1} MiB",
            mebibytes(memory.anonymous_bytes),
            mebibytes(memory.file_bytes),
            mebibytes(memory.resident_bytes)
        ),
    );
}
