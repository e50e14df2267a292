//! A controller of one's own.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use crate::binaries::Binaries;
use crate::metrics;
use crate::process::Process;
use crate::wait;

/// What the controller writes once it can be reached.
#[derive(Debug, Clone, Deserialize)]
pub struct Endpoints {
    /// Base URL of the API.
    pub api_url: String,
    /// Host of the broker.
    pub broker_host: String,
    /// Port of the broker.
    pub broker_port: u16,
    /// The CA's certificate in PEM.
    pub ca_file: PathBuf,
}

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    binary: PathBuf,
    folder: PathBuf,
    process: Process,
    /// Where it can be reached.
    pub endpoints: Endpoints,
    /// The administrator's bearer token.
    pub token: String,
}

impl Controller {
    /// Starts a controller with its data in `folder`; `settings` are further lines of its configuration.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(binaries: &Binaries, folder: &Path, settings: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let config = format!(
            "data-dir = {:?}\n{settings}\n[api]\nlisten = \"127.0.0.1:0\"\n[broker]\nlisten = \"127.0.0.1:0\"\n",
            folder.join("data")
        );
        std::fs::write(folder.join("controller.toml"), config)?;
        let (process, endpoints) = Self::launch(&binaries.controller, folder).await?;
        let token_file = folder.join("data/admin.token");
        let token = std::fs::read_to_string(&token_file).with_context(|| format!("{}", token_file.display()))?;
        // From now on the ports stay the same, so that devices find it again after a restart.
        let api = endpoints.api_url.trim_start_matches("https://").to_owned();
        let broker = format!("{}:{}", endpoints.broker_host, endpoints.broker_port);
        let config = std::fs::read_to_string(folder.join("controller.toml"))?
            .replacen("127.0.0.1:0", &api, 1)
            .replacen("127.0.0.1:0", &broker, 1);
        std::fs::write(folder.join("controller.toml"), config)?;
        Ok(Self {
            binary: binaries.controller.clone(),
            folder: folder.to_path_buf(),
            process,
            endpoints,
            token: token.trim().to_owned(),
        })
    }

    async fn launch(binary: &Path, folder: &Path) -> anyhow::Result<(Process, Endpoints)> {
        let file = folder.join("data/endpoints.json");
        if file.exists() {
            std::fs::remove_file(&file)?;
        }
        let mut process = Process::start(
            "the controller",
            Command::new(binary).arg("serve").arg("--config").arg(folder.join("controller.toml")),
            &folder.join("controller.log"),
        )?;
        let endpoints: Endpoints = wait::until("the controller comes up", Duration::from_secs(60), async || {
            process.ensure_running()?;
            Ok(std::fs::read(&file).ok().map(|bytes| serde_json::from_slice(&bytes)).transpose()?)
        })
        .await?;
        let broker = (endpoints.broker_host.clone(), endpoints.broker_port);
        wait::until("the broker takes connections", Duration::from_secs(30), async || {
            Ok(TcpStream::connect(&broker).ok())
        })
        .await?;
        Ok((process, endpoints))
    }

    /// Kills it with SIGKILL and starts it again on the same ports and data.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn crash_and_restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        let (process, endpoints) = Self::launch(&self.binary, &self.folder).await?;
        self.process = process;
        self.endpoints = endpoints;
        Ok(())
    }

    /// The value of a counter or gauge on its `/metrics` page, as [`crate::device::Device::metric`].
    ///
    /// # Errors
    /// When the page cannot be read.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let path = &self.endpoints.ca_file;
        let pem = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
        let client = reqwest::Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&pem)?]).build()?;
        metrics::read(&client, self.endpoints.api_url.trim_end_matches('/'), name).await
    }

    /// Its process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Its process, to stop or watch it.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The folder with its configuration, log and data.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
