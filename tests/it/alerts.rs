//! Drift in a real fleet becomes an alert, is told to real receivers, outlasts a crash, and ends when the data is normal again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use muster_shared::alert::{Alert, AlertState, ReceiverTest};
use muster_shared::rollout::RolloutStatus;
use muster_tests::fixtures::{self, Image};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::process::Process;
use muster_tests::{programs, wait};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::feedback;
use crate::stage::{self, EASY};

const SECRET: &str = "correct horse battery staple";

/// One request to a receiver.
#[derive(Debug, Clone)]
struct Taken {
    path: String,
    signature: Option<String>,
    body: String,
}

impl Taken {
    fn json(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.body)?)
    }
}

/// An HTTP server that keeps what it is sent, or refuses it.
#[derive(Debug, Default)]
struct Hooks {
    taken: Mutex<Vec<Taken>>,
    refused: Mutex<u32>,
    refuses: Mutex<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hooks {
    async fn open() -> anyhow::Result<(Arc<Self>, String)> {
        let hooks = Arc::new(Self::default());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let accepting = Arc::clone(&hooks);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let hooks = Arc::clone(&accepting);
                // Who goes away in the middle was killed on purpose.
                tokio::spawn(async move { drop(hooks.answer(stream).await) });
            }
        });
        Ok((hooks, base))
    }

    async fn answer(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        let mut piece = [0; 8_192];
        let (head, body_at) = loop {
            let read = stream.read(&mut piece).await?;
            ensure!(read > 0, "no whole request");
            bytes.extend_from_slice(&piece[..read]);
            if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                break (String::from_utf8(bytes[..at].to_vec())?, at + 4);
            }
        };
        let header = |name: &str| {
            head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        let length: usize = header("content-length").context("a length")?.1.parse()?;
        while bytes.len() < body_at + length {
            let read = stream.read(&mut piece).await?;
            ensure!(read > 0, "no whole body");
            bytes.extend_from_slice(&piece[..read]);
        }
        let status = if *lock(&self.refuses) {
            *lock(&self.refused) += 1;
            "503 Service Unavailable"
        } else {
            lock(&self.taken).push(Taken {
                path: head.split(' ').nth(1).context("a path")?.to_owned(),
                signature: header("muster-signature").map(|(_, value)| value.to_owned()),
                body: String::from_utf8(bytes[body_at..].to_vec())?,
            });
            "200 OK"
        };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await?;
        Ok(())
    }

    fn of(&self, path: &str) -> Vec<Taken> {
        lock(&self.taken).iter().filter(|taken| taken.path == path).cloned().collect()
    }

    /// Waits until `path` was told of this state.
    async fn told(&self, path: &str, state: &str) -> anyhow::Result<Taken> {
        wait::until(&format!("{path} hears {state}"), PATIENCE, async || {
            for taken in self.of(path) {
                if taken.json()?["state"] == state {
                    return Ok(Some(taken));
                }
            }
            Ok(None)
        })
        .await
    }
}

/// Prometheus' Alertmanager, where it is installed: the process and its address.
async fn alertmanager(folder: &Path) -> anyhow::Result<Option<(Process, String)>> {
    let Some(program) = programs::find(&["prometheus-alertmanager", "alertmanager"]) else {
        return Ok(None);
    };
    std::fs::write(folder.join("alertmanager.yml"), "route:\n  receiver: none\nreceivers:\n  - name: none\n")?;
    // The port is free now; who takes it in between makes the start fail, which is seen.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(program);
    command
        .arg(format!("--config.file={}", folder.join("alertmanager.yml").display()))
        .arg(format!("--storage.path={}", folder.join("alertmanager").display()))
        .arg(format!("--web.listen-address={address}"))
        .arg("--cluster.listen-address=");
    let mut process = Process::start("alertmanager", &mut command, &folder.join("alertmanager.log"))?;
    let base = format!("http://{address}");
    wait::until("alertmanager is ready", PATIENCE, async || {
        process.ensure_running()?;
        let ready = reqwest::get(format!("{base}/-/ready")).await;
        Ok(ready.ok().filter(|answer| answer.status().is_success()).map(|_| ()))
    })
    .await?;
    Ok(Some((process, base)))
}

/// The alerts that Alertmanager holds active.
async fn held_by(alertmanager: &str) -> anyhow::Result<Vec<Value>> {
    Ok(reqwest::get(format!("{alertmanager}/api/v2/alerts?active=true")).await?.json().await?)
}

