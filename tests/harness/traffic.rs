//! Applications on devices: they send real images to their device all the time and note what comes back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::fixtures::Image;

/// What the application of one device has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Requests answered with a prediction.
    pub answered: u64,
    /// Predictions that were right.
    pub right: u64,
    /// Requests that were not answered with a prediction while the device was expected to.
    pub failed: u64,
    /// What the last failure was.
    pub last_failure: Option<String>,
    /// Answers and right ones, by the version of the model that gave them.
    pub by_version: BTreeMap<String, (u64, u64)>,
    /// The version that answered last.
    pub last_version: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<BTreeMap<String, Seen>>,
    /// Devices whose application expects answers.
    expected: Mutex<BTreeMap<String, bool>>,
    /// No application asks again.
    over: AtomicBool,
}

/// Applications sending to every device they were started for, until dropped.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    images: Arc<Vec<Image>>,
    pause: Duration,
}

/// What of an answer matters here.
#[derive(Debug, Deserialize)]
pub struct InferResponse {
    /// Which version answered.
    pub model_version: String,
    /// Every output.
    pub outputs: Vec<InferOutput>,
}

/// One output.
#[derive(Debug, Deserialize)]
pub struct InferOutput {
    /// Its values, row by row.
    pub data: Vec<f32>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    /// Applications that send one of `images` every `pause`.
    #[must_use]
    pub fn new(images: Vec<Image>, pause: Duration) -> Self {
        Self { shared: Arc::default(), tasks: Vec::new(), images: Arc::new(images), pause }
    }

    /// Starts the application of `device`, which is not expected to answer before [`Self::expect`] says so.
    pub fn start(&mut self, device: &str, inference_url: &str) {
        let url = format!("{inference_url}/v2/models/digits/infer");
        let (shared, images, pause) = (Arc::clone(&self.shared), Arc::clone(&self.images), self.pause);
        let (device, first) = (device.to_owned(), self.tasks.len() * 37);
        self.tasks.push(tokio::spawn(async move {
            let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap_or_default();
            let mut ticks = tokio::time::interval(pause);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for at in first.. {
                ticks.tick().await;
                if shared.over.load(Ordering::Relaxed) {
                    return;
                }
                let image = &images[at % images.len()];
                let expected_before = lock(&shared.expected).get(&device).copied().unwrap_or(false);
                let outcome = ask(&client, &url, image).await;
                let expected = expected_before && lock(&shared.expected).get(&device).copied().unwrap_or(false);
                let mut all = lock(&shared.seen);
                let seen = all.entry(device.clone()).or_default();
                match outcome {
                    Ok((version, class)) => {
                        let right = u64::from(class == image.label);
                        seen.answered += 1;
                        seen.right += right;
                        let of_version = seen.by_version.entry(version.clone()).or_default();
                        of_version.0 += 1;
                        of_version.1 += right;
                        seen.last_version = Some(version);
                    }
                    Err(why) if expected => {
                        seen.failed += 1;
                        seen.last_failure = Some(why);
                    }
                    Err(_) => {}
                }
            }
        }));
    }

    /// Says whether the application of `device` is to count what is not answered as a failure.
    pub fn expect(&self, device: &str, expected: bool) {
        lock(&self.shared.expected).insert(device.to_owned(), expected);
    }

    /// Lets every application end after the request it is about, and gives what they have seen in all.
    pub async fn finish(&mut self) -> BTreeMap<String, Seen> {
        self.shared.over.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            // It ends by itself; a panic of its own has been printed.
            drop(task.await);
        }
        self.seen()
    }

    /// What every application has seen so far.
    #[must_use]
    pub fn seen(&self) -> BTreeMap<String, Seen> {
        lock(&self.shared.seen).clone()
    }

    /// What the application of one device has seen so far.
    #[must_use]
    pub fn seen_by(&self, device: &str) -> Seen {
        lock(&self.shared.seen).get(device).cloned().unwrap_or_default()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Asks once; gives the model's version and the class it says.
///
/// # Errors
/// Why there was no prediction, in words.
pub async fn ask(client: &reqwest::Client, url: &str, image: &Image) -> Result<(String, usize), String> {
    let request = serde_json::json!({
        "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.pixels }]
    });
    let response = client.post(url).json(&request).send().await.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("{status}: {}", response.text().await.unwrap_or_default()));
    }
    let answer: InferResponse = response.json().await.map_err(|error| format!("{error:?}"))?;
    let probabilities = answer.outputs.first().map(|output| output.data.as_slice()).unwrap_or_default();
    let best = probabilities.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class);
    best.map(|class| (answer.model_version, class)).ok_or_else(|| "an answer without probabilities".to_owned())
}
