//! Root documents follow each other on a live fleet, and nobody enrols again.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use muster_shared::api::TrustView;
use muster_shared::rollout::RolloutStatus;
use muster_tests::binaries::Binaries;
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;

use crate::stage::{self, PACE};

/// The offline desk where keys and root documents are.
struct Desk<'a> {
    fleet: &'a Fleet,
    keys: PathBuf,
}

impl Desk<'_> {
    fn path(&self, name: &str) -> String {
        self.keys.join(name).display().to_string()
    }

    /// Makes the document after `from` and gives it to the controller.
    async fn rotate(&self, from: &str, changes: &[&str], signers: &[&str], to: &str) -> anyhow::Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        self.fleet.operator.run(&[&["root", "rotate", &from, "--out", &to], changes].concat()).await?;
        for signer in signers {
            let sign = ["root", "sign", &to, "--key", &self.path(signer), "--previous", &from];
            self.fleet.operator.run(&sign).await?;
        }
        self.fleet.operator.run(&["root", "push", &to]).await?;
        Ok(())
    }
}

fn swap(folder: &Path, first: &str, second: &str) -> anyhow::Result<()> {
    let (first, second, aside) = (folder.join(first), folder.join(second), folder.join("aside"));
    std::fs::rename(&first, &aside)?;
    std::fs::rename(&second, &first)?;
    std::fs::rename(&aside, &second)?;
    Ok(())
}

#[test]
fn keys_are_replaced_under_a_running_fleet_and_a_dropped_one_installs_nothing_more() {
    stage::run(async |binaries: Binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        // Away for every rotation: on return it has the whole chain to walk.
        fleet.cut_off("dev-2").await?;

        let keys = folder.join("keys");
        let desk = Desk { fleet: &fleet, keys: keys.clone() };
        for name in ["next-release.key", "next-root.key"] {
            fleet.operator.run(&["key", "generate", "--out", &desk.path(name)]).await?;
        }
        let (old, new) = (desk.path("release.key.pub"), desk.path("next-release.key.pub"));
        let release = ["--add-release-key", &new, "--remove-release-key", &old];
        desk.rotate("root.json", &release, &["root.key"], "root-2.json").await?;
        let (old, new) = (desk.path("root.key.pub"), desk.path("next-root.key.pub"));
        let root = ["--add-root-key", &new, "--remove-root-key", &old];
        desk.rotate("root-2.json", &root, &["root.key", "next-root.key"], "root-3.json").await?;
        desk.rotate("root-3.json", &["--expires-days", "30"], &["next-root.key"], "root-4.json").await?;

        // What the dropped key signs goes nowhere.
        let description = fixtures::digits().join("bundle-1.1.0.toml");
        let refused = fleet.release("by-the-old-key", &description).await.unwrap_err().to_string();
        ensure!(refused.contains("release") && refused.contains("0 of 1"), "{refused}");
        // What it signed before goes on answering, also after a restart.
        let device = fleet.device("dev-1")?;
        device.kill()?;
        device.restart().await?;
        fleet.wait_online(1).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;

        swap(&keys, "release.key", "next-release.key")?;
        fleet.release_digits("1.1.0").await?;
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*", "--wave", "100%"], &PACE[..]].concat();
        let rollout = fleet.roll_out(&create).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        fleet.device("dev-2")?.link()?.mend();
        fleet.wait_committed("dev-2", "1.1.0").await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        // The first version has the dropped key's signature alone. Signed again, it can be gone back to.
        let create = [&["--bundle", "digits@1.0.0", "--selector", "*", "--wave", "100%"], &PACE[..]].concat();
        let refused = fleet.roll_out(&create).await.unwrap_err().to_string();
        ensure!(
            refused.contains("digits@1.0.0 is not trusted any more") && refused.contains("bundle sign"),
            "{refused}"
        );
        let bundle = folder.join("bundles/digits-1.0.0").display().to_string();
        fleet
            .operator
            .run(&["bundle", "sign", &bundle, "--key", &keys.join("release.key").display().to_string()])
            .await?;
        fleet.operator.run(&["bundle", "push", &bundle]).await?;
        let rollout = fleet.roll_out(&create).await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        fleet.wait_committed("dev-2", "1.0.0").await?;
        for device in ["dev-1", "dev-2"] {
            let stored = fleet.device(device)?.folder().join("data/trust");
            let roots = std::fs::read_dir(&stored)?
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("root-"))
                .count();
            ensure!(roots == 4, "{device} holds {roots} root documents");
        }
        Ok(())
    });
}

#[test]
fn the_director_key_is_replaced_under_a_running_fleet() {
    stage::run(async |binaries: Binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        fleet.cut_off("dev-2").await?;
        let desk = Desk { fleet: &fleet, keys: folder.join("keys") };
        let director = desk.path("director-2.pub");
        fleet.operator.run(&["trust", "new-director-key", "--out", &director]).await?;
        desk.rotate("root.json", &["--director-key", &director], &["root.key"], "root-2.json").await?;
        let trust: TrustView = fleet.operator.json(&["trust", "show"]).await?;
        ensure!(trust.next_director_public_key.is_none() && trust.roots.len() == 2, "{trust:?}");
        // The device hears what it shall run once more, from the new key.
        let said_again = async |device: &str| {
            wait::until("the assignment is taken from the new key", PATIENCE, async || {
                let reported = fleet.operator.device(device).await?.reported;
                let taken = reported.is_some_and(|report| report.root_version == 2 && !report.awaits_director);
                Ok(taken.then_some(()))
            })
            .await
        };
        said_again("dev-1").await?;
        fleet.controller.crash_and_restart().await?;
        fleet.wait_online(1).await?;
        let trust: TrustView = fleet.operator.json(&["trust", "show"]).await?;
        ensure!(String::from(trust.director_public_key) == std::fs::read_to_string(&director)?.trim(), "another key");
        fleet.device("dev-2")?.link()?.mend();
        fleet.wait_online(2).await?;
        fleet.release_digits("1.1.0").await?;
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*", "--wave", "100%"], &PACE[..]].concat();
        let rollout = fleet.roll_out(&create).await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        let refused = fleet.operator.events().await?;
        ensure!(!refused.iter().any(|event| event.kind == "device.refused"), "a device refused what it was told");
        stage::ensure_all_answered(&traffic)
    });
}
