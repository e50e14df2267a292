//! What a real agent writes to its disk: left alone, for each monitoring window it closes, and for an update.
//!
//! Windows last an hour, so an hour is put together of two parts: what is written between windows, watched for some minutes on an
//! agent with default settings, and what closing one window costs, from an agent that closes one every few seconds under requests.
//! The kernel counts whole pages; the journal of the file system is not in it. A disk in memory counts nothing.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_tests::binaries::Binaries;
use muster_tests::fixtures;
use muster_tests::traffic::Traffic;

use crate::report::{Table, mebibytes};
use crate::stage;
use crate::usage::{self, Use};

const KIB: f64 = 1024.0;
/// At rest, for at least this long.
const LEAST_REST: Duration = Duration::from_secs(180);
const SHORT_WINDOW_MS: u64 = 5_000;
const SHORT_WINDOWS: u32 = 12;
/// Windows an hour has by default.
const WINDOWS_AN_HOUR: f64 = 1.0;
const UPDATE_BYTES: usize = 20 * 1024 * 1024;
const UPDATE_VERSION: &str = "1.2.0";
const GOAL_REST_MIB_AN_HOUR: f64 = 1.0;
const GOAL_UPDATE_RATIO: f64 = 1.1;
/// Time for what an update leaves to do, such as acknowledgements.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) async fn measure(binaries: &Binaries, folder: &Path, window: Duration) -> anyhow::Result<Vec<Table>> {
    let each_window = closed_windows(binaries, &folder.join("windows")).await?;

    let mut fleet = stage::one_device(binaries, &folder.join("rest")).await?;
    stage::commit_digits(&fleet).await?;
    tokio::time::sleep(SETTLE).await;
    let process = stage::device(&mut fleet)?.process_id();
    let least = window.max(LEAST_REST);
    pass_the_hour(least).await?;
    let rest = usage::over(process, least).await?;

    fleet.release_large_digits(UPDATE_VERSION, UPDATE_BYTES).await?;
    let before = usage::spent(process)?;
    stage::commit(&fleet, UPDATE_VERSION).await?;
    tokio::time::sleep(SETTLE).await;
    let update = usage::since(process, &before)?;

    let mut table = Table::new("Flash: what the agent writes to its disk");
    let between = rest.written_bytes as f64 * 3_600.0 / rest.wall.as_secs_f64();
    table.figure(
        &format!("between windows, watched for {:.0} s", rest.wall.as_secs_f64()),
        rest.written_bytes as f64 / KIB,
        "KiB",
    );
    table.figure("  handed to the system meanwhile", rest.handed_bytes as f64 / KIB, "KiB");
    let closing = each_window.written_bytes as f64 / f64::from(SHORT_WINDOWS);
    table.figure(&format!("each closed window, of {SHORT_WINDOWS}"), closing / KIB, "KiB");
    table.figure(
        "  handed to the system for each",
        each_window.handed_bytes as f64 / f64::from(SHORT_WINDOWS) / KIB,
        "KiB",
    );
    let hour = (between + WINDOWS_AN_HOUR * closing) / (KIB * KIB);
    table.goal("an hour with default settings, of both", hour, GOAL_REST_MIB_AN_HOUR, "MiB");
    table.figure("  a day", hour * 24.0, "MiB");
    let bundle = mebibytes(usage::folder_bytes(&folder.join("rest/bench/data/slots/b"))?);
    table.figure("an update of new bytes only: its size", bundle, "MiB");
    table.figure("  written for it", mebibytes(update.written_bytes), "MiB");
    table.goal("  written / size", mebibytes(update.written_bytes) / bundle, GOAL_UPDATE_RATIO, "x");
    table.figure("  handed to the system / size", mebibytes(update.handed_bytes) / bundle, "x");
    Ok(vec![table])
}

/// Windows close on the hour: where that is near, waits until it is over.
async fn pass_the_hour(rest: Duration) -> anyhow::Result<()> {
    let into_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() % 3_600;
    let left = Duration::from_secs(3_600 - into_s);
    if left < rest {
        tokio::time::sleep(left + SETTLE).await;
    }
    Ok(())
}

/// What [`SHORT_WINDOWS`] windows cost an agent that is asked all the time.
async fn closed_windows(binaries: &Binaries, folder: &Path) -> anyhow::Result<Use> {
    let mut fleet = stage::one_device_with(binaries, folder, SHORT_WINDOW_MS).await?;
    stage::commit_digits(&fleet).await?;
    let mut traffic = Traffic::new(fixtures::held_out()?, Duration::from_millis(50));
    let device = stage::device(&mut fleet)?;
    traffic.start(&device.id, &device.inference_url);
    tokio::time::sleep(SETTLE).await;
    let process = device.process_id();
    let used = usage::over(process, Duration::from_millis(SHORT_WINDOW_MS) * SHORT_WINDOWS).await?;
    Ok(used)
}
