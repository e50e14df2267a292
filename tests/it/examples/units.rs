//! The systemd units beside the examples.

use std::process::Command;

use anyhow::{Context as _, ensure};
use muster_tests::fixtures;

use super::folder;

#[test]
#[ignore = "needs systemd-analyze: .ci/examples PYTHON"]
fn systemd_takes_every_unit() -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    // In place of programs that are not installed here.
    let with_a_program = |text: &str| {
        let lines = text.lines().map(|line| if line.starts_with("ExecStart=") { "ExecStart=/bin/true" } else { line });
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let agent = fixtures::folder().join("../../agent/debian/muster-agent.service");
    std::fs::write(place.path().join("muster-agent.service"), with_a_program(&std::fs::read_to_string(agent)?))?;
    let mut units = 0;
    for entry in std::fs::read_dir(folder())? {
        let entry = entry?.path();
        if !entry.is_dir() {
            continue;
        }
        let files = std::fs::read_dir(&entry)?.collect::<Result<Vec<_>, _>>()?;
        let is_unit = |path: &std::path::PathBuf| path.extension().is_some_and(|ending| ending == "service");
        let unit = files.into_iter().map(|file| file.path()).find(is_unit);
        let unit = unit.with_context(|| format!("{} has no unit", entry.display()))?;
        let text = std::fs::read_to_string(&unit)?;
        for line in [
            "After=muster-agent.service",
            "Wants=muster-agent.service",
            "SupplementaryGroups=muster-clients",
            "Restart=on-failure",
            "ProtectSystem=strict",
        ] {
            ensure!(text.contains(line), "{} lacks {line}", unit.display());
        }
        let has_a_user = text.contains("DynamicUser=yes") || text.contains("\nUser=");
        ensure!(has_a_user, "{} runs as root", unit.display());
        let copy = place.path().join(unit.file_name().context("a unit has a name")?);
        std::fs::write(&copy, with_a_program(&text))?;
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && said.is_empty(), "{}: {said}", unit.display());
        units += 1;
    }
    ensure!(units == 6, "{units} examples have units");
    Ok(())
}
