//! The Muster command line: build, sign and push bundles, label devices, drive rollouts, look at drift.
//!
//! This file turns arguments into a command and its end into an exit code. What each command does is in the file of
//! its name.

mod access;
mod alerts;
mod analysis;
mod api_client;
mod broker;
mod bundle;
mod ca;
mod command;
mod completions;
#[cfg(test)]
mod damage;
mod device;
mod disk;
mod drift;
mod duration;
mod events;
mod failure;
mod feedback;
mod freeze;
mod gate;
mod image_file;
mod key;
mod key_file;
mod manual;
mod moment;
mod output;
mod pairs;
mod passphrase;
mod profile;
mod quality;
mod reference_file;
mod rollout;
mod root;
mod samples;
mod settings;
mod settings_file;
mod signer;
mod table_file;
mod token;
mod trust;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = command::Cli::parse();
    match command::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_silent() {
                output::error(&failure.chain());
            }
            ExitCode::from(failure.exit_code())
        }
    }
}
