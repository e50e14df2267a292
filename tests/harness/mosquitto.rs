//! The mosquitto broker, where it is installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::Process;
use crate::{programs, wait};

/// How long it may take until it takes connections.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the program is.
#[must_use]
pub fn program() -> Option<PathBuf> {
    programs::find(&["mosquitto"])
}

/// Mosquitto in a controller's place: devices find it where that one's broker was, with that one's papers.
#[derive(Debug)]
pub struct StandIn {
    /// The broker.
    pub process: Process,
    /// The socket at which a client may hear and say everything.
    pub socket: PathBuf,
}

impl StandIn {
    /// Starts `mosquitto` on the controller's `port` with the papers in its folder `pki`; configuration, log and socket go to `folder`.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(mosquitto: &Path, folder: &Path, pki: &Path, port: u16) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let socket = folder.join("client.sock");
        let config = format!(
            "per_listener_settings true\npersistence false\nmax_queued_messages 0\nuser root\n\
             listener {port} 127.0.0.1\ncafile {pki}/ca.pem\ncertfile {pki}/server.pem\nkeyfile {pki}/server.key\n\
             require_certificate true\nallow_anonymous true\n\
             listener 0 {socket}\nallow_anonymous true\n",
            pki = pki.display(),
            socket = socket.display(),
        );
        std::fs::write(folder.join("mosquitto.conf"), config)?;
        let mut command = Command::new(mosquitto);
        command.arg("-c").arg(folder.join("mosquitto.conf"));
        let mut process = Process::start("mosquitto", &mut command, &folder.join("mosquitto.log"))?;
        wait::until("mosquitto takes connections", PATIENCE, async || {
            process.ensure_running()?;
            Ok(std::os::unix::net::UnixStream::connect(&socket).ok())
        })
        .await?;
        Ok(Self { process, socket })
    }
}
