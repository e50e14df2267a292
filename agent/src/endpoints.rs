//! Where this agent can be reached, for programs on the device that need not know its configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};

use crate::causes::with_source;
use crate::files::{self, FileError};

/// Larger than what is ever written.
const MAX_FILE_BYTES: u64 = 4_096;
/// Pause between attempts to write the file.
const TRY_AGAIN: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Endpoints<'a> {
    device: &'a DeviceId,
    inference_url: String,
    pid: u32,
}

/// Where the agent on `data_dir` says that it answers; none where it says nothing, as when it does not run or the file is not ours to read.
pub(crate) fn published(data_dir: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Published {
        inference_url: String,
    }
    let bytes = files::read_start(&data_dir.join("endpoints.json"), MAX_FILE_BYTES).ok()??;
    let Published { inference_url } = serde_json::from_slice(&bytes).ok()?;
    Some(inference_url.trim_end_matches('/').to_owned())
}

/// A client for the agent on this device. It answers plain HTTP, so nobody's certificates are trusted: a device may have none of any authority,
/// and a client that looks for them cannot be made there.
pub(crate) fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder().tls_certs_only([]).no_proxy()
}

/// Writes `endpoints.json` into `data_dir`, and tries again for as long as that fails: the programs that look for it can
/// wait, serving cannot.
pub(crate) async fn publish(data_dir: PathBuf, device: DeviceId, inference: SocketAddr) {
    let endpoints =
        Endpoints { device: &device, inference_url: format!("http://{inference}"), pid: std::process::id() };
    let json = serde_json::to_vec(&endpoints).unwrap_or_default();
    let mut said = false;
    loop {
        let written = tokio::task::block_in_place(|| files::write_durably(&data_dir.join("endpoints.json"), &json));
        match written {
            Ok(()) => {
                passing!(Published);
                return;
            }
            Err(error) if !said => {
                tracing::error!(error = %with_source(&error), "programs on this device cannot find the agent by its file");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

/// Removes it, so that nobody asks where nobody answers.
pub(crate) fn withdraw(data_dir: &Path) -> Result<(), FileError> {
    files::remove(&data_dir.join("endpoints.json"))
}
