//! What somebody at a device sees of it with the agent's own commands.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use muster_tests::device::DeviceSetup;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;
use serde_json::Value;

use crate::stage;

/// The commands of one device.
struct Hand {
    agent: PathBuf,
    config: PathBuf,
}

impl Hand {
    fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(&self.agent);
        command.args(arguments).arg("--config").arg(&self.config).stdin(Stdio::null());
        // A small system has no certificates of authorities.
        command.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
        Ok(command.output()?)
    }

    /// What it prints, and whether it says that all is well.
    fn say(&self, arguments: &[&str]) -> anyhow::Result<(String, bool)> {
        let output = self.run(arguments)?;
        let text = [output.stdout, output.stderr].concat();
        ensure!(matches!(output.status.code(), Some(0 | 1)), "{arguments:?}: {}", output.status);
        Ok((String::from_utf8(text)?, output.status.success()))
    }

    fn json(&self, arguments: &[&str]) -> anyhow::Result<(Value, bool)> {
        let output = self.run(&[arguments, &["--output", "json"]].concat())?;
        let json = serde_json::from_slice(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((json.with_context(|| format!("{arguments:?} gives no JSON: {error}"))?, output.status.success()))
    }
}

/// How `doctor` finds `check`.
fn health<'a>(examination: &'a Value, check: &str) -> &'a str {
    let findings = examination["findings"].as_array().into_iter().flatten();
    findings
        .filter(|finding| finding["check"] == check)
        .find_map(|finding| finding["health"].as_str())
        .unwrap_or("none")
}

/// All text in the archive.
fn unpacked(archive: &Path) -> anyhow::Result<String> {
    let output = Command::new("tar").arg("-xzOf").arg(archive).output().context("tar cannot be started")?;
    ensure!(output.status.success(), "{} cannot be unpacked", archive.display());
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn whoever_stands_at_a_device_sees_what_runs_and_what_is_wrong() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let device = folder.join("dev-1");
        let hand = Hand { agent: binaries.agent.clone(), config: device.join("agent.toml") };

        let (status, is_well) = hand.json(&["status"])?;
        ensure!(is_well && status["device"] == "dev-1" && status["running"]["bundle"] == "digits@1.0.0", "{status:#}");
        ensure!(status["broker"]["connected_since_ms"].is_u64() && status["stuck"].is_null(), "{status:#}");
        ensure!(status["certificate_expires_ms"].is_u64() && status["events"][0].is_object(), "{status:#}");
        let (text, is_well) = hand.say(&["status"])?;
        for part in ["digits@1.0.0", "connected since", "certificate ends", "served, 0 failed", "committed"] {
            ensure!(is_well && text.contains(part), "{part:?} is not in {text}");
        }
        let (examination, _) = hand.json(&["doctor"])?;
        for check in [
            "configuration",
            "data folder",
            "certificate",
            "root document",
            "broker",
            "controller",
            "bundle",
            "agent",
            "link",
        ] {
            ensure!(health(&examination, check) == "ok", "{check}: {examination:#}");
        }
        let (tested, is_well) = hand.json(&["self-test"])?;
        ensure!(is_well && tested["passed"] == true && tested["bundle"] == "digits@1.0.0", "{tested:#}");
        ensure!(
            tested["max_abs_difference"].as_f64() < Some(1e-3) && tested["examples"].as_u64() > Some(0),
            "{tested:#}"
        );
        let (text, is_well) = hand.say(&["enrol"])?;
        ensure!(is_well && text.contains("enrolled already, as dev-1"), "{text}");

        // Nobody answers for the broker: doctor names it, and the agent says so too.
        fleet.cut_off("dev-1").await?;
        wait::until("the agent has noticed", PATIENCE, async || {
            Ok((health(&hand.json(&["doctor"])?.0, "link") == "warning").then_some(()))
        })
        .await?;
        let (text, is_well) = hand.say(&["doctor"])?;
        ensure!(!is_well && text.contains("FAULT    broker: ") && text.contains("-> "), "{text}");

        let archive = folder.join("support.tar.gz");
        let (text, is_well) = hand.say(&["support-bundle", "--out", archive.to_str().context("a path")?])?;
        ensure!(is_well && text.contains("support.tar.gz"), "{text}");
        let content = unpacked(&archive)?;
        for part in ["muster_agent", "device-id", "identity/device.key", "FAULT    broker: ", "digits@1.0.0"] {
            ensure!(content.contains(part), "{part:?} is not in the support bundle");
        }
        let settings = std::fs::read_to_string(&hand.config)?;
        let token = settings.split('"').find(|part| part.starts_with("muster1.")).context("a token is configured")?;
        let key = std::fs::read_to_string(device.join("data/identity/device.key"))?;
        for secret in [token, key.lines().nth(1).context("a key has lines")?] {
            ensure!(!content.contains(secret), "a secret is in the support bundle");
        }

        fleet.device("dev-1")?.kill()?;
        let (status, is_well) = hand.json(&["status"])?;
        ensure!(!is_well && status["answers"] == false && status["crashed"] == true, "{status:#}");
        ensure!(status["committed"]["bundle"] == "digits@1.0.0" && status["device"] == "dev-1", "{status:#}");
        let (examination, is_well) = hand.json(&["doctor"])?;
        ensure!(!is_well && health(&examination, "agent") == "fault", "{examination:#}");

        // A file that is not what was signed is found by both that look at it.
        let model = slot_file(&device.join("data/slots"), "model.onnx").context("the model is there")?;
        let mut bytes = std::fs::read(&model)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&model, bytes)?;
        let (tested, is_well) = hand.json(&["self-test"])?;
        ensure!(
            !is_well && tested["reason"].as_str().is_some_and(|why| why.contains("model.onnx is damaged")),
            "{tested:#}"
        );
        ensure!(health(&hand.json(&["doctor"])?.0, "bundle") == "fault");
        Ok(())
    });
}

