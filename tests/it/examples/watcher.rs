//! The watcher of a folder: every image is answered once it is complete, and none is lost while nobody answers.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use muster_tests::fleet::PATIENCE;
use muster_tests::{png, wait};
use serde_json::Value;

use super::{Example, Golden, Stage, golden, python};
use crate::stage;

/// Images that come while nobody answers: many more than the watcher may hold.
const FLOOD: usize = 100;
/// Names it may hold.
const QUEUE: &str = "8";

/// A golden input as an image. With white as 17 it comes out as it went in: 255 is 17 times 15.
fn image(example: &Golden) -> Vec<u8> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "grey values are whole numbers up to 16"
    )]
    let pixels: Vec<u8> = example.pixels.iter().map(|pixel| (*pixel * 15.0) as u8).collect();
    png::gray(8, &pixels)
}

/// The beginning of a command that has to keep to the modes of files, as root does not without this.
fn without_privileges() -> anyhow::Result<Command> {
    let mut command = Command::new("setpriv");
    if std::fs::metadata("/proc/self")?.uid() == 0 {
        command.arg("--bounding-set=-dac_override,-dac_read_search");
    }
    command.arg("--");
    Ok(command)
}

async fn answered(folder: &Path, count: usize) -> anyhow::Result<()> {
    let done = folder.join("done");
    wait::until(&format!("{count} images are done"), PATIENCE, async || {
        Ok((std::fs::read_dir(&done)?.count() >= 2 * count).then_some(()))
    })
    .await
}

fn hold_against(folder: &Path, name: &str, example: &Golden) -> anyhow::Result<()> {
    let said: Value = serde_json::from_slice(&std::fs::read(folder.join(format!("done/{name}.json")))?)?;
    let probability = said["outputs"][0]["data"][example.class()].as_f64().unwrap_or_default();
    ensure!(said["version"] == "1.0.0" && said["best"] == example.class(), "{name}: {said}");
    ensure!(example.allows(example.class(), probability), "{name}: {said}");
    ensure!(folder.join("done").join(name).exists() && !folder.join(name).exists(), "{name} did not move");
    Ok(())
}

#[test]
#[ignore = "needs watchdog and pillow: .ci/examples PYTHON"]
fn every_image_is_answered_once_it_is_complete() {
    stage::run(async |binaries, folder| {
        let golden = golden()?;
        let mut stage = Stage::set(&binaries, &folder).await?;
        stage.open().await?;
        let images = folder.join("images");
        std::fs::create_dir(&images)?;
        // What was there before, and what stands around.
        std::fs::write(images.join("before.png"), image(&golden[0]))?;
        std::fs::write(images.join("notes.txt"), "no image")?;
        // What it may not read: what somebody is about to rename, and an image.
        for name in [".secret.png.AbCdEf", "secret.png"] {
            std::fs::write(images.join(name), image(&golden[0]))?;
            std::fs::set_permissions(images.join(name), Permissions::from_mode(0o000))?;
        }
        let mut command = without_privileges()?;
        command
            .arg(python()?)
            .arg(super::folder().join("directory-watcher/watch.py"))
            .arg("--socket")
            .arg(&stage.socket);
        command.args(["--brightest", "17", "--queue", QUEUE, "--rescan-s", "1"]).arg(&images);
        let mut watcher = Example::start(&stage, "watcher", &mut command)?;
        watcher.says("held up, images stay in the folder: no model is being served yet").await?;
        let at_rest_kib = watcher.resident_kib()?;
        for at in 0..FLOOD {
            let example = image(&golden[at % golden.len()]);
            let name = format!("flood-{at}.png");
            if at % 2 == 0 {
                std::fs::write(images.join(name), example)?;
            } else {
                // As a careful program does: whole under another name first.
                std::fs::write(folder.join(&name), example)?;
                std::fs::rename(folder.join(&name), images.join(name))?;
            }
        }
        std::fs::write(images.join("broken.png"), &image(&golden[0])[..40])?;
        ensure!(watcher.resident_kib()? <= at_rest_kib + 4096, "{} KiB", watcher.resident_kib()?);
        stage.serve().await?;
        answered(&images, FLOOD + 1).await?;
        hold_against(&images, "before.png", &golden[0])?;
        for at in 0..FLOOD {
            hold_against(&images, &format!("flood-{at}.png"), &golden[at % golden.len()])?;
        }
        for name in ["broken.png", "secret.png"] {
            let reason = images.join(format!("failed/{name}.json"));
            wait::until("it is laid aside", PATIENCE, async || Ok(reason.exists().then_some(()))).await?;
            let reason: Value = serde_json::from_slice(&std::fs::read(reason)?)?;
            ensure!(reason["error"].as_str().is_some_and(|why| why.contains("cannot be read")), "{reason}");
        }
        ensure!(images.join(".secret.png.AbCdEf").exists(), "a hidden file was taken");

        // One that is written slowly, its writer still at it while others are found by looking through the folder.
        let bytes = image(&golden[1]);
        let mut slow = std::fs::File::create(images.join("slow.png"))?;
        slow.write_all(&bytes[..50])?;
        slow.sync_all()?;
        for at in 0..2 {
            std::fs::write(images.join(format!("quick-{at}.png")), image(&golden[2]))?;
            answered(&images, FLOOD + 2 + at).await?;
        }
        ensure!(images.join("slow.png").exists(), "an image that was being written was taken");
        slow.write_all(&bytes[50..])?;
        drop(slow);
        answered(&images, FLOOD + 4).await?;
        hold_against(&images, "slow.png", &golden[1])?;
        ensure!(images.join("notes.txt").exists(), "what is no image was taken");

        // One that is replaced while it waits for its answer.
        ensure!(golden[3].class() != golden[4].class(), "one answer would fit both");
        stage.signal("-STOP")?;
        std::fs::write(images.join("latest.png"), image(&golden[3]))?;
        watcher.says("timed out").await?;
        std::fs::write(folder.join("latest.png"), image(&golden[4]))?;
        std::fs::rename(folder.join("latest.png"), images.join("latest.png"))?;
        stage.signal("-CONT")?;
        answered(&images, FLOOD + 5).await?;
        hold_against(&images, "latest.png", &golden[4])?;
        ensure!(std::fs::read(images.join("done/latest.png"))? == image(&golden[4]), "the older one was kept");
        watcher.says("latest.png is not there any more, or is another by now").await?;
        watcher.stops_cleanly().await
    });
}