fn settings(folder: &Path, hooks: &str, alertmanager: Option<&str>) -> anyhow::Result<String> {
    let secret = folder.join("hook.secret");
    std::fs::write(&secret, format!("{SECRET}\n"))?;
    let mut text =
        "[rollout]\ntick-ms = 100\n[alerts]\ninterval-ms = 200\nbuilt-in-rules = false\nretry-after-ms = 50\n\
         retry-at-most-ms = 200\n"
            .to_owned();
    for (name, kind, signed) in [("hook", "webhook", true), ("train", "retraining", true), ("chat", "slack", false)] {
        text += &format!("[[alerts.receivers]]\nname = {name:?}\nkind = {kind:?}\nurl = \"{hooks}/{name}\"\n");
        if signed {
            text += &format!("secret-file = {secret:?}\n");
        }
    }
    if let Some(base) = alertmanager {
        text += &format!(
            "[[alerts.receivers]]\nname = \"am\"\nkind = \"alertmanager\"\nurl = {base:?}\nresend-ms = 1000\n"
        );
    }
    Ok(text)
}

const RULES: &str = r#"
[[rules]]
name = "answers-moved"
signal = "prediction-drift"
columns = ["probabilities.class"]
fire-at = 0.5
clear-at = 0.4
for = "500ms"
keep-firing-for = "1s"
over = "4s"
min-count = 40
severity = "critical"
annotations = { summary = "{bundle} answers otherwise in {group}: {value}" }
retrain = true
"#;

async fn listed(fleet: &Fleet, state: AlertState) -> anyhow::Result<Vec<Alert>> {
    let all: Vec<Alert> = fleet.operator.json(&["alerts", "list"]).await?;
    Ok(all.into_iter().filter(|alert| alert.state == state).collect())
}

/// Runs the verification that docs/alerts.md shows, in `language`, on what came.
fn verifies(language: &str, program: &[&str], folder: &Path, taken: &Taken) -> anyhow::Result<bool> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/alerts.md"))?;
    let begin = format!("```{language}\n# verify");
    let at = page.find(&begin).with_context(|| format!("docs/alerts.md shows no verification in {language}"))?;
    let code = page[at..].split("```").nth(1).and_then(|code| code.split_once('\n')).context("a block of code")?.1;
    let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
        std::fs::write(folder.join(name), text)?;
        Ok(folder.join(name))
    };
    let script = write(&format!("verify.{language}"), code)?;
    let (secret, body) = (folder.join("hook.secret"), write("body.json", &taken.body)?);
    let signature = taken.signature.as_deref().context("a signature")?;
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(script).arg(secret).arg(signature).arg(body);
    Ok(command.status()?.success())
}

const LABEL_RULES: &str = r#"
[[rules]]
name = "worse-answers"
signal = "quality-loss"
bundle = "digits"
fire-at = 0.3
clear-at = 0.1
for = "500ms"
keep-firing-for = "1s"
over = "4s"
min-count = 60
severity = "critical"
annotations = { summary = "{bundle}: {detail}, on {devices} devices" }

[[rules]]
name = "worse-slices"
signal = "accuracy"
by-slice = true
fire-at = 0.5
over = "4s"
severity = "warning"
"#;

/// Has every device answer some images and labels them, all rightly or all wrongly.
async fn label(fleet: &Fleet, client: &reqwest::Client, images: &[Image], rightly: bool) -> anyhow::Result<()> {
    for device in &fleet.devices {
        let made = feedback::infer_all(client, fleet, &device.id, images).await?;
        let truth = |label: usize| if rightly { label } else { (label + 1) % 10 };
        let labels: Vec<Value> =
            made.iter().map(|made| serde_json::json!({ "id": made.id, "label": truth(made.label) })).collect();
        let counts = feedback::send(client, fleet, &device.id, &Value::from(labels)).await?;
        ensure!(counts.joined == images.len() as u64, "{counts:?}");
    }
    Ok(())
}