fn slot_file(folder: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).ok()?.filter_map(Result::ok).find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { slot_file(&path, name) } else { path.ends_with(name).then_some(path) }
    })
}

#[test]
fn a_device_is_enrolled_by_hand_and_its_papers_serve_the_agent() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 0).await?;
        let config = folder.join("agent.toml");
        let settings = format!(
            "data-dir = {:?}\ndevice-id = \"by-hand\"\n[serve]\nlisten = \"127.0.0.1:0\"\n",
            folder.join("data")
        );
        std::fs::write(&config, settings)?;
        let hand = Hand { agent: binaries.agent.clone(), config: config.clone() };
        let (text, is_well) = hand.say(&["enrol"])?;
        ensure!(!is_well && text.contains("--token-file"), "{text}");

        let token = fleet.enrolment_token(1).await?;
        let mut child = Command::new(&binaries.agent)
            .args(["enrol", "--token-file", "-", "--config"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("a pipe")?.write_all(token.as_bytes())?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success() && text.contains("enrolled as by-hand"), "{text}");
        ensure!(fleet.operator.device("by-hand").await?.revoked.is_none());

        // Once more it has nothing to do, and another controller does not get it by a slip.
        let (text, is_well) = hand.say(&["enrol"])?;
        ensure!(is_well && text.contains("enrolled already, as by-hand"), "{text}");
        let other = folder.join("other");
        std::fs::create_dir(&other)?;
        let stranger = stage::fleet(&binaries, &other, 0).await?;
        let file = folder.join("token");
        std::fs::write(&file, stranger.enrolment_token(1).await?)?;
        let (text, is_well) = hand.say(&["enrol", "--token-file", file.to_str().context("a path")?])?;
        ensure!(!is_well && text.contains("with another controller, as by-hand"), "{text}");
        let (examination, _) = hand.json(&["doctor"])?;
        for (check, expected) in [("certificate", "ok"), ("broker", "ok"), ("bundle", "warning"), ("agent", "fault")] {
            ensure!(health(&examination, check) == expected, "{check}: {examination:#}");
        }
        Ok(())
    });
}

