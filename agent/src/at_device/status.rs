//! `muster-agent status`: what runs, why and since when; from the agent's files where it does not run.

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;

use super::{DeviceArgs, Outcome, Output, ask, block_on};
use crate::attributes::AGENT_VERSION;
use crate::boot;
use crate::config::Config;
use crate::identity::IdentityStore;
use crate::program::ProgramStore;
use crate::resources;
use crate::status::{self, Status};
use crate::time::wall_ms;
use crate::trust_store::stored_root;
use crate::updater::stored_record;

/// What files say while no agent answers.
#[derive(Debug, Serialize)]
pub(super) struct Stored {
    /// Always false here.
    answers: bool,
    /// Why nobody answers.
    why: String,
    /// What cannot be read.
    unreadable: Vec<String>,
    /// The rest.
    #[serde(flatten)]
    status: Status,
}

/// Asks, and says what was found. All is well while the agent answers and nothing in it stands still.
///
/// # Errors
/// When the configuration cannot be used.
pub(crate) fn run(args: &DeviceArgs) -> anyhow::Result<Outcome> {
    let config = args.load()?;
    block_on(async {
        let answer = match ask::status(&config).await {
            Ok(answer) => answer,
            Err(error) => {
                let stored = stored(&config, error.0);
                let text = super::formed(args.output, &stored, text_of_stored);
                return Ok(Outcome { text, is_well: false });
            }
        };
        let is_well = answer.get("stuck").is_none_or(Value::is_null);
        let text = match args.output {
            Output::Text => {
                ask::get(&config, "/status", true).await.context("the agent answered once, and then no more")?
            }
            Output::Json => serde_json::to_string_pretty(&answer)?,
        };
        Ok(Outcome { text: text.trim_end().to_owned(), is_well })
    })?
}

/// What the files in the data folder say.
pub(super) fn stored(config: &Config, why: String) -> Stored {
    let data_dir = &config.data_dir;
    let (starts, crashed) = boot::earlier(&data_dir.join("run"));
    let mut unreadable = Vec::new();
    let mut status = Status {
        agent_version: AGENT_VERSION,
        clock_ms: wall_ms(),
        starts,
        crashed,
        // Where the folder is not there yet, it is the disk that it will be on.
        disk_free_bytes: data_dir.ancestors().find(|path| path.exists()).map_or(0, resources::disk_free_bytes),
        data_dir: data_dir.clone(),
        ..Status::default()
    };
    match stored_record(data_dir) {
        Ok(Some(record)) => {
            status.committed = record.committed_bundle();
            status.update = Some(record.update_report());
        }
        Ok(None) => {}
        Err(why) => unreadable.push(why),
    }
    match ProgramStore::new(data_dir).load() {
        Ok(record) => status.program = record.map(|record| record.report(record.committed)),
        Err(why) => unreadable.push(why),
    }
    let store = IdentityStore::new(data_dir);
    match store.load() {
        Ok(Some(identity)) => {
            match store.validity() {
                Ok(validity) => status.certificate_expires_ms = Some(validity.not_after_ms),
                Err(error) => unreadable.push(crate::causes::with_source(&error)),
            }
            match stored_root(data_dir, identity.root_sha256) {
                Ok(root) => status.root_version = Some(root.root().version),
                Err(error) => unreadable.push(crate::causes::with_source(&error)),
            }
            status.device = Some(identity.device);
        }
        Ok(None) => {}
        Err(error) => unreadable.push(crate::causes::with_source(&error)),
    }
    Stored { answers: false, why, unreadable, status }
}

pub(super) fn text_of_stored(stored: &Stored) -> String {
    let mut text = format!("The agent does not answer ({}).\nIts files say:\n", stored.why);
    text.push_str(&status::text(&stored.status));
    for problem in &stored.unreadable {
        text.push_str(&format!("unreadable: {problem}\n"));
    }
    text.push_str("Next: muster-agent doctor, muster-agent logs, or systemctl start muster-agent");
    text
}
