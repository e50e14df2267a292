//! Where this agent can be reached, for programs on the device that need not know its configuration.

use std::net::SocketAddr;
use std::path::Path;

use muster_shared::ids::DeviceId;
use serde::Serialize;

use crate::files::{self, FileError};

#[derive(Serialize)]
struct Endpoints<'a> {
    device: &'a DeviceId,
    inference_url: String,
    pid: u32,
}

/// Writes `endpoints.json` into `data_dir`.
pub(crate) fn publish(data_dir: &Path, device: &DeviceId, inference: SocketAddr) -> Result<(), FileError> {
    let endpoints = Endpoints { device, inference_url: format!("http://{inference}"), pid: std::process::id() };
    let json = serde_json::to_vec(&endpoints).unwrap_or_default();
    files::write_durably(&data_dir.join("endpoints.json"), &json)
}

/// Removes it, so that nobody asks where nobody answers.
pub(crate) fn withdraw(data_dir: &Path) -> Result<(), FileError> {
    files::remove(&data_dir.join("endpoints.json"))
}
