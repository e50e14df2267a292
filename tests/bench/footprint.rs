//! What the agent takes of a device, beside what others publish about theirs.
//!
//! The figures of the agent are measured here: [`crate::agent`] has memory and the cost of a start, [`crate::flash`] what is written. Sizes are those
//! of the programs and packages that `cross/build.sh` and `cross/package.sh` left. What others say of themselves is quoted with its source and
//! was not measured: their agents do other work, some of them as several processes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_tests::binaries::Binaries;

use crate::report::{Table, mebibytes};
use crate::{agent, flash};

/// Programs for boards, and the most each may take, in MiB.
const PROGRAMS: [(&str, f64); 3] = [
    ("aarch64-unknown-linux-gnu", 17.0),
    ("armv7-unknown-linux-gnueabihf", 14.0),
    ("riscv64gc-unknown-linux-gnu", 17.0),
];
const GOAL_INSTALLED_MIB: f64 = 20.0;
const KIB: f64 = 1024.0;

/// What others publish: whose, what, how much, where.
const PUBLISHED: [(&str, &str, &str, &str); 9] = [
    ("thin-edge.io", "tedge-agent and one tedge-mapper, RSS", "8 + 8 MiB", THIN_EDGE),
    ("thin-edge.io", "  mosquitto, which they need, RSS", "10 MiB", THIN_EDGE),
    ("thin-edge.io", "memory of a gateway device, at least", "40 MB", THIN_EDGE),
    ("Greengrass nucleus lite", "all its processes at rest, PSS, Raspberry Pi 4", "14.6 MB", GREENGRASS),
    ("Greengrass nucleus lite", "  under realistic load", "15.8 MB", GREENGRASS),
    ("Greengrass nucleus lite", "  Raspberry Pi 3 (32 bit), at rest", "12.3 MB", GREENGRASS),
    ("Greengrass nucleus lite", "installed package, libraries of the system not counted", "1.09 MB", GREENGRASS),
    ("Greengrass nucleus lite", "start until its services are active, by the clock", "1,700 ms", GREENGRASS),
    ("Mender client", "its programs, stripped, libraries of the system not counted", "4 MB", MENDER),
];
const THIN_EDGE: &str = "docs/src/references/supported-platforms.md of thin-edge/thin-edge.io, 2026-08-20";
const GREENGRASS: &str = "benchmark/REPORT.md of aws-greengrass/aws-greengrass-lite, 2026-07-23";
const MENDER: &str = "Device capacity, Overview of updates for the Debian family, docs of mendersoftware, 2026-08-21";

pub(crate) async fn measure(binaries: &Binaries, folder: &Path, window: Duration) -> anyhow::Result<Vec<Table>> {
    let mut tables = agent::measure(binaries, &folder.join("agent"), window).await?;
    tables.push(sizes(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no folder above this one")?)?);
    tables.extend(flash::measure(binaries, &folder.join("flash"), window).await?);
    tables.push(published());
    Ok(tables)
}

/// Programs and packages in the project's `target`.
fn sizes(project: &Path) -> anyhow::Result<Table> {
    let mut table = Table::new("Sizes of what cross/build.sh and cross/package.sh have made");
    for (target, goal_mib) in PROGRAMS {
        let path = project.join(format!("target/cross/muster-agent-{target}"));
        match std::fs::metadata(&path) {
            Ok(found) => table.goal(&format!("agent for {target}"), mebibytes(found.len()), goal_mib, "MiB"),
            Err(_) => table.text(&format!("agent for {target}"), "not built"),
        }
    }
    for package in packages(&project.join("target/packages"))? {
        let output = Command::new("dpkg-deb").arg("--field").arg(&package).arg("Installed-Size").output();
        let output = output.context("dpkg-deb cannot be started")?;
        ensure!(output.status.success(), "{} is no package", package.display());
        let kibibytes: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        table.figure(&name, mebibytes(std::fs::metadata(&package)?.len()), "MiB");
        table.goal("  installed", kibibytes / KIB, GOAL_INSTALLED_MIB, "MiB");
    }
    Ok(table)
}

/// The agent's packages in `folder`, in the order of their names.
fn packages(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("muster-agent_") && path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn published() -> Table {
    let mut table = Table::new("What others publish about theirs");
    let mut last = "";
    for (whose, what, how_much, source) in PUBLISHED {
        if source != last {
            table.text(whose, &format!("({source})"));
            last = source;
        }
        table.text(&format!("  {what}"), how_much);
    }
    table
}
