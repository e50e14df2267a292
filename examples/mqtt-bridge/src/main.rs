//! Takes inputs from a local MQTT bus, asks the agent on this device, and publishes its predictions. What it has not yet answered
//! stays with the broker, so that it needs no memory of its own for a flood, and loses nothing in a restart.

mod bus;
mod config;
mod decide;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use muster_example_client::ask::Agent;
use muster_example_client::backoff;
use tokio::signal::unix::{SignalKind, signal};

/// Takes inputs from a local MQTT bus, asks the agent on this device and publishes its predictions.
#[derive(Parser)]
struct Arguments {
    /// Its settings; bridge.example.toml shows them all.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let text = match Arguments::parse().config {
        Some(path) => std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?,
        None => String::new(),
    };
    let config = config::Config::parse(&text).context("the configuration is wrong")?;
    let agent = Agent {
        socket: config.agent.socket.clone(),
        model: config.agent.model.clone(),
        timeout: Duration::from_millis(config.agent.timeout_ms.into()),
    };
    let held_up = bus::HeldUp::default();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut attempt = 0;
    loop {
        let began = tokio::time::Instant::now();
        let stop = async {
            tokio::select! { _ = term.recv() => (), _ = int.recv() => () }
        };
        let error = match bus::serve(&config, &agent, &held_up, stop).await {
            Ok(bus::End::Stopped) => return Ok(()),
            Ok(bus::End::Overflow) => continue,
            Err(error) => error,
        };
        // One that held for a while is no sign that the next will not.
        attempt = if began.elapsed() > Duration::from_secs(60) { 1 } else { attempt + 1 };
        let pause = backoff::pause(attempt, backoff::chance());
        eprintln!("{error}; connecting again in {:.1} s", pause.as_secs_f64());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
        }
    }
}
