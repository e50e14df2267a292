//! Waves that pass only when their canaries are shown to be no worse than devices like them: twenty real devices.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::rollout::{
    Block, EvidencePart, Metric, Outcome, RolloutEvidence, RolloutPreview, RolloutStatus, ScoredDevice,
};
use muster_tests::fixtures;
use muster_tests::traffic::Traffic;

use crate::stage::{self, EASY};

const DEVICES: usize = 20;

#[test]
fn canaries_are_compared_with_devices_like_them_and_the_verdict_can_be_reached_again() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, DEVICES).await?;
        let mut traffic = Traffic::new(fixtures::held_out()?, Duration::from_millis(100));
        for device in &fleet.devices {
            traffic.start(&device.id, &device.inference_url);
        }
        stage::first_version(&fleet, &traffic).await?;

        fleet.release_digits("1.1.0").await?;
        let gate = ["--guardrail", "error-rate=3%", "--guardrail", "latency-share:60s=3%", "--guardrail", "failures"];
        let waves = ["--wave", "50%", "--wave", "100%"];
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*"], &waves[..], &gate[..], &EASY[..]].concat();
        // What it will do is known before: the very devices and blocks.
        let planned: RolloutPreview = fleet.operator.json(&[&["rollout", "plan"], &create[..]].concat()).await?;
        let good = fleet.roll_out(&create).await?;
        let view = fleet.wait_rollout(&good, RolloutStatus::Completed).await?;
        let report = view.verdicts[0].gate.as_ref().context("the first wave is compared")?;
        ensure!((report.outcome, report.blocks) == (Outcome::Successful, 10), "{report:?}");
        ensure!(report.guardrails.iter().all(|guardrail| guardrail.blocks == 10), "{report:?}");
        ensure!(planned.waves[0].devices.iter().eq(view.waves[0].devices.keys()), "{planned:?} {view:?}");
        ensure!(planned.waves[1].devices.iter().eq(view.waves[1].devices.keys()), "{planned:?} {view:?}");
        let evidence: Vec<RolloutEvidence> = fleet.operator.json(&["rollout", "evidence", &good]).await?;
        let compared = evidence[0].gate().context("the first verdict keeps its scores")?;
        let canaries = |block: &Block<_>| planned.waves[0].blocks.iter().any(|planned| planned == block);
        let dealt = |block: &Block<ScoredDevice>| block.map(|scored| scored.device.clone());
        ensure!(compared.blocks.iter().map(dealt).all(|block| canaries(&block)), "{planned:?} {compared:?}");
        let last = view.verdicts[1].gate.as_ref().context("the last wave says why it is not")?;
        ensure!(last.limits_only && last.sentence.contains("nobody is left"), "{last:?}");

        // A shadow that names other classes is no loss by itself, and still not let through.
        fleet.release_digits("1.2.0").await?;
        let gate = ["--stage", "shadow", "--share", "100%", "--guardrail", "disagreement=10%"];
        let create = [&["--bundle", "digits@1.2.0", "--selector", "*"], &gate[..], &EASY[..]].concat();
        let other = fleet.roll_out(&create).await?;
        let view = fleet.wait_rollout(&other, RolloutStatus::Paused).await?;
        let report = view.verdicts[0].gate.as_ref().context("it is compared")?;
        let disagreement = &report.guardrails[0];
        ensure!((report.outcome, disagreement.guardrail.metric) == (Outcome::Inconclusive, Metric::Disagreement));
        ensure!(disagreement.mean_difference.is_some_and(|share| share > 0.1), "{disagreement:?}");
        ensure!(view.status_reason.contains("it is not shown that canaries are not worse"), "{}", view.status_reason);

        for (id, waves) in [(&good, 2), (&other, 1)] {
            let file = folder.join(format!("{id}.json"));
            let path = file.to_str().context("a path in words")?;
            fleet.operator.run(&["rollout", "evidence", id, "--out", path]).await?;
            fleet.operator.run(&["rollout", "replay", path]).await?;
            let evidence: Vec<RolloutEvidence> = serde_json::from_slice(&std::fs::read(&file)?)?;
            ensure!(evidence.len() == waves, "{} verdicts of {id}", evidence.len());
            // What was changed comes out: a verdict of the gate, and a number that a limit was held against.
            for change in [forge_gate as fn(&mut EvidencePart), forge_requests] {
                let mut forged = evidence.clone();
                let RolloutEvidence::Verdict(first) = &mut forged[0] else { anyhow::bail!("{forged:?}") };
                first.parts.iter_mut().for_each(change);
                std::fs::write(&file, serde_json::to_vec(&forged)?)?;
                let forged = fleet.operator.try_run(&["rollout", "replay", path]).await?;
                ensure!(forged.status == Some(1), "{}", forged.stderr);
                ensure!(forged.stderr.contains("otherwise than stored"), "{}", forged.stderr);
            }
            // What was written before verdicts kept more than their scores is still read.
            let gates: Vec<_> = evidence.iter().filter_map(RolloutEvidence::gate).collect();
            std::fs::write(&file, serde_json::to_vec(&gates)?)?;
            fleet.operator.run(&["rollout", "replay", path]).await?;
        }
        fleet.operator.run(&["rollout", "abort", &other]).await?;
        traffic.finish().await;
        stage::ensure_all_answered(&traffic)
    });
}

fn forge_gate(part: &mut EvidencePart) {
    if let EvidencePart::Gate(gate) = part {
        gate.report.outcome = Outcome::Failed;
    }
}

fn forge_requests(part: &mut EvidencePart) {
    if let EvidencePart::Limits(limits) = part {
        limits.canary.requests += 1;
    }
}
