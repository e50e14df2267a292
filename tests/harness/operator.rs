//! An operator at the command line: every step goes through the real `muster` program.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use muster_shared::api::{DeviceView, EventView};
use muster_shared::rollout::RolloutView;
use serde::de::DeserializeOwned;

use crate::controller::Controller;

/// Somebody with a token and a terminal.
#[derive(Debug, Clone)]
pub struct Operator {
    muster: PathBuf,
    url: String,
    token: String,
    ca_file: PathBuf,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit status.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
}

impl Operator {
    /// An operator of `controller`, with the administrator's token.
    #[must_use]
    pub fn of(controller: &Controller, muster: &Path) -> Self {
        Self {
            muster: muster.to_path_buf(),
            url: controller.endpoints.api_url.clone(),
            token: controller.token.clone(),
            ca_file: controller.endpoints.ca_file.clone(),
        }
    }

    /// Somebody else at the same controller, with this access token.
    #[must_use]
    pub fn as_bearer_of(&self, token: &str) -> Self {
        Self { token: token.trim().to_owned(), ..self.clone() }
    }

    /// Believes the controller by the certificates in `ca_file` from now on.
    pub fn trust(&mut self, ca_file: &Path) {
        self.ca_file = ca_file.to_path_buf();
    }

    /// Runs `muster` with `args`, whatever comes of it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn try_run(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let mut command = tokio::process::Command::from(Command::new(&self.muster));
        command
            .args(args)
            .env("MUSTER_URL", &self.url)
            .env("MUSTER_TOKEN", &self.token)
            .env("MUSTER_CA_FILE", &self.ca_file)
            .kill_on_drop(true);
        let output = command.output().await.context("muster cannot be started")?;
        Ok(Ran {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `muster` with `args` and gives what it printed.
    ///
    /// # Errors
    /// When it does not end with status 0.
    pub async fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let ran = self.try_run(args).await?;
        if ran.status != Some(0) {
            bail!("muster {} ended with {:?}: {}{}", args.join(" "), ran.status, ran.stdout, ran.stderr);
        }
        Ok(ran.stdout)
    }

    /// Runs `muster --output json` with `args` and reads what it printed.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub async fn json<T: DeserializeOwned>(&self, args: &[&str]) -> anyhow::Result<T> {
        let text = self.run(&[&["--output", "json"], args].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("muster {} printed {text}", args.join(" ")))
    }

    /// Every device.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn devices(&self) -> anyhow::Result<Vec<DeviceView>> {
        self.json(&["device", "list"]).await
    }

    /// One device.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn device(&self, id: &str) -> anyhow::Result<DeviceView> {
        self.json(&["device", "show", id]).await
    }

    /// One rollout.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn rollout(&self, id: &str) -> anyhow::Result<RolloutView> {
        self.json(&["rollout", "show", id]).await
    }

    /// The fleet's history.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn events(&self) -> anyhow::Result<Vec<EventView>> {
        self.json(&["events"]).await
    }

    /// Environment assignments for a shell in which `muster` speaks to this controller.
    #[must_use]
    pub fn shell_environment(&self) -> String {
        format!("export MUSTER_URL={} MUSTER_TOKEN={} MUSTER_CA_FILE={}", self.url, self.token, self.ca_file.display())
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.muster
    }
}
