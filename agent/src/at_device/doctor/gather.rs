//! Finds out what [`super::findings`] decides on. Everything has a bound: on time, on how much is read, on how far it is looked.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::tokio_rustls::TlsConnector;
use rustix::fs::Access;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::super::logs::UNIT;
use super::super::{ask, printed};
use super::findings::{Agent, Facts, Folder, Papers, Reach};
use super::program::Program;
use crate::boot;
use crate::causes::with_source;
use crate::config::Config;
use crate::identity::{Identity, IdentityStore, reason};
use crate::program::ProgramStore;
use crate::resources;
use crate::time::{EffectiveTime, wall_ms};
use crate::trust_store::{stored_floor, stored_root};
use crate::updater::check_committed;

/// How long one step of a connection may take.
const STEP: Duration = Duration::from_secs(5);
/// How long to wait for a refusal after a handshake: with TLS 1.3 the server looks at the device's certificate last.
const REFUSAL: Duration = Duration::from_millis(700);
/// How long another program may take.
const PROGRAM: Duration = Duration::from_secs(5);
/// How many files are looked at, and how deep they may lie.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 8;

/// Finds everything out.
pub(super) async fn gather(config: &Config, config_fault: Option<String>) -> Facts {
    let data_dir = &config.data_dir;
    let store = IdentityStore::new(data_dir);
    let time = EffectiveTime::default();
    time.set_floor(stored_floor(data_dir));
    let (identity, papers, tls) = papers(&store, &time);
    let known = identity.as_ref();
    let root = known.map(|identity| {
        let root = stored_root(data_dir, identity.root_sha256).map_err(|error| with_source(&error));
        root.map(|root| root.root().version)
    });
    let broker = async {
        let (identity, tls) = (known?, tls.as_ref()?);
        let host = config.broker.host.as_deref().unwrap_or(&identity.broker_host);
        let port = config.broker.port.unwrap_or(identity.broker_port);
        Some((format!("{host}:{port}"), reach(host, port, tls).await))
    };
    let controller = async {
        let url = known?.api_url.clone()?;
        let answer = answers(&url, tls.as_ref()?).await;
        Some((url, answer))
    };
    let (broker, controller, agent, is_synchronised, service) =
        tokio::join!(broker, controller, agent(config), is_synchronised(), service());
    let crashed = match &agent {
        Ok((_, crashed)) => *crashed,
        Err(_) => boot::earlier(&data_dir.join("run")).1,
    };
    Facts {
        now_ms: wall_ms(),
        // Builds for packages say when their sources were last changed; others say nothing.
        built_ms: option_env!("MUSTER_SOURCES_OF_S")
            .and_then(|s| s.parse::<u64>().ok())
            .unwrap_or_default()
            .saturating_mul(1_000),
        floor_ms: time.floor_ms(),
        is_synchronised,
        config_fault,
        folder: folder(data_dir),
        papers,
        root,
        broker,
        controller,
        bundle: check_committed(data_dir).map(|bundle| bundle.map(|bundle| bundle.to_string())),
        program: program(data_dir, &agent),
        agent: agent.map(|(agent, _)| agent),
        service,
        crashed,
    }
}

fn papers(store: &IdentityStore, time: &EffectiveTime) -> (Option<Identity>, Papers, Option<Arc<ClientConfig>>) {
    let identity = match store.load() {
        Ok(Some(identity)) => identity,
        Ok(None) => return (None, Papers::None, None),
        Err(error) => return (None, Papers::Unusable(with_source(&error)), None),
    };
    // The certificate is held against its key on the way.
    match store.tls(&identity, time).and_then(|tls| Ok((store.validity()?, tls))) {
        Ok((validity, tls)) => {
            let device = identity.device.to_string();
            (Some(identity), Papers::Right { device, validity }, Some(tls))
        }
        Err(error) => (Some(identity), Papers::Unusable(with_source(&error)), None),
    }
}

fn folder(path: &Path) -> Folder {
    let free_bytes = resources::disk_free_bytes(path);
    let found = Folder { path: path.to_owned(), free_bytes, ..Folder::default() };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return found,
        Err(error) => return Folder { trouble: Some(error.to_string()), ..found },
    };
    let access = rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK);
    let mut left = MAX_FILES;
    Folder {
        is_there: true,
        is_open: metadata.mode() & 0o077 != 0,
        trouble: access.err().map(|error| error.to_string()),
        foreign: foreign(path, metadata.uid(), MAX_DEPTH, &mut left),
        ..found
    }
}

