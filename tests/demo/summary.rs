//! What the demo leaves for people and programs: where everything is and how to talk to it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::story::Cast;

#[derive(Serialize)]
struct Summary {
    controller: ControllerSummary,
    agents: Vec<AgentSummary>,
}

#[derive(Serialize)]
struct ControllerSummary {
    url: String,
    token: String,
    ca_file: PathBuf,
    broker_host: String,
    broker_port: u16,
    pid: u32,
    muster: PathBuf,
    release_key_file: PathBuf,
}

#[derive(Serialize)]
struct AgentSummary {
    id: String,
    pid: u32,
    inference_url: String,
    certificate_file: PathBuf,
    key_file: PathBuf,
    ca_file: PathBuf,
    config_file: PathBuf,
}

/// Writes `demo.json` into `folder`.
pub(crate) fn write(cast: &Cast, folder: &Path) -> anyhow::Result<()> {
    let controller = &cast.fleet.controller;
    let summary = Summary {
        controller: ControllerSummary {
            url: controller.endpoints.api_url.clone(),
            token: controller.token.clone(),
            ca_file: controller.endpoints.ca_file.clone(),
            broker_host: controller.endpoints.broker_host.clone(),
            broker_port: controller.endpoints.broker_port,
            pid: controller.process_id(),
            muster: cast.fleet.binaries.muster.clone(),
            release_key_file: folder.join("keys/release.key"),
        },
        agents: cast
            .fleet
            .devices
            .iter()
            .map(|device| AgentSummary {
                id: device.id.clone(),
                pid: device.process_id(),
                inference_url: device.inference_url.clone(),
                certificate_file: device.folder().join("data/identity/device.pem"),
                key_file: device.folder().join("data/identity/device.key"),
                ca_file: device.folder().join("data/identity/ca.pem"),
                config_file: device.folder().join("agent.toml"),
            })
            .collect(),
    };
    let temporary = folder.join("demo.json.tmp");
    std::fs::write(&temporary, serde_json::to_vec_pretty(&summary)?)?;
    std::fs::rename(temporary, folder.join("demo.json"))?;
    Ok(())
}

/// What to try next, for a person.
pub(crate) fn for_people(cast: &Cast, folder: &Path) -> String {
    let Some(device) = cast.fleet.devices.first() else {
        return String::new();
    };
    let zeros = vec!["0"; 64].join(",");
    format!(
        "\nThe fleet stays up until you press Ctrl-C. In another terminal:\n\n  {environment}\n  {muster} device list\n  \
         {muster} rollout list\n  {muster} rollout show {rollout}\n  {muster} drift show digits@1.1.0 --group-by site\n  \
         {muster} events --follow\n  curl -s {inference}/v2/models/digits/infer -d \
         '{{\"inputs\":[{{\"name\":\"image\",\"datatype\":\"FP32\",\"shape\":[1,64],\"data\":[{zeros}]}}]}}'\n\n\
         API  {api} (description at {api}/api/v1/openapi.json)\nData {folder}",
        environment = cast.fleet.operator.shell_environment(),
        muster = cast.fleet.operator.program().display(),
        rollout = cast.bad_rollout,
        inference = device.inference_url,
        api = cast.fleet.controller.endpoints.api_url,
        folder = folder.display(),
    )
}
