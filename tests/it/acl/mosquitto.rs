//! A real mosquitto, configured as `muster broker` says and not otherwise, but for places of files and a socket from which a test may see
//! and say everything.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::process::Process;
use muster_tests::wait;

use super::client::{Client, Door, Hello, Subscription};

/// What mosquitto says when SIGHUP has reached it.
const RELOADING: &str = "Reloading config.";

/// A running mosquitto.
pub(super) struct Mosquitto {
    program: PathBuf,
    folder: PathBuf,
    pub(super) port: u16,
    process: Process,
}

impl Mosquitto {
    /// Starts one in `folder`, under the CA of the fleet.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) async fn start(program: &Path, fleet: &Fleet, folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let pki = fleet.controller.endpoints.ca_file.parent().context("the folder of the CA")?;
        for file in ["ca.pem", "server.pem", "server.key"] {
            std::fs::copy(pki.join(file), folder.join(file))?;
        }
        let rules = fleet.operator.run(&["broker", "acl", "--format", "mosquitto"]).await?;
        std::fs::write(folder.join("acl"), rules)?;
        fetch_list(fleet, folder).await?;
        // Free a moment ago; there is no way to hand a socket over.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let printed = fleet.operator.run(&["broker", "acl", "--format", "mosquitto-conf"]).await?;
        let adapted = printed
            .replace("/etc/mosquitto/muster/", &format!("{}/", folder.display()))
            .replace("listener 8883", &format!("listener {port} 127.0.0.1"));
        ensure!(adapted.contains(&format!("listener {port} ")), "the listener is not where it was:\n{printed}");
        let socket = folder.join("overseer.sock");
        let besides = format!("user root\nsys_interval 1\nlistener 0 {}\nallow_anonymous true\n", socket.display());
        std::fs::write(folder.join("mosquitto.conf"), adapted + &besides)?;
        let process = launch(program, folder).await?;
        Ok(Self { program: program.to_owned(), folder: folder.to_owned(), port, process })
    }

    /// Somebody who hears whatever `filter` takes in.
    ///
    /// # Errors
    /// When mosquitto is not there.
    pub(super) fn overseer(&self, client_id: &str, filter: &str) -> anyhow::Result<Client> {
        let Door::Open(mut client) =
            Client::connect_locally(&self.folder.join("overseer.sock"), &Hello::of(client_id))?
        else {
            bail!("the overseer is not let in");
        };
        ensure!(client.subscribe(filter)? == Subscription::Granted, "the overseer may not hear {filter}");
        Ok(client)
    }

    /// Fetches the list of revoked certificates and has it read.
    ///
    /// # Errors
    /// When that fails.
    pub(super) async fn take_new_list(&mut self, fleet: &Fleet) -> anyhow::Result<()> {
        fetch_list(fleet, &self.folder).await?;
        let log = self.folder.join("mosquitto.log");
        let reloads = || anyhow::Ok(std::fs::read_to_string(&log)?.matches(RELOADING).count());
        let before = reloads()?;
        let told = Command::new("kill").args(["-HUP", &self.process.id().to_string()]).status()?;
        ensure!(told.success(), "SIGHUP was refused");
        // It says so and reads everything before it looks at connections again.
        wait::until("mosquitto reads its files again", PATIENCE, async || Ok((reloads()? > before).then_some(()))).await
    }

    /// Stops it and starts it again.
    ///
    /// # Errors
    /// When it does not come up again.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.stop().await?;
        self.process = launch(&self.program, &self.folder).await?;
        Ok(())
    }
}

async fn fetch_list(fleet: &Fleet, folder: &Path) -> anyhow::Result<()> {
    let list = folder.join("crl.pem");
    let list = list.to_str().context("a path in UTF-8")?;
    fleet.operator.run(&["broker", "crl", "--out", list, "--force"]).await.map(|_| ())
}

async fn launch(program: &Path, folder: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(program);
    command.arg("-v").arg("-c").arg(folder.join("mosquitto.conf"));
    let mut process = Process::start("mosquitto", &mut command, &folder.join("mosquitto.log"))?;
    wait::until("mosquitto takes connections", PATIENCE, async || {
        process.ensure_running()?;
        Ok(UnixStream::connect(folder.join("overseer.sock")).ok())
    })
    .await?;
    Ok(process)
}