#[test]
fn labels_that_show_a_loss_are_told_to_receivers_and_better_ones_end_it() {
    stage::run(async |binaries, folder| {
        let alertmanager = alertmanager(&folder).await?;
        let (hooks, base) = Hooks::open().await?;
        let address = alertmanager.as_ref().map(|(_, address)| address.as_str());
        let fleet = stage::fleet_with(&binaries, &folder, 3, &settings(&folder, &base, address)?).await?;
        feedback::release(&fleet, &folder, "1.0.0").await?;
        let idle = fleet.operator.run(&["bundle", "card", "digits@1.0.0"]).await?;
        ensure!(idle.contains("*No device runs it, and none is to.*"), "{idle}");
        let rollout = feedback::roll_out(&fleet, "1.0.0").await?;
        let (client, images) = (reqwest::Client::new(), fixtures::held_out()?);
        let rules = folder.join("rules.toml");
        std::fs::write(&rules, LABEL_RULES)?;
        let rules = rules.to_str().context("a path")?;
        fleet.operator.run(&["alerts", "rules", "apply", "-f", rules]).await?;

        label(&fleet, &client, &images[..20], true).await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        let fires = wait::until("the loss is told", PATIENCE, async || {
            label(&fleet, &client, &images[..10], false).await?;
            Ok(hooks.of("/hook").into_iter().find(|taken| taken.body.contains("worse-answers")))
        })
        .await?
        .json()?;
        ensure!(fires["state"] == "firing" && fires["alerts"][0]["labels"]["bundle"] == "digits@1.0.0", "{fires}");
        let said = fires["alerts"][0]["annotations"]["summary"].as_str().context("words")?;
        ensure!(said.contains("accuracy 0.") && said.contains("against 0.9020, on 3 devices"), "{said}");
        if let Some(address) = address {
            wait::until("Alertmanager holds it active", PATIENCE, async || {
                label(&fleet, &client, &images[..10], false).await?;
                let held = held_by(address).await?;
                let names: BTreeSet<&str> =
                    held.iter().filter_map(|alert| alert["labels"]["alertname"].as_str()).collect();
                let slices = held.iter().any(|alert| alert["labels"]["slice"] == "middle=< 8");
                Ok((names == BTreeSet::from(["worse-answers", "worse-slices"]) && slices).then_some(()))
            })
            .await?;
        } else {
            eprintln!("Alertmanager is not installed, so nothing was told to a real one");
        }
        let card = fleet.operator.run(&["bundle", "card", "digits@1.0.0"]).await?;
        for part in [
            "# digits 1.0.0",
            "- **code**: tests/fixtures/train_digits.py",
            "3 device(s) run it, the first since ",
            "- **latency p50 / p95 / p99**: ",
            "| slice, the worst first | labels | quality (95 %) |",
            "| `middle=< 8` | ",
            "**worse than on the reference sample**.",
            "| `worse-answers` |  | critical | firing |",
            "| `worse-slices` | `slice=middle=< 8` | warning | firing |",
            "| `r1` | completed |",
        ] {
            ensure!(card.contains(part), "{part} in\n{card}");
        }

        wait::until("its end is told", PATIENCE, async || {
            label(&fleet, &client, &images[..20], true).await?;
            let ended = |taken: &Taken| taken.body.contains("worse-answers") && taken.body.contains("resolved_ms\":1");
            Ok(hooks.of("/hook").iter().any(ended).then_some(()))
        })
        .await?;
        if let Some(address) = address {
            wait::until("Alertmanager holds none", PATIENCE, async || {
                label(&fleet, &client, &images[..20], true).await?;
                Ok(held_by(address).await?.is_empty().then_some(()))
            })
            .await?;
        }
        let events = fleet.operator.events().await?;
        for kind in ["alert.pending", "alert.firing", "alert.resolved"] {
            let ours =
                |event: &muster_shared::api::EventView| event.kind == kind && event.detail.contains("worse-answers");
            ensure!(events.iter().any(ours), "no {kind} of it among the events");
        }
        Ok(())
    });
}