/// A file below `folder` that does not belong to the user `owner`.
fn foreign(folder: &Path, owner: u32, depth: usize, left: &mut usize) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.filter_map(Result::ok) {
        *left = left.checked_sub(1)?;
        // Not followed where it is a link. Of what is removed meanwhile there is nothing to say.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.uid() != owner {
            return Some(entry.path());
        }
        if metadata.is_dir()
            && depth > 0
            && let Some(found) = foreign(&entry.path(), owner, depth - 1, left)
        {
            return Some(found);
        }
    }
    None
}

/// How far a connection to the broker comes. No word of MQTT is said: the broker would end the connection of the running agent for it.
async fn reach(host: &str, port: u16, tls: &Arc<ClientConfig>) -> Reach {
    let late = || "no answer in time".to_owned();
    let found = tokio::time::timeout(STEP, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<_> = match found {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Reach::Name(error.to_string()),
        Err(_) => return Reach::Name(late()),
    };
    let stream = match tokio::time::timeout(STEP, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Reach::Tcp(error.to_string()),
        Err(_) => return Reach::Tcp(late()),
    };
    let Ok(name) = ServerName::try_from(host.to_owned()) else {
        return Reach::Name("it is no name of a host".to_owned());
    };
    let handshake = TlsConnector::from(Arc::clone(tls)).connect(name, stream);
    let mut stream = match tokio::time::timeout(STEP, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Reach::Tls(error.to_string()),
        Err(_) => return Reach::Tls(late()),
    };
    match tokio::time::timeout(REFUSAL, stream.read(&mut [0; 1])).await {
        Ok(Err(error)) => Reach::Tls(error.to_string()),
        // A broker waits for the device to begin.
        Ok(Ok(_)) | Err(_) => Reach::Right,
    }
}

/// Whether the controller answers anything at all at its address.
async fn answers(url: &str, tls: &Arc<ClientConfig>) -> Result<(), String> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured((**tls).clone())
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(STEP)
        .build()
        .map_err(|error| reason(&error))?;
    client.get(url).send().await.map(drop).map_err(|error| reason(&error))
}

/// The running agent, and whether the run before its own did not end in order.
async fn agent(config: &Config) -> Result<(Agent, bool), String> {
    let status = ask::status(config).await.map_err(|error| error.to_string())?;
    let text = |pointer: &str| status.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let waiting = status.pointer("/configuration/restart_needed").and_then(Value::as_array);
    let agent = Agent {
        version: text("/agent_version").unwrap_or_default(),
        stuck: text("/stuck"),
        is_connected: status.pointer("/broker/connected_since_ms").is_some_and(Value::is_u64),
        link_error: text("/broker/last_error"),
        program: status.get("program").and_then(|said| serde_json::from_value(said.clone()).ok()),
        waiting: waiting.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
    };
    Ok((agent, status.get("crashed") == Some(&Value::Bool(true))))
}

/// The agent's own program: what its record says, and what the running agent says where it does.
fn program(data_dir: &Path, agent: &Result<(Agent, bool), String>) -> Result<Program, String> {
    let store = ProgramStore::new(data_dir);
    let Some(record) = store.load()? else { return Ok(Program::default()) };
    let whole = record.slots.iter().filter(|(slot, _)| record.holds_whole(**slot));
    let damaged = whole.filter_map(|(slot, content)| {
        let why = match store.digest(*slot) {
            Ok(Some(digest)) if digest == content.sha256 => return None,
            Ok(Some(_)) => "is not what was signed".to_owned(),
            Ok(None) => "is not there".to_owned(),
            Err(error) => with_source(&error),
        };
        Some((content.manifest, format!("{} in slot {} {why}", content.bundle, slot.as_str())))
    });
    let damaged = damaged.collect();
    let said = agent.as_ref().ok().and_then(|(agent, _)| agent.program.clone());
    let runs = said.is_some();
    Ok(Program { report: said.unwrap_or_else(|| record.report(record.committed)), runs, damaged })
}

/// Whether the system says that a time server keeps its clock; none where it does not say.
async fn is_synchronised() -> Option<bool> {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    let said = printed("timedatectl", &["show", "--property=NTPSynchronized", "--value"], PROGRAM).await?;
    match said.trim_ascii() {
        b"yes" => Some(true),
        b"no" => Some(false),
        _ => None,
    }
}

/// What systemd says of the service; none where it does not run here.
async fn service() -> Option<String> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let said = printed("systemctl", &["is-active", UNIT], PROGRAM).await?;
    Some(String::from_utf8_lossy(&said).trim().chars().take(40).collect())
}
