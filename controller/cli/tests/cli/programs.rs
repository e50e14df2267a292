//! Bundles of agent programs: built, signed and checked.

use std::fs;

use crate::run::Desk;

/// What a description says of the program in the file `program`, for this architecture.
fn description(architecture: &str) -> String {
    format!(
        "name = \"muster-agent-{architecture}\"\nversion = \"0.2.0\"\nrelease-counter = 2\nsecurity-floor = 1\n\
         [program]\nfile = \"program\"\ntarget = \"{architecture}-unknown-linux-gnu\"\ntakes-over-from = \"0.1.0\"\n\
         [requirements]\narchitectures = [\"{architecture}\"]\n\
         [budgets]\nmax-memory-bytes = 33554432\n"
    )
}

#[test]
fn a_program_is_built_signed_and_held_against_its_architecture() {
    let desk = Desk::new();
    desk.trust();
    let this = std::env::consts::ARCH;
    let other = if this == "x86_64" { "aarch64" } else { "x86_64" };
    fs::copy(std::env::current_exe().unwrap(), desk.path("program")).unwrap();
    desk.write("agent.toml", description(this));
    desk.write("other.toml", description(other));

    let built = desk.ok("--output json bundle build agent.toml --out agent");
    assert_eq!(built.json()["bundle"], format!("muster-agent-{this}@0.2.0"));
    desk.ok("bundle sign agent --key release.key");
    let verified = desk.ok("--output json bundle verify agent --root root.json").json();
    assert_eq!(verified["passed"], true);
    let checks: Vec<&str> =
        verified["checks"].as_array().unwrap().iter().map(|c| c["check"].as_str().unwrap()).collect();
    assert!(checks.contains(&"program") && !checks.contains(&"golden"), "{checks:?}");
    let shown = desk.ok("bundle show agent").stdout;
    assert!(shown.contains("takes over from") && shown.contains("0.1.0"), "{shown}");

    desk.run("bundle build other.toml --out other").assert(2, &["program.file", this, other]);
    desk.write("program", "#!/bin/sh\n");
    desk.run("bundle build agent.toml --out script").assert(2, &["program.file", "ELF"]);
    assert!(!desk.path("script").exists());
}
