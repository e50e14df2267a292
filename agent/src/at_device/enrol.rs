//! `muster-agent enrol`: joins the controller now, without starting the service.
//!
//! The papers belong to the service's user: root starts this program once more as that user, so that nothing is written in its folder by
//! anybody else. A token is never an argument: every user of the device can see the arguments of every process.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use muster_shared::token::EnrolmentToken;
use serde::Serialize;

use super::{DeviceArgs, Outcome, block_on, formed};
use crate::accounts::{self, Account};
use crate::config::{Config, TokenPlaces};
use crate::daemon::keep_papers;
use crate::files::{self, FileError};
use crate::identity::{Identity, IdentityStore, enrol};
use crate::log;
use crate::status::moment;
use crate::time::{EffectiveTime, wall_ms};

/// The user that the package makes for the service.
const USER: &str = "muster-agent";
/// Room for a token and white space around it.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

/// With which token.
#[derive(Debug, Args)]
pub(crate) struct EnrolArgs {
    /// A file that holds what `muster token create` printed, or - for standard input [default: as configured]. The token itself is no
    /// argument, because every user of the device can see those.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long to wait for a controller that is away, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Answer {
    device: String,
    broker: String,
    enrolled_at_ms: u64,
    /// Whether it was before.
    already: bool,
}

impl Answer {
    fn of(identity: &Identity, already: bool) -> Self {
        Self {
            device: identity.device.to_string(),
            broker: format!("{}:{}", identity.broker_host, identity.broker_port),
            enrolled_at_ms: identity.enrolled_at_ms,
            already,
        }
    }

    fn text(&self) -> String {
        if self.already {
            let since = moment(self.enrolled_at_ms, wall_ms());
            return format!(
                "this device is enrolled already, as {}, since {since}: nothing is to be done",
                self.device
            );
        }
        format!(
            "enrolled as {}, with the broker at {}\nNext: systemctl enable --now muster-agent",
            self.device, self.broker
        )
    }
}

/// Enrols.
///
/// # Errors
/// Why the device could not be enrolled, and what to do.
pub(crate) fn run(args: &EnrolArgs) -> anyhow::Result<Outcome> {
    let config = args.device.load()?;
    let token = match &args.token_file {
        Some(path) => Some(read_token(path)?),
        None => config.enrolment_token(&TokenPlaces::of_environment())?,
    };
    if rustix::process::geteuid().is_root() {
        let owner = prepare_folder(&config.data_dir)?;
        if owner.user != 0 {
            return as_user(owner, args, token.as_ref());
        }
    }
    // What goes on shows while it does.
    log::install(&config.log)?;
    let identity = block_on(join(&config, token, Duration::from_secs(args.wait)))??;
    Ok(Outcome { text: formed(args.device.output, &identity, Answer::text), is_well: true })
}

fn read_token(path: &Path) -> anyhow::Result<EnrolmentToken> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_TOKEN_BYTES).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read the token from {}", path.display()))?;
    let parsed = String::from_utf8_lossy(&bytes).trim().parse();
    parsed.with_context(|| {
        format!("{} holds no enrolment token: put into it what `muster token create` printed", path.display())
    })
}

/// The owner of the data folder, which is made as the service would where it is missing.
fn prepare_folder(data_dir: &Path) -> anyhow::Result<Account> {
    let failed = || format!("cannot make the data folder {}", data_dir.display());
    if let Ok(found) = std::fs::metadata(data_dir) {
        return Ok(Account { user: found.uid(), group: found.gid() });
    }
    let owner = accounts::user(USER).unwrap_or(Account { user: 0, group: 0 });
    if let Some(parent) = data_dir.parent() {
        std::fs::create_dir_all(parent).with_context(failed)?;
    }
    std::fs::DirBuilder::new().mode(0o700).create(data_dir).with_context(failed)?;
    std::os::unix::fs::chown(data_dir, Some(owner.user), Some(owner.group)).with_context(failed)?;
    Ok(owner)
}

/// Does the same as the user that owns the data folder.
fn as_user(owner: Account, args: &EnrolArgs, token: Option<&EnrolmentToken>) -> anyhow::Result<Outcome> {
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let mut command = Command::new(program);
    command.arg("enrol").arg("--wait").arg(args.wait.to_string()).uid(owner.user).gid(owner.group);
    command.args(["--output", if args.device.output == super::Output::Json { "json" } else { "text" }]);
    command.args(args.device.config.iter().flat_map(|path| [Path::new("--config"), path.as_path()]));
    command.args(token.map(|_| ["--token-file", "-"]).into_iter().flatten());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot go on as the service's user")?;
    if let (Some(token), Some(mut stdin)) = (token, child.stdin.take()) {
        stdin.write_all(token.to_token_string().as_bytes()).context("the token could not be handed on")?;
    }
    let output = child.wait_with_output()?;
    // What went wrong it has said on standard error.
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    Ok(Outcome { text, is_well: output.status.success() })
}

async fn join(config: &Config, token: Option<EnrolmentToken>, wait: Duration) -> anyhow::Result<Answer> {
    let data_dir = &config.data_dir;
    let store = IdentityStore::new(data_dir);
    if let Some(identity) = store.load()? {
        return known(&identity, token.as_ref(), data_dir);
    }
    files::make_folder(data_dir)?;
    let _lock = match files::lock(data_dir) {
        Err(error @ FileError::Locked { .. }) => {
            return Err(anyhow::Error::new(error).context(
                "the agent runs: it enrols by itself with the token of its configuration; or stop it first, with systemctl stop muster-agent",
            ));
        }
        lock => lock?,
    };
    let token = token.context(
        "there is no enrolment token: name a file that holds one with --token-file, or set enrolment-token-file in the configuration",
    )?;
    let time = EffectiveTime::default();
    let joining = enrol(&store, &token, config.device_id.as_ref(), config.provisioned.as_ref(), &time);
    let Ok(enrolled) = tokio::time::timeout(wait, joining).await else {
        bail!(
            "the controller at {} did not answer within {} s: is the network up, and the address right? --wait gives it longer",
            token.url,
            wait.as_secs()
        );
    };
    Ok(Answer::of(&keep_papers(data_dir, &store, &enrolled?)?, false))
}

/// What a device that is enrolled answers: asked to join its own controller again it has nothing to do, and another one must not take it
/// away by a slip.
fn known(identity: &Identity, token: Option<&EnrolmentToken>, data_dir: &Path) -> anyhow::Result<Answer> {
    if token.is_some_and(|token| token.root_sha256 != identity.root_sha256) {
        bail!(
            "this device is enrolled with another controller, as {}: to hand it over, stop the agent (systemctl stop muster-agent), remove {} and enrol again",
            identity.device,
            data_dir.join("identity").display()
        );
    }
    Ok(Answer::of(identity, true))
}
