//! A device: one agent process with a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use crate::binaries::Binaries;
use crate::link::Link;
use crate::metrics;
use crate::process::Process;
use crate::wait;

#[derive(Debug, Deserialize)]
struct AgentEndpoints {
    inference_url: String,
    pid: u32,
}

/// How a device is set up.
#[derive(Debug, Clone)]
pub struct DeviceSetup<'a> {
    /// Its name.
    pub id: &'a str,
    /// The enrolment token.
    pub token: &'a str,
    /// Length of a monitoring window, in milliseconds.
    pub window_ms: u64,
    /// Further lines of its configuration.
    pub settings: &'a str,
}

/// A running device.
#[derive(Debug)]
pub struct Device {
    /// Its name.
    pub id: String,
    /// Where applications ask it for predictions.
    pub inference_url: String,
    binary: PathBuf,
    folder: PathBuf,
    process: Process,
    link: Option<Link>,
}

/// Adds `lines` to the section of `config` with this name, which it may lack.
fn set(config: &mut String, section: &str, lines: &str) {
    let head = format!("[{section}]\n");
    if config.contains(&head) {
        *config = config.replacen(&head, &format!("{head}{lines}\n"), 1);
    } else {
        config.push_str(&format!("\n{head}{lines}\n"));
    }
}

impl Device {
    /// Starts a device in `folder`; with `link`, it reaches the broker only through that.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(
        binaries: &Binaries,
        folder: &Path,
        setup: &DeviceSetup<'_>,
        link: Option<Link>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut config = format!(
            "data-dir = {:?}\ndevice-id = {:?}\nenrolment-token = {:?}\n",
            folder.join("data"),
            setup.id,
            setup.token
        );
        config.push_str(setup.settings);
        set(&mut config, "serve", "listen = \"127.0.0.1:0\"");
        set(&mut config, "monitor", &format!("window-ms = {}", setup.window_ms));
        if let Some(link) = &link {
            set(&mut config, "broker", &format!("host = \"{}\"\nport = {}", link.address.ip(), link.address.port()));
        }
        std::fs::write(folder.join("agent.toml"), config)?;
        let (process, inference_url) = Self::launch(setup.id, &binaries.agent, folder).await?;
        // Applications keep the address of their device, so it stays the same over restarts.
        let address = inference_url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let config = std::fs::read_to_string(folder.join("agent.toml"))?.replacen("127.0.0.1:0", &address, 1);
        std::fs::write(folder.join("agent.toml"), config)?;
        Ok(Self {
            id: setup.id.to_owned(),
            inference_url,
            binary: binaries.agent.clone(),
            folder: folder.to_path_buf(),
            process,
            link,
        })
    }

    async fn launch(id: &str, binary: &Path, folder: &Path) -> anyhow::Result<(Process, String)> {
        let mut process = Process::start(
            id,
            Command::new(binary).arg("--config").arg(folder.join("agent.toml")),
            &folder.join("agent.log"),
        )?;
        let file = folder.join("data/endpoints.json");
        let own = process.id();
        let endpoints = wait::until(&format!("{id} comes up"), Duration::from_secs(60), async || {
            process.ensure_running()?;
            let endpoints: Option<AgentEndpoints> =
                std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            // A file of an earlier life names another process.
            Ok(endpoints.filter(|endpoints| endpoints.pid == own))
        })
        .await?;
        Ok((process, endpoints.inference_url.trim_end_matches('/').to_owned()))
    }

    /// Ends it as a power cut would: SIGKILL.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// Starts it again after [`Self::kill`] or a stop.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let (process, inference_url) = Self::launch(&self.id, &self.binary, &self.folder).await?;
        self.process = process;
        self.inference_url = inference_url;
        Ok(())
    }

    /// Its link to the broker, where it has one of its own.
    ///
    /// # Errors
    /// When it was started without.
    pub fn link(&self) -> anyhow::Result<&Link> {
        self.link.as_ref().with_context(|| format!("{} has no link of its own", self.id))
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

    /// The value of a counter or gauge on its `/metrics` page, summed over labels; 0 when it is not there.
    ///
    /// # Errors
    /// When the page cannot be read.
    pub async fn metric(&self, client: &reqwest::Client, name: &str) -> anyhow::Result<f64> {
        metrics::read(client, &self.inference_url, name).await
    }
}
