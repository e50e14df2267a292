//! A controller whose disk is full: it says so, keeps what it has, and goes on once there is room.
//!
//! The disk is one of its own, mounted where only the controller sees it. Where the system lets no user mount one, these tests
//! are left out.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_tests::binaries::Binaries;
use muster_tests::process::Process;
use muster_tests::wait;

use crate::stage;

const PATIENCE: Duration = Duration::from_secs(60);
const MOUNT: &str = "mount -t tmpfs -o \"$1\" small \"$2\"";

/// The controller on a disk of `size_mib` at `folder/disk`; none where that is not allowed.
fn on_a_small_disk(binaries: &Binaries, folder: &Path, size_mib: u32) -> anyhow::Result<Option<Command>> {
    let disk = folder.join("disk");
    std::fs::create_dir_all(&disk)?;
    let config = folder.join("controller.toml");
    std::fs::write(
        &config,
        format!(
            "data-dir = {:?}\n[api]\nlisten = \"127.0.0.1:0\"\n[broker]\nlisten = \"127.0.0.1:0\"\n",
            disk.join("data")
        ),
    )?;
    let in_namespace = |script: String| {
        let mut command = Command::new("unshare");
        command.args(["-Urm", "sh", "-c", &script, "sh", &format!("size={size_mib}m")]).arg(&disk);
        command
    };
    if !in_namespace(MOUNT.to_owned()).output().is_ok_and(|output| output.status.success()) {
        eprintln!("left out: this system lets no user mount a disk of their own (unshare -Urm)");
        return Ok(None);
    }
    let mut command = in_namespace(format!("{MOUNT} && exec \"$3\" serve --config \"$4\""));
    command.arg(&binaries.controller).arg(config);
    Ok(Some(command))
}

#[test]
fn a_start_with_too_little_room_is_refused() {
    stage::run(async |binaries, folder| {
        let Some(mut command) = on_a_small_disk(&binaries, &folder, 16)? else { return Ok(()) };
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && !said.contains("panicked"), "{said}");
        let store = folder.join("disk/data/store").display().to_string();
        for word in ["full", "32 MiB", store.as_str()] {
            ensure!(said.contains(word), "{word:?} is not said: {said}");
        }
        Ok(())
    });
}

/// Writes `mib` into `path`, or as many as there is room for.
fn fill(path: &Path, mib: u64) -> anyhow::Result<()> {
    let status = Command::new("dd")
        .arg("if=/dev/zero")
        .arg(format!("of={}", path.display()))
        .args(["bs=1M", &format!("count={mib}"), "status=none"])
        .stderr(std::process::Stdio::null())
        .status()?;
    // A full disk is what is wanted.
    ensure!(status.code().is_some(), "dd died");
    Ok(())
}

#[test]
fn a_disk_that_fills_up_is_told_and_work_goes_on_once_there_is_room() {
    stage::run(async |binaries, folder| {
        let Some(mut command) = on_a_small_disk(&binaries, &folder, 96)? else { return Ok(()) };
        let mut process = Process::start("the controller", &mut command, &folder.join("controller.log"))?;
        // The disk as the controller sees it.
        let disk = PathBuf::from(format!("/proc/{}/root", process.id())).join(folder.join("disk").strip_prefix("/")?);
        let endpoints: serde_json::Value = wait::until("the controller comes up", PATIENCE, async || {
            process.ensure_running()?;
            let text = std::fs::read(disk.join("data/endpoints.json")).ok();
            Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
        })
        .await?;
        let api = endpoints["api_url"].as_str().context("no api_url")?.to_owned();
        let token = std::fs::read_to_string(disk.join("data/admin.token"))?;
        let ca = reqwest::Certificate::from_pem(&std::fs::read(disk.join("data/pki/ca.pem"))?)?;
        let client = reqwest::Client::builder().tls_certs_only([ca]).timeout(PATIENCE).build()?;
        let ready = async || anyhow::Ok(client.get(format!("{api}/readyz")).send().await?.status().as_u16());
        let content = vec![7_u8; 8 * 1024 * 1024];
        let digest = muster_shared::ids::Digest::of(&content);
        let upload = async || {
            let request = client.put(format!("{api}/api/v1/files/{digest}")).bearer_auth(token.trim());
            let answer = request.body(content.clone()).send().await?;
            anyhow::Ok((answer.status().as_u16(), answer.text().await?))
        };
        ensure!(ready().await? == 200, "not ready at first");

        // Below the reserve: what is there is served, nothing new is taken into the store.
        let filler = disk.join("filler");
        fill(&filler, 76)?;
        wait::until("it is not ready", PATIENCE, async || Ok((ready().await? == 503).then_some(()))).await?;
        // Full to the last byte: an upload is refused and leaves nothing.
        fill(&filler, 200)?;
        let (status, said) = upload().await?;
        ensure!(status == 507 && said.contains("disk-full"), "{status}: {said}");
        let left = std::fs::read_dir(disk.join("data/blobs/incoming"))?.count();
        ensure!(left == 0, "{left} files are left of the upload");
        let devices = client.get(format!("{api}/api/v1/devices")).bearer_auth(token.trim()).send().await?;
        ensure!(devices.status() == 200, "reading fails: {}", devices.text().await?);
        process.ensure_running()?;

        std::fs::remove_file(&filler)?;
        wait::until("it is ready again", PATIENCE, async || Ok((ready().await? == 200).then_some(()))).await?;
        let (status, said) = upload().await?;
        ensure!(status == 201, "{status}: {said}");
        let log = std::fs::read_to_string(folder.join("controller.log"))?;
        ensure!(log.contains("is full") && !log.contains("panicked"), "{log}");
        process.stop().await?;
        Ok(())
    });
}