#[test]
fn drift_is_told_once_through_crashes_and_refusals_and_ends_with_its_cause() {
    stage::run(async |binaries, folder| {
        let alertmanager = alertmanager(&folder).await?;
        let (hooks, base) = Hooks::open().await?;
        let address = alertmanager.as_ref().map(|(_, address)| address.as_str());
        let mut fleet = stage::fleet_with(&binaries, &folder, 4, &settings(&folder, &base, address)?).await?;
        fleet.release_digits("1.0.0").await?;
        let images = fixtures::held_out()?;
        let normal = stage::traffic_of(&fleet, images.clone());
        let id = fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &EASY[..]].concat()).await?;
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        let rules = folder.join("rules.toml");
        std::fs::write(&rules, RULES)?;
        let rules = rules.to_str().context("a path")?;
        fleet.operator.run(&["alerts", "rules", "apply", "-f", rules]).await?;
        let test: ReceiverTest = fleet.operator.json(&["alerts", "test-receiver", "hook"]).await?;
        ensure!(test.delivered && hooks.of("/hook").len() == 1, "{test:?}");
        lock(&hooks.taken).clear();

        // Only zeros from now on, and nobody takes messages.
        *lock(&hooks.refuses) = true;
        drop(normal);
        let zeros: Vec<Image> = images.iter().filter(|image| image.label == 0).cloned().collect();
        let odd = stage::traffic_of(&fleet, zeros);
        wait::until("the alert fires", PATIENCE, async || {
            Ok((!listed(&fleet, AlertState::Firing).await?.is_empty()).then_some(()))
        })
        .await?;
        let ran = fleet.operator.try_run(&["alerts", "list", "--firing", "--exit-code"]).await?;
        ensure!(ran.status == Some(1) && ran.stdout.contains("answers-moved"), "{ran:?}");
        wait::until("receivers were tried", PATIENCE, async || Ok((*lock(&hooks.refused) >= 4).then_some(()))).await?;
        fleet.controller.crash_and_restart().await?;
        ensure!(hooks.of("/hook").is_empty(), "nothing was taken yet");
        *lock(&hooks.refuses) = false;
        let fires = hooks.told("/hook", "firing").await?;
        let wish = wait::until("a training is asked for", PATIENCE, async || Ok(hooks.of("/train").pop())).await?;
        let chat = wait::until("the chat hears of it", PATIENCE, async || Ok(hooks.of("/chat").pop())).await?.json()?;
        ensure!(chat["text"] == "[FIRING:1] answers-moved of digits@1.0.0", "{chat}");
        let wish = wish.json()?;
        ensure!(wish["bundles"][0]["lineage"]["code"] == "tests/fixtures/train_digits.py", "{wish}");
        ensure!(wish["evidence"][0]["evidence"]["n"].as_u64().is_some_and(|n| n >= 40), "{wish}");
        for (language, program) in [("python", &["python3"][..]), ("bash", &["bash"])] {
            ensure!(verifies(language, program, &folder, &fires)?, "the signature does not verify in {language}");
            let forged = Taken { body: fires.body.replace("firing", "resolved"), ..fires.clone() };
            ensure!(!verifies(language, program, &folder, &forged)?, "{language} takes a forged message");
        }
        if let Some(address) = address {
            wait::until("Alertmanager holds it active", PATIENCE, async || {
                let held = held_by(address).await?;
                let ours = |alert: &Value| {
                    alert["labels"]["alertname"] == "answers-moved" && alert["labels"]["severity"] == "critical"
                };
                Ok((held.len() == 1 && held.iter().all(ours)).then_some(()))
            })
            .await?;
        }

        drop(odd);
        let _normal = stage::traffic_of(&fleet, images.clone());
        let ended = hooks.told("/hook", "resolved").await?.json()?;
        ensure!(ended["alerts"][0]["fingerprint"] == fires.json()?["alerts"][0]["fingerprint"], "{ended}");
        if let Some(address) = address {
            wait::until("Alertmanager holds none", PATIENCE, async || {
                Ok(held_by(address).await?.is_empty().then_some(()))
            })
            .await?;
        } else {
            eprintln!("Alertmanager is not installed, so nothing was told to a real one");
        }
        fleet.operator.run(&["alerts", "list", "--firing", "--exit-code"]).await?;
        // A receiver that goes by the key heard of each once.
        for (path, messages) in [("/hook", 2), ("/train", 1)] {
            let keys: BTreeSet<String> =
                hooks.of(path).iter().map(|t| Ok(t.json()?["delivery"].to_string())).collect::<anyhow::Result<_>>()?;
            ensure!(keys.len() == messages, "{path}: {keys:?}");
        }
        let kinds: Vec<String> = fleet.operator.events().await?.into_iter().map(|event| event.kind).collect();
        for kind in ["alert.pending", "alert.firing", "alert.resolved"] {
            ensure!(kinds.iter().any(|known| known == kind), "no {kind} among the events");
        }
        crate::metrics::are_documented(&fleet).await
    });
}
