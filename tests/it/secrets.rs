//! What is secret lies in one place each, and nobody but its owner can read or change it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use muster_shared::token::EnrolmentToken;
use muster_tests::binaries::Binaries;
use muster_tests::device::DeviceSetup;
use muster_tests::fleet::Fleet;

use crate::stage;

/// The program started with a umask that takes nothing away, as some supervisors have it.
fn open_handed(program: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let name = program.file_name().context("a program has a name")?;
    let script = folder.join(name);
    // Written by a process of its own: a file that is open for writing in this one, where other tests start programs, cannot be run.
    let write = "printf '#!/bin/sh\\numask 000\\nexec \"%s\" \"$@\"\\n' \"$1\" > \"$2\" && chmod 700 \"$2\"";
    let status = Command::new("sh").args(["-c", write, "sh"]).arg(program).arg(&script).status()?;
    ensure!(status.success(), "the script for {} could not be written", program.display());
    Ok(script)
}

/// What users other than the owner can do below a folder that lets everybody in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Open {
    readable: BTreeSet<String>,
    writable: BTreeSet<String>,
}

fn look(root: &Path, folder: &Path, open: &mut Open) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        let mode = metadata.permissions().mode();
        let name = path.strip_prefix(root)?.display().to_string();
        if mode & 0o022 != 0 {
            open.writable.insert(name.clone());
        }
        if metadata.is_dir() {
            // Nobody gets past a folder that they may not enter.
            if mode & 0o011 != 0 {
                look(root, &path, open)?;
            }
        } else if mode & 0o044 != 0 {
            open.readable.insert(name);
        }
    }
    Ok(())
}

fn open_below(root: &Path) -> anyhow::Result<Open> {
    let mut open = Open::default();
    look(root, root, &mut open)?;
    Ok(open)
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

/// The files below `folder` that hold `secret`.
fn holders(folder: &Path, secret: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut all = Vec::new();
    files(folder, &mut all)?;
    let mut holders = BTreeSet::new();
    for path in all {
        // Of what a running program may remove meanwhile there is nothing left to find.
        let Ok(content) = fs::read(&path) else { continue };
        if content.windows(secret.len()).any(|part| part == secret.as_bytes()) {
            holders.insert(path.strip_prefix(folder)?.display().to_string());
        }
    }
    Ok(holders)
}

/// The second line of a key in PEM, which is all secret.
fn pem_line(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path)?;
    Ok(text.lines().nth(2).with_context(|| format!("{} is no key in PEM", path.display()))?.to_owned())
}

fn seed(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path)?;
    let seed = text.lines().find_map(|line| line.strip_prefix("seed = ")).context("a key has a seed")?;
    Ok(seed.trim_matches('"').to_owned())
}

#[test]
fn secrets_are_the_owners_alone_and_in_one_place_each() {
    stage::run(async |binaries, folder| {
        let programs = folder.join("programs");
        fs::create_dir(&programs)?;
        let binaries = Binaries {
            controller: open_handed(&binaries.controller, &programs)?,
            agent: open_handed(&binaries.agent, &programs)?,
            muster: open_handed(&binaries.muster, &programs)?,
        };
        // Data folders that somebody has made before, and let everybody in.
        let data = ["controller/data", "dev-1/data"].map(|name| folder.join(name));
        for path in &data {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        }
        let mut fleet = Fleet::found(&binaries, &folder, "[rollout]\ntick-ms = 100\n").await?;
        let token = fleet.enrolment_token(1).await?;
        let setup = DeviceSetup { id: "dev-1", token: &token, window_ms: 500, settings: "" };
        fleet.add_device(&setup, false).await?;
        fleet.wait_online(1).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;

        for (path, readable) in data.iter().zip([BTreeSet::from(["endpoints.json".to_owned()]), BTreeSet::new()]) {
            let open = open_below(path)?;
            ensure!(open.readable == readable, "others can read below {}: {open:?}", path.display());
            ensure!(open.writable.is_empty(), "others can write below {}: {open:?}", path.display());
        }
        let keys = open_below(&folder.join("keys"))?;
        let public = ["director.pub", "release.key.pub", "root.json", "root.key.pub"].map(str::to_owned);
        ensure!(keys.readable == BTreeSet::from(public), "{keys:?}");
        ensure!(keys.writable.contains("root.json"), "the umask is not what this test needs: {keys:?}");

        let enrolment: EnrolmentToken = token.parse()?;
        let secrets = BTreeMap::from([
            ("controller/data/admin.token", fleet.controller.token.clone()),
            ("controller/data/director.key", fs::read_to_string(data[0].join("director.key"))?.trim().to_owned()),
            ("controller/data/pki/ca.key", pem_line(&data[0].join("pki/ca.key"))?),
            ("controller/data/pki/server.key", pem_line(&data[0].join("pki/server.key"))?),
            ("dev-1/data/identity/device.key", pem_line(&data[1].join("identity/device.key"))?),
            // Where the operator wrote it; the controller keeps its digest, the device nothing.
            ("dev-1/agent.toml", token.clone()),
            ("keys/release.key", seed(&folder.join("keys/release.key"))?),
            ("keys/root.key", seed(&folder.join("keys/root.key"))?),
        ]);
        for (place, secret) in secrets {
            ensure!(secret.len() >= 32, "{place} holds no secret to look for");
            let holders = holders(&folder, &secret)?;
            ensure!(holders == BTreeSet::from([place.to_owned()]), "the secret of {place} is in {holders:?}");
        }
        let bare = holders(&folder, enrolment.secret.as_deref().context("the token has a secret")?)?;
        ensure!(bare.is_empty(), "the secret of the enrolment token is in {bare:?}");
        Ok(())
    });
}
