//! `muster-agent feedback FILE`: labels from a file on the device, given to the agent that runs on it.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use muster_shared::feedback::{FeedbackAnswer, FeedbackCounts, FeedbackFormat, FeedbackItem, FeedbackResult};
use muster_shared::limits::{MAX_FEEDBACK_BYTES, MAX_FEEDBACK_ITEMS};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::endpoints;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Lines that are named when they are no labels; the others are counted.
const NAMED_LINES: usize = 5;
/// About what the JSON around an item needs, in bytes.
const FRAME_BYTES: usize = 64;

/// Which labels, and where to.
#[derive(Debug, Args)]
pub(crate) struct FeedbackArgs {
    /// The labels: a .csv file with columns id and label (and row, for one row of several), or a .jsonl file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The agent's configuration file, which says where it keeps its data.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the agent answers, if not where its data folder says.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The model, if not the one that is served now.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    running: Option<Running>,
}

#[derive(Deserialize)]
struct Running {
    bundle: muster_shared::ids::BundleRef,
}

#[derive(Serialize)]
struct Body<'a> {
    feedback: &'a [FeedbackItem],
}

/// What the agent says when it cannot.
#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Sends the labels and says what came of them.
///
/// # Errors
/// When the file or the agent cannot be used, or a line of the file is no label; the others have been sent then.
pub(crate) fn run(args: &FeedbackArgs) -> anyhow::Result<String> {
    let name = args.file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let format = FeedbackFormat::of(name)
        .with_context(|| format!("{}: labels are in a .csv or a .jsonl file", args.file.display()))?;
    let file = File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let url = match &args.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => url_of(args.config.as_deref())?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = endpoints::client().timeout(TIMEOUT).build()?;
        let model = match &args.model {
            Some(model) => model.clone(),
            None => served_by(&client, &url).await?,
        };
        let mut sending = Sending::new(client, format!("{url}/v2/models/{model}/feedback"));
        let mut bad = Vec::new();
        let mut bad_lines = 0_u64;
        for line in format.read(file) {
            match line {
                Ok((_, line)) => sending.add(line.item).await?,
                Err(error) => {
                    bad_lines += 1;
                    if bad.len() < NAMED_LINES {
                        bad.push(error.to_string());
                    }
                    if error.is_fatal {
                        break;
                    }
                }
            }
        }
        sending.send().await?;
        sending.progress.end();
        let told = in_words(&sending.counts);
        if bad_lines > 0 {
            bail!(
                "{}: {bad_lines} line(s) are no labels: {}; of the others: {told}",
                args.file.display(),
                bad.join("; ")
            );
        }
        Ok(told)
    })
}

fn in_words(counts: &FeedbackCounts) -> String {
    let parts = FeedbackResult::ALL.map(|result| format!("{} {}", counts.of(result), result.as_str()));
    format!("{} labels: {}", counts.total(), parts.join(", "))
}

fn url_of(config: Option<&Path>) -> anyhow::Result<String> {
    let config = Config::load_or_default(config)?;
    endpoints::published(&config.data_dir).with_context(|| {
        let path = config.data_dir.join("endpoints.json");
        format!("cannot read {}: is the agent running? --url names it otherwise", path.display())
    })
}

async fn served_by(client: &reqwest::Client, url: &str) -> anyhow::Result<String> {
    let unreachable = || format!("the agent at {url} does not answer");
    let answer = client.get(format!("{url}/status")).send().await.with_context(unreachable)?;
    let status: Status = serde_json::from_slice(&answer.bytes().await?).with_context(unreachable)?;
    let running = status.running.context("the agent serves no model: name the one that is meant with --model")?;
    Ok(running.bundle.name.to_string())
}

struct Sending {
    client: reqwest::Client,
    url: String,
    items: Vec<FeedbackItem>,
    bytes: usize,
    counts: FeedbackCounts,
    progress: Progress,
}

impl Sending {
    fn new(client: reqwest::Client, url: String) -> Self {
        let (counts, progress) = (FeedbackCounts::default(), Progress::default());
        Self { client, url, items: Vec::new(), bytes: 0, counts, progress }
    }

    async fn add(&mut self, item: FeedbackItem) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(&item).map_or(0, |json| json.len()) + 1;
        if self.items.len() >= MAX_FEEDBACK_ITEMS || self.bytes + bytes + FRAME_BYTES > MAX_FEEDBACK_BYTES {
            self.send().await?;
        }
        self.bytes += bytes;
        self.items.push(item);
        Ok(())
    }

    async fn send(&mut self) -> anyhow::Result<()> {
        if self.items.is_empty() {
            return Ok(());
        }
        let body = serde_json::to_vec(&Body { feedback: &self.items })?;
        let sent = self.counts.total();
        let lost = || format!("the agent did not take the labels after the first {sent}");
        let request = self.client.post(&self.url).header("content-type", "application/json").body(body);
        let answer = request.send().await.with_context(lost)?;
        let status = answer.status();
        let text = answer.bytes().await.with_context(lost)?;
        if !status.is_success() {
            let reason = serde_json::from_slice::<Refusal>(&text).map_or_else(|_| status.to_string(), |r| r.error);
            bail!("{}: {reason}", lost());
        }
        let answer: FeedbackAnswer = serde_json::from_slice(&text).with_context(lost)?;
        self.counts.merge(&answer.counts);
        self.progress.show(&self.counts);
        self.items.clear();
        self.bytes = 0;
        Ok(())
    }
}

/// How far it is, where somebody watches.
#[derive(Default)]
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&mut self, counts: &FeedbackCounts) {
        let mut out = std::io::stderr().lock();
        if out.is_terminal() {
            self.shown = true;
            // Whoever closed standard error does not want to know.
            let _ = write!(out, "\r{} labels sent, {} joined", counts.total(), counts.joined);
        }
    }

    fn end(&self) {
        if self.shown {
            let _ = writeln!(std::io::stderr().lock());
        }
    }
}
