//! Brings the programs under test into the state in which they ship, and gives them room for many connections.

use anyhow::{Context as _, ensure};
use muster_tests::binaries::Binaries;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors the bench and the controller need besides one for each device.
const OTHER_DESCRIPTORS: u64 = 256;

/// Builds the programs in the way this one was built, the agent where `with_agent` says so.
///
/// The agent is built once more by itself, as its packages are: in one build with the controller it gets the features that
/// the controller asks of shared libraries, a second cryptography library among them, and would be measured with it.
///
/// # Errors
/// When they do not build.
pub(crate) fn build(with_agent: bool) -> anyhow::Result<()> {
    Binaries::build(&["muster-controller", "muster"])?;
    if with_agent { Binaries::build(&["muster-agent"]) } else { Ok(()) }
}

/// Lets this process, and the controller that inherits it, hold a connection to each of `devices`.
///
/// # Errors
/// When the system's hard limit is too low.
pub(crate) fn raise_file_limit(devices: u32) -> anyhow::Result<()> {
    let needed = u64::from(devices) + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    ensure!(
        limit.maximum.is_none_or(|maximum| maximum >= needed),
        "{devices} devices need {needed} open files, and the hard limit is {}: raise it (ulimit -Hn), or ask for fewer \
         with --devices",
        limit.maximum.unwrap_or_default()
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })
        .context("the limit of open files cannot be raised")
}
