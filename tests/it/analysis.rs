//! Waves that must stand what a real Prometheus says of the devices they changed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use muster_shared::rollout::{Outcome, RolloutStatus, Rule, TemplateView};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::process::Process;
use muster_tests::{programs, wait};

use crate::stage::{self, PACE};

const TEMPLATE: &str = r#"
name: answered
args:
  - name: least
    value: "0.5"
  - name: devices
metrics:
  - name: share
    interval: 300ms
    count: 3
    successCondition: len(result) == 1 && result[0] >= {{args.least}}
    provider:
      prometheus:
        query: sum(muster_agent_requests_total{outcome="answered"}) / sum(muster_agent_requests_total)
  - name: connected
    interval: 300ms
    count: 2
    successCondition: result >= {{args.devices}}
    provider:
      prometheus:
        query: scalar(sum(muster_agent_broker_connected))
  - name: errors
    failureCondition: result.canary.errorRate > 0.5
    successCondition: result.canary.errorRate <= 0.1
    provider:
      fleet: {}
"#;

/// A Prometheus that looks at the agents of `fleet`, at an address that was free.
async fn prometheus(program: &Path, folder: &Path, address: &str, fleet: &Fleet) -> anyhow::Result<Process> {
    let targets: Vec<&str> =
        fleet.devices.iter().filter_map(|device| device.inference_url.strip_prefix("http://")).collect();
    let targets: Vec<&str> = targets.into_iter().filter_map(|rest| rest.split('/').next()).collect();
    let config = serde_json::json!({
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{"job_name": "agents", "static_configs": [{"targets": targets}]}],
    });
    // JSON is YAML.
    let path = folder.join("prometheus.yml");
    std::fs::write(&path, config.to_string())?;
    let mut command = Command::new(program);
    command
        .arg(format!("--config.file={}", path.display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()))
        .arg(format!("--web.listen-address={address}"));
    let mut process = Process::start("prometheus", &mut command, &folder.join("prometheus.log"))?;
    wait::until("prometheus has looked at every agent", PATIENCE, async || {
        process.ensure_running()?;
        let asked = reqwest::get(format!("http://{address}/api/v1/query?query=sum(up)")).await;
        let Ok(answer) = asked else { return Ok(None) };
        let Ok(said) = answer.json::<serde_json::Value>().await else { return Ok(None) };
        let up = said["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
        Ok((up == Some(targets.len().to_string())).then_some(()))
    })
    .await?;
    Ok(process)
}

#[test]
fn a_real_prometheus_lets_waves_pass_and_takes_them_back() {
    let Some(program) = programs::find(&["prometheus"]) else {
        eprintln!("Prometheus is not installed, so no real one was asked");
        return;
    };
    stage::run(async |binaries, folder| {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let settings = format!(
            "[rollout]\ntick-ms = 100\n[rollout.analysis]\nallowed-hosts = [\"{address}\"]\n\
             prometheus-address = \"http://{address}\"\n"
        );
        let fleet = stage::fleet_with(&binaries, &folder, 2, &settings).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let mut prometheus = prometheus(&program, &folder, &address, &fleet).await?;

        let file = folder.join("answered.yaml");
        std::fs::write(&file, TEMPLATE)?;
        let file = file.to_str().context("a path")?;
        let base = format!("http://{address}");
        let asks = ["analysis", "run", file, "--prometheus", &base, "--arg"];
        let tried = fleet.operator.try_run(&[&asks[..], &["devices=2"]].concat()).await?;
        ensure!(tried.status == Some(0) && tried.stdout.contains("Successful"), "{tried:?}");
        let tried = fleet.operator.try_run(&[&asks[..], &["devices=3"]].concat()).await?;
        ensure!(tried.status == Some(1) && tried.stdout.contains("Failed"), "{tried:?}");
        let nobody = ["analysis", "run", file, "--prometheus", "http://127.0.0.1:1", "--arg", "devices=2"];
        let tried = fleet.operator.try_run(&nobody).await?;
        ensure!(tried.status == Some(5) && tried.stdout.contains("cannot be reached"), "{tried:?}");
        let missing = fleet.operator.try_run(&["analysis", "run", file]).await?;
        ensure!(missing.status == Some(2) && missing.stderr.contains("args.devices"), "{missing:?}");

        ensure!(fleet.operator.run(&["analysis", "push", file]).await?.trim() == "answered@1");
        std::fs::write(file, TEMPLATE.replace("count: 3", "count: 2"))?;
        ensure!(fleet.operator.run(&["analysis", "push", file]).await?.trim() == "answered@2");
        let first: TemplateView = fleet.operator.json(&["analysis", "show", "answered@1"]).await?;
        ensure!(first.template.metrics[0].count == Some(3), "{first:?}");
        let listed = fleet.operator.run(&["analysis", "list"]).await?;
        ensure!(listed.contains("share, connected, errors"), "{listed}");

        fleet.release_digits("1.1.0").await?;
        let wish = ["--bundle", "digits@1.1.0", "--selector", "*", "--wave", "1", "--wave", "100%", "--analysis"];
        let good = ["answered@1", "--analysis-arg", "answered.devices=2"];
        let id = fleet.roll_out(&[&wish[..], &good, &PACE].concat()).await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::Completed).await?;
        ensure!(view.verdicts.len() == 2, "{:?}", view.verdicts);
        for verdict in &view.verdicts {
            let metrics = &verdict.analyses[0].metrics;
            let measured: Vec<u32> = metrics.iter().map(|metric| metric.measured).collect();
            ensure!(measured == [3, 2, 1], "{metrics:?}");
            ensure!(metrics.iter().all(|metric| metric.outcome == Some(Outcome::Successful)), "{metrics:?}");
        }
        let shown = fleet.operator.run(&["rollout", "show", &id]).await?;
        ensure!(shown.contains("answered@1") && shown.contains("3/3"), "{shown}");

        // More devices than there are: Prometheus says no, and the canary goes back.
        fleet.release_digits("1.2.0").await?;
        // That version answers otherwise, which is not the point here.
        let wish = ["--max-prediction-psi", "1000", "--bundle", "digits@1.2.0", "--selector", "*"];
        let wish = [&wish[..], &["--wave", "1", "--wave", "100%", "--analysis"]].concat();
        let bad = ["answered:1", "--analysis-arg", "answered.devices=3"];
        let id = fleet.roll_out(&[&wish[..], &bad, &PACE].concat()).await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::RolledBack).await?;
        let verdict = view.verdicts.last().context("a verdict")?;
        let failed: Vec<Rule> =
            verdict.checks.iter().filter(|check| check.outcome == Outcome::Failed).map(|check| check.rule).collect();
        ensure!(failed == [Rule::Analysis], "{verdict:?}");
        ensure!(verdict.summary.contains("answered@2/connected: 1 of 1 failed, 0 may"), "{}", verdict.summary);
        for device in ["dev-1", "dev-2"] {
            fleet.wait_committed(device, "1.1.0").await?;
        }

        // Nobody to ask: the wave does not pass, and says why.
        prometheus.kill()?;
        let good = ["answered@1:1", "--analysis-arg", "answered.devices=2"];
        let id = fleet.roll_out(&[&wish[..], &good, &PACE].concat()).await?;
        let view = fleet.wait_rollout(&id, RolloutStatus::Paused).await?;
        ensure!(view.status_reason.contains("errors in a row"), "{}", view.status_reason);
        ensure!(view.current_wave == 0, "{view:?}");
        stage::ensure_all_answered(&traffic)
    });
}
