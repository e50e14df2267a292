//! The systemd unit, as systemd itself judges it.

use std::process::{Command, Output};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/debian/muster-agent.service");
/// What the service may be exposed at most: 2.0 is "OK".
const MOST_EXPOSED: f64 = 2.0;

/// What `systemd-analyze` says; nothing where there is none, which is said.
#[expect(clippy::print_stdout, reason = "a test that looks at nothing says so")]
fn analyze(arguments: &[&str]) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("the unit is not looked at: systemd-analyze cannot be started ({error})");
            None
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_service_is_exposed_to_little() {
    let Some(output) = analyze(&["security", "--offline=true", "--no-pager", UNIT]) else { return };
    let report = text(&output.stdout);
    let level = report.lines().find_map(|line| line.split_once("Overall exposure level")?.1.split_once(": "));
    let level: f64 =
        level.unwrap_or_else(|| panic!("no level in {report}")).1.split(' ').next().unwrap().parse().unwrap();
    assert!(level <= MOST_EXPOSED, "{report}");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    // The program and its page are not installed here: in their place is one that is.
    let folder = tempfile::tempdir().unwrap();
    let unit = std::fs::read_to_string(UNIT).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/muster-agent ") && unit.contains("\nDocumentation=man:"));
    let lines = unit.lines().filter(|line| !line.starts_with("Documentation=man:"));
    let unit: String = lines.map(|line| line.replace("/usr/bin/muster-agent ", "/bin/true ") + "\n").collect();
    let path = folder.path().join("muster-agent.service");
    std::fs::write(&path, unit).unwrap();
    let Some(output) = analyze(&["verify", path.to_str().unwrap()]) else { return };
    // What other units of this machine are reproached with is no matter here.
    let about_it: Vec<String> =
        text(&output.stderr).lines().filter(|line| line.contains("muster-agent")).map(str::to_owned).collect();
    assert!(output.status.success() && about_it.is_empty(), "{about_it:?}");
}
