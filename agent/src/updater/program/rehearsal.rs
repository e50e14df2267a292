//! Tries a program apart from the running agent: it must say its version, and take the present configuration.

use std::io::Read as _;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use muster_shared::limits::bounded_text;

/// How long each try may take: a slow card has to read the whole program.
const LONGEST: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// What is read of what it says.
const MAX_SAID_BYTES: u64 = 4 * 1024;

/// Tries `program`, which must be of this `version`.
///
/// # Errors
/// Why it must not be started, in words.
pub(super) fn rehearse(program: &Path, version: &semver::Version, config: Option<&Path>) -> Result<(), String> {
    let said = run(Command::new(program).arg("--version"), "say its version", LONGEST)?;
    if said.split_whitespace().last() != Some(version.to_string().as_str()) {
        return Err(format!("its manifest says version {version}, and the program itself {:?}", said.trim()));
    }
    if let Some(config) = config {
        run(Command::new(program).arg("check-config").arg("--config").arg(config), "take the configuration", LONGEST)?;
    }
    passing!(ProgramRehearsed);
    Ok(())
}

/// What the program says on its standard output, once it has ended well in time.
fn run(command: &mut Command, what: &str, longest: Duration) -> Result<String, String> {
    let cannot = |why: &str| format!("the program cannot {what}: {}", bounded_text(why));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| cannot(&error.to_string()))?;
    let began = Instant::now();
    let ended: Option<ExitStatus> = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if began.elapsed() < longest => std::thread::sleep(LOOK),
            Ok(None) => break None,
            Err(error) => return Err(cannot(&error.to_string())),
        }
    };
    let Some(status) = ended else {
        // It is over with this one in either case.
        let _ = child.kill();
        let _ = child.wait();
        return Err(cannot(&format!("it does not end within {} s", longest.as_secs())));
    };
    if !status.success() {
        let complaint = child.stderr.take().map(read).unwrap_or_default();
        return Err(cannot(&format!("{status}: {}", complaint.trim())));
    }
    Ok(child.stdout.take().map(read).unwrap_or_default())
}

/// What a program that has ended has written. Whatever it started may hold the pipe open for ever, so nothing is waited for.
fn read(pipe: impl std::io::Read + AsFd) -> String {
    let mut bytes = Vec::new();
    if rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK).is_ok() {
        let _ = pipe.take(MAX_SAID_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn tried(script: &str) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let (program, config) = (folder.path().join("muster-agent"), folder.path().join("agent.toml"));
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o500)).unwrap();
        rehearse(&program, &semver::Version::new(0, 2, 0), Some(&config))
    }

    #[test]
    fn what_cannot_run_here_is_refused_before_it_is_started_in_earnest() {
        tried("echo muster-agent 0.2.0").unwrap();
        for (script, says) in [
            ("echo muster-agent 0.3.0", "its manifest says version 0.2.0"),
            ("echo broken >&2; exit 7", "broken"),
            ("kill -SEGV $$", "signal: 11"),
            ("[ $1 = --version ] && echo muster-agent 0.2.0 || exit 1", "cannot take the configuration"),
        ] {
            let why = tried(script).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let why = run(Command::new("sleep").arg("1000"), "sleep", Duration::from_millis(50)).unwrap_err();
        assert!(why.contains("does not end"), "{why}");
    }
}
