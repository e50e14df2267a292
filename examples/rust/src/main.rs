//! Asks the agent on this device for predictions, through its Unix socket.
//!
//! Each line of the file is one input: a label, which is not sent, then the numbers. Prints "LINE CLASS PROBABILITY MODEL@VERSION".

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use muster_example_client::ask::Agent;
use muster_example_client::persist::persist;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::signal::unix::{SignalKind, signal};

/// Asks the agent on this device for predictions.
#[derive(Parser)]
struct Arguments {
    /// The agent's socket.
    #[arg(long, default_value = "/run/muster-agent/inference.sock")]
    socket: PathBuf,
    /// The model.
    #[arg(long, default_value = "digits")]
    model: String,
    /// The name of its input.
    #[arg(long, default_value = "image")]
    input: String,
    /// How often to try what may pass.
    #[arg(long, default_value_t = 8)]
    attempts: u32,
    /// Start over, so many seconds after the end of the file.
    #[arg(long)]
    interval_s: Option<u32>,
    /// One input a line: label,number,number,...
    file: PathBuf,
}

/// The numbers behind the label; `None` for a heading.
fn row(line: &str) -> Option<Vec<f32>> {
    line.split(',')
        .skip(1)
        .map(|field| field.trim().parse().ok())
        .collect::<Option<Vec<f32>>>()
        .filter(|r| !r.is_empty())
}

async fn work(arguments: &Arguments) -> anyhow::Result<()> {
    let agent = Agent {
        socket: arguments.socket.clone(),
        model: arguments.model.clone(),
        // A request takes milliseconds; this bounds one to an agent that is stuck.
        timeout: Duration::from_secs(5),
    };
    let report = |pause: Duration, why: &str| eprintln!("trying again in {:.2} s: {why}", pause.as_secs_f64());
    loop {
        let path = arguments.file.display();
        let file = tokio::fs::File::open(&arguments.file).await.with_context(|| format!("{path} cannot be read"))?;
        let mut lines = BufReader::new(file).lines();
        let mut count = 0;
        while let Some(line) = lines.next_line().await.with_context(|| format!("{path} cannot be read"))? {
            let Some(row) = row(&line) else { continue };
            count += 1;
            let request = serde_json::json!({
                "inputs": [{ "name": arguments.input, "datatype": "FP32", "shape": [1, row.len()], "data": row }]
            });
            let prediction = persist(&agent, request.to_string().into(), arguments.attempts, report).await?;
            let (class, probability) = prediction.best().context("the answer has no outputs")?;
            let (model, version) = (&prediction.model_name, &prediction.model_version);
            writeln!(std::io::stdout(), "{count} {class} {probability} {model}@{version}")?;
        }
        let Some(interval_s) = arguments.interval_s else { return Ok(()) };
        tokio::time::sleep(Duration::from_secs(interval_s.into())).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        done = work(&arguments) => done,
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    }
}
