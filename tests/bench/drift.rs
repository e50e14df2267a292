//! Merging and scoring the windows of many devices as the controller does, on one core: time, and memory with and without a vector of
//! counts for each device. And how often drift is seen where there is none, at length.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_shared::drift::{Criteria, DeviceGroups};
use muster_shared::ids::Digest;
use muster_shared::messages::{Position, Sequenced, WindowKey};
use muster_shared::profile::{Column, Profile, Reference, Source};
use muster_shared::sketch::{ColumnSketch, SketchWindow};
use muster_tests::null_draws::{Kind, Setting};
use muster_tests::random::Random;

use crate::report::{self, Table, mebibytes};
use crate::usage;

const FEATURES: u32 = 64;
const CLASSES: u32 = 10;
const GOAL_S: f64 = 10.0;
/// Windows that differ; each device sends one of them.
const WINDOWS: u32 = 1_000;
const ROWS: u32 = 360;

fn profile() -> Profile {
    let column = |index: u32| Column {
        name: format!("p{index}"),
        source: Source::Input { tensor: "in".into(), index },
        reference: Reference::Numeric {
            lower_edges: (0u8..20).map(f32::from).collect(),
            max: 20.0,
            counts: vec![50; 20],
            missing: 0,
        },
    };
    let class = Column {
        name: "class".into(),
        source: Source::PredictedClass { tensor: "out".into() },
        reference: Reference::Class {
            classes: (0..CLASSES).map(|class| class.to_string()).collect(),
            counts: vec![100; CLASSES as usize],
        },
    };
    Profile { columns: (0..FEATURES).map(column).chain([class]).collect(), ..Profile::default() }
}

/// Windows as devices send them, with counts that scatter.
fn windows(profile: &Profile) -> Vec<Vec<u8>> {
    let key = WindowKey { manifest: Digest::of(b"bench"), generation: 1, start_ms: 0, duration_ms: 3_600_000 };
    let mut state: u32 = 1;
    let mut window = |_: u32| {
        let mut body = SketchWindow::empty(key, profile);
        for _ in 0..ROWS {
            for (sketch, column) in body.columns.iter_mut().zip(&profile.columns) {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let cells = if column.is_prediction() { CLASSES } else { 20 };
                sketch.add(column, f64::from((state >> 16) % cells));
            }
        }
        Sequenced { position: Position { epoch: 1, sequence: 1, oldest: 1 }, body }.encode()
    };
    (0..WINDOWS).map(&mut window).collect()
}

/// Memory now; the peak is counted from here on.
fn resident() -> anyhow::Result<u64> {
    let process = std::process::id();
    usage::forget_peak(process)?;
    Ok(usage::memory(process)?.resident_bytes)
}

/// Decodes and checks the window of each device, and gives it to `add`.
fn each(
    profile: &Profile,
    windows: &[Vec<u8>],
    devices: u32,
    mut add: impl FnMut(String, SketchWindow),
) -> anyhow::Result<Duration> {
    let digest = profile.digest();
    let start = Instant::now();
    for (device, bytes) in (0..devices).zip(windows.iter().cycle()) {
        let window = Sequenced::<SketchWindow>::decode(bytes)?.body;
        ensure!(window.fits_cells(&digest, profile), "a window does not fit");
        add(format!("device-{device:06}"), window);
    }
    Ok(start.elapsed())
}

pub(crate) fn measure(devices: u32) -> anyhow::Result<Vec<Table>> {
    let profile = profile();
    let windows = windows(&profile);
    let mut table =
        Table::new(format!("Drift: windows of {devices} devices, {FEATURES} features and {CLASSES} classes, one core"));
    table.figure("one window on the wire", windows.first().context("no window")?.len() as f64, "B");

    let before = resident()?;
    let mut groups = DeviceGroups::default();
    let merging = each(&profile, &windows, devices, |device, window| groups.add(&device, &window.columns))?;
    let start = Instant::now();
    let columns = groups.score(&profile, &Criteria::default());
    let scoring = start.elapsed();
    ensure!(columns.iter().all(|column| column.n > 0 && column.psi.is_some()), "a column was not scored");
    table.figure("decode, check and merge", merging.as_secs_f64(), "s");
    table.figure("score", scoring.as_secs_f64() * 1e3, "ms");
    table.goal("all of it", (merging + scoring).as_secs_f64(), GOAL_S, "s");
    let peak = usage::peak_resident(std::process::id())?.saturating_sub(before);
    table.figure("peak memory above what was there, random groups", mebibytes(peak), "MiB");
    drop(groups);

    let before = resident()?;
    let mut apart: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let merging = each(&profile, &windows, devices, |device, window| {
        apart.insert(device, window.columns.iter().flat_map(ColumnSketch::cells).collect());
    })?;
    table.figure("the same with a vector a device", merging.as_secs_f64(), "s");
    let peak = usage::peak_resident(std::process::id())?.saturating_sub(before);
    table.figure("peak memory above what was there, a vector a device", mebibytes(peak), "MiB");
    ensure!(apart.len() == devices as usize, "devices were lost");
    Ok(vec![table])
}

/// False-alarm rates at a nominal 1 %, with every move counting and with those that matter.
pub(crate) fn false_alarms(draws: u32) -> anyhow::Result<Vec<Table>> {
    let mut random = Random::new(20_260_101);
    let mut tables = Vec::new();
    for kind in [Kind::Number, Kind::Classes] {
        let name = if kind == Kind::Number { "a number in 20 bins" } else { "10 classes" };
        let mut table = Table::new(format!("False alarms, {name}, {draws} draws each, nominal 1 %"));
        for (devices, ungrouped, rows) in [
            (1, true, [50, 200, 1_000]),
            (1, false, [50, 200, 1_000]),
            (100, false, [50, 200, 1_000]),
            (100, false, [5_000, 20_000, 100_000]),
            (1_000, false, [5_000, 10_000, 20_000]),
        ] {
            for rows in rows {
                for correlation in [0.0, 0.01, 0.05] {
                    if ungrouped && correlation > 0.0 {
                        continue;
                    }
                    // Few draws are enough to see a rate of several per cent, and the largest fleets take long.
                    let draws = if rows > 20_000 {
                        draws / 10
                    } else if rows > 1_000 {
                        draws / 2
                    } else {
                        draws
                    };
                    let setting = Setting { kind, devices, rows, correlation, ungrouped };
                    let all = Criteria { alpha: 0.01, min_effect: 0.0, min_share_effect: 0.0 };
                    let (mut any, mut matter) = (0, 0);
                    for _ in 0..draws {
                        let column = random.verdict(&setting, &all)?;
                        any += u32::from(column.drifted);
                        matter += u32::from(column.drifted && column.psi.is_some_and(|psi| psi > 0.1));
                    }
                    let percent = |count: u32| 100.0 * f64::from(count) / f64::from(draws);
                    let how = if ungrouped { "rows on their own".to_owned() } else { format!("{devices} device(s)") };
                    let what = format!("{how}, {rows} rows in all, correlation {correlation}");
                    table.goal(&what, percent(any), 1.0, "%");
                    table.text("  of them with psi above 0.1", &format!("{:.2} %", percent(matter)));
                }
            }
        }
        report::line(&format!("{name}: done"));
        tables.push(table);
    }
    Ok(tables)
}
