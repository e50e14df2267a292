//! One life of an agent: from its start to its death, and what it can be asked meanwhile.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{bail, ensure};
use muster_tests::process::Process;
use muster_tests::traffic::InferResponse;

use crate::plan::End;
use crate::stage::Example;

const VARIABLE: &str = "MUSTER_AGENT_CRASH_AT";
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// Every step at which `agent` can be made to die, as it says itself.
pub(crate) fn steps(agent: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(agent).env(VARIABLE, "list").output()?;
    let steps: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    ensure!(output.status.success() && !steps.is_empty(), "{} does not list its steps", agent.display());
    Ok(steps)
}

/// What came of a request.
pub(crate) enum Answer {
    /// This version gave these outputs.
    Given { version: String, outputs: Vec<f32> },
    /// It was turned away, in words.
    Refused(String),
    /// Nobody was there to take it.
    NotSent,
    /// It was sent, and the answer did not come.
    Lost,
}

/// A running agent.
pub(crate) struct Life {
    process: Arc<Mutex<Process>>,
    killer: Option<tokio::task::JoinHandle<()>>,
    pub(crate) end: End,
    /// It was seen to answer.
    pub(crate) answered: bool,
    /// Updates it has come through.
    pub(crate) updates: u32,
    /// Chunks that were missing at its start, and the generation of the update they are for.
    pub(crate) missing: Option<(u64, u32)>,
    /// Where its part of the log begins, in bytes.
    pub(crate) log_from: u64,
}

fn lock(process: &Mutex<Process>) -> MutexGuard<'_, Process> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Life {
    /// Starts `agent` with the configuration in `home`.
    pub(crate) fn begin(id: &str, agent: &Path, home: &Path, end: End) -> anyhow::Result<Self> {
        let log = home.join("agent.log");
        let log_from = std::fs::metadata(&log).map_or(0, |meta| meta.len());
        let mut command = Command::new(agent);
        command.arg("--config").arg(home.join("agent.toml"));
        if let End::At(target) = &end {
            command.env(VARIABLE, format!("{}:{}", target.step, target.nth));
        }
        let process = Process::start(id, &mut command, &log)?;
        let mut life = Self {
            process: Arc::new(Mutex::new(process)),
            killer: None,
            end: End::Open,
            answered: false,
            updates: 0,
            missing: None,
            log_from,
        };
        life.end_with(end);
        Ok(life)
    }

    /// Plans its end.
    pub(crate) fn end_with(&mut self, end: End) {
        if let End::After(after, asked_to_stop) = &end {
            let (process, after, asked_to_stop) = (Arc::clone(&self.process), *after, *asked_to_stop);
            self.killer = Some(tokio::spawn(async move {
                tokio::time::sleep(after).await;
                if let Some(more) = asked_to_stop {
                    let id = lock(&process).id().to_string();
                    drop(Command::new("kill").args(["-TERM", &id]).status());
                    tokio::time::sleep(more).await;
                }
                drop(lock(&process).kill());
            }));
        }
        self.end = end;
    }

    /// Whether it has died, as it was to.
    pub(crate) fn has_died(&mut self) -> anyhow::Result<bool> {
        let mut process = lock(&self.process);
        let Some(status) = process.ended()? else { return Ok(false) };
        // One that was asked to stop may have done so before it could be killed, or before it could hear of it.
        let stopped =
            matches!(self.end, End::After(_, Some(_))) && (status.success() || status.signal() == Some(SIGTERM));
        let killed = status.signal() == Some(SIGKILL) && self.end != End::Open;
        if !killed && !stopped {
            bail!("the agent ended by itself with {status}. Its log ends:\n{}", process.log_tail());
        }
        Ok(true)
    }

    /// Ends it now.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        lock(&self.process).kill()
    }

    /// The last lines of its log.
    pub(crate) fn log_tail(&self) -> String {
        lock(&self.process).log_tail()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(killer) = self.killer.take() {
            killer.abort();
        }
    }
}

/// What is asked of an agent over HTTP.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
}

/// What an agent says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gauges {
    pub(crate) windows_closed: u64,
    pub(crate) waiting: u64,
    pub(crate) chunks: u64,
}

impl Client {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        // A connection of an earlier life would make a request that nobody has seen look like one that was lost.
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).pool_max_idle_per_host(0).build()?;
        Ok(Self { http, url: url.to_owned() })
    }

    pub(crate) async fn infer(&self, example: &Example) -> Answer {
        let request = serde_json::json!({
            "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 64], "data": example.pixels() }]
        });
        let url = format!("{}/v2/models/digits/infer", self.url);
        let response = match self.http.post(url).json(&request).send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Answer::NotSent,
            Err(_) => return Answer::Lost,
        };
        let status = response.status();
        let Ok(body) = response.bytes().await else { return Answer::Lost };
        if !status.is_success() {
            return Answer::Refused(format!("{status}: {}", String::from_utf8_lossy(&body)));
        }
        match serde_json::from_slice::<InferResponse>(&body) {
            Ok(InferResponse { model_version, mut outputs }) if !outputs.is_empty() => {
                Answer::Given { version: model_version, outputs: outputs.swap_remove(0).data }
            }
            Ok(_) | Err(_) => Answer::Refused(format!("no answer: {}", String::from_utf8_lossy(&body))),
        }
    }

    /// Nothing while it does not answer.
    pub(crate) async fn gauges(&self) -> Option<Gauges> {
        let page = self.http.get(format!("{}/metrics", self.url)).send().await.ok()?.text().await.ok()?;
        let value = |name: &str| page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        Some(Gauges {
            windows_closed: value("muster_agent_windows_closed_total ")?,
            waiting: value("muster_agent_outbox_messages ")?,
            chunks: value("muster_agent_chunks_received_total ")? + value("muster_agent_chunks_copied_total ")?,
        })
    }
}