#[test]
fn settings_change_while_requests_are_answered_and_a_faulty_file_changes_nothing() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let hand = Hand { agent: binaries.agent.clone(), config: folder.join("dev-1/agent.toml") };
        let before = std::fs::read_to_string(&hand.config)?;
        let pid = fleet.device("dev-1")?.process_id().to_string();
        let reload = |content: &str| -> anyhow::Result<()> {
            std::fs::write(&hand.config, content)?;
            let status = Command::new("kill").args(["-HUP", &pid]).status()?;
            ensure!(status.success(), "the signal could not be sent");
            Ok(())
        };
        let configuration = async |what: &str, holds: &dyn Fn(&Value) -> bool| {
            // Not by the command, which would read the faulty file itself.
            wait::until(what, PATIENCE, async || {
                let answer = reqwest::get(format!("{}/status", fleet.devices[0].inference_url)).await?;
                let status: Value = serde_json::from_slice(&answer.bytes().await?)?;
                Ok(holds(&status["configuration"]).then_some(()))
            })
            .await
        };
        let waits =
            |c: &Value, section: &str| c["restart_needed"].as_array().is_some_and(|all| all.contains(&section.into()));
        let changed = before.replace("window-ms = ", "window-ms = 1");
        ensure!(changed != before, "{before}");
        reload(&format!("{changed}\n[attributes]\nline = \"seven\"\n"))?;
        configuration("the rest waits for a restart", &|c: &Value| waits(c, "monitor")).await?;
        wait::until("the controller sees the attribute", PATIENCE, async || {
            let reported = fleet.operator.device("dev-1").await?.reported;
            Ok(reported.is_some_and(|state| state.attributes.get("line").is_some_and(|v| v == "seven")).then_some(()))
        })
        .await?;
        reload("[attributes]\nline = 7\n")?;
        configuration("a faulty file is refused", &|c: &Value| {
            c["refused"].as_str().is_some_and(|why| why.contains("line 2"))
        })
        .await?;
        let attributes = fleet.operator.device("dev-1").await?.reported.context("it has reported")?.attributes;
        ensure!(attributes.get("line").is_some_and(|line| line == "seven"), "{attributes:?}");
        reload(&before)?;
        configuration("all is as it was", &|c: &Value| c["refused"].is_null() && !waits(c, "monitor")).await?;
        stage::ensure_all_answered(&traffic)
    });
}

#[test]
fn what_was_counted_reaches_the_controller_before_the_agent_ends() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 0).await?;
        let token = fleet.enrolment_token(1).await?;
        // No window closes by itself while the test runs.
        let setup = DeviceSetup { id: "dev-1", token: &token, window_ms: 3_600_000, settings: "" };
        fleet.add_device(&setup, true).await?;
        fleet.wait_online(1).await?;
        let traffic = stage::traffic(&fleet)?;
        fleet.release_digits("1.0.0").await?;
        fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &stage::EASY[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;
        wait::until("requests are answered", PATIENCE, async || {
            Ok((traffic.seen_by("dev-1").answered > 20).then_some(()))
        })
        .await?;
        let stored = async |fleet: &Fleet, kind: &str| {
            let name = format!("muster_controller_ingest_messages_total{{kind=\"{kind}\",outcome=\"stored\"}}");
            fleet.controller.metric(&name).await
        };
        let before = (stored(&fleet, "telemetry").await?, stored(&fleet, "sketch").await?);
        drop(traffic);
        let status = fleet.device("dev-1")?.process_mut().stop().await?;
        ensure!(status.success(), "the agent ended with {status}");
        let after = (stored(&fleet, "telemetry").await?, stored(&fleet, "sketch").await?);
        ensure!(after.0 > before.0 && after.1 > before.1, "{before:?} before it was stopped, {after:?} after");
        Ok(())
    });
}
