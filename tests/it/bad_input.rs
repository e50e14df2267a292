//! Programs that cannot start say why, where, and what to do.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

use crate::stage;

fn refused(program: &Path, args: &[&str], words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "{args:?} must fail: {said}");
    ensure!(output.status.code().is_some(), "{args:?} died of a signal: {said}");
    ensure!(!said.contains("panicked"), "{args:?} panicked: {said}");
    for word in words {
        ensure!(said.contains(word), "{args:?} must say {word:?}: {said}");
    }
    Ok(())
}

#[test]
fn malformed_configurations_are_refused_by_line() {
    stage::run(async |binaries, folder| {
        let file = folder.join("bad.toml");
        let path = file.to_str().unwrap_or_default();
        for (text, word) in
            [("data-dir = 3\n", "data-dir"), ("no-such-setting = 1\n", "no-such-setting"), ("[broken\n", "line 1")]
        {
            std::fs::write(&file, text)?;
            refused(&binaries.controller, &["serve", "--config", path], &[word, "bad.toml"])?;
            refused(&binaries.agent, &["--config", path], &[word, "bad.toml"])?;
        }
        refused(&binaries.controller, &["serve", "--config", "nowhere.toml"], &["nowhere.toml"])?;
        refused(&binaries.agent, &["--config", "nowhere.toml"], &["nowhere.toml"])
    });
}

/// Every file in `folder` by its name.
fn files_in(folder: &Path) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            found.insert(path.clone(), std::fs::read(path)?);
        }
    }
    Ok(found)
}

#[test]
fn a_port_in_use_and_a_corrupt_store_are_named() {
    stage::run(async |binaries, folder| {
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let address = taken.local_addr()?.to_string();
        let file = folder.join("controller.toml");
        let path = file.to_str().unwrap_or_default();
        for section in ["api", "broker"] {
            let other = if section == "api" { "broker" } else { "api" };
            std::fs::write(
                &file,
                format!(
                    "data-dir = {:?}\n[{section}]\nlisten = {address:?}\n[{other}]\nlisten = \"127.0.0.1:0\"\n",
                    folder.join(section)
                ),
            )?;
            refused(&binaries.controller, &["serve", "--config", path], &[&address])?;
        }
        let fleet = stage::fleet(&binaries, &folder.join("fleet"), 0).await?;
        let data = fleet.controller.folder().join("data");
        drop(fleet);
        let store = data.join("store");
        for entry in std::fs::read_dir(&store)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::write(entry.path(), b"this is no store")?;
            }
        }
        std::fs::write(
            &file,
            format!("data-dir = {data:?}\n[api]\nlisten = \"127.0.0.1:0\"\n[broker]\nlisten = \"127.0.0.1:0\"\n"),
        )?;
        let before = files_in(&store)?;
        let named = store.display().to_string();
        refused(&binaries.controller, &["serve", "--config", path], &["damaged", &named])?;
        ensure!(files_in(&store)? == before, "the damaged store was changed");
        Ok(())
    });
}

#[test]
fn a_token_that_is_no_token_is_refused_without_repeating_it() {
    stage::run(async |binaries, folder| {
        let file = folder.join("agent.toml");
        std::fs::write(
            &file,
            format!(
                "data-dir = {:?}\nenrolment-token = \"secret-nonsense\"\n[serve]\nlisten = \"127.0.0.1:0\"\n",
                folder.join("data")
            ),
        )?;
        let output = Command::new(&binaries.agent).arg("--config").arg(&file).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(!output.status.success() && said.contains("muster1."), "{said}");
        ensure!(!said.contains("secret-nonsense"), "{said}");
        Ok(())
    });
}

#[test]
fn bytes_that_are_no_tls_leave_the_doors_open_for_others() {
    use std::io::{Read as _, Write as _};

    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 1).await?;
        let endpoints = &fleet.controller.endpoints;
        let api = endpoints.api_url.trim_start_matches("https://").to_owned();
        let broker = format!("{}:{}", endpoints.broker_host, endpoints.broker_port);
        let noise: Vec<u8> = (0..20_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        // Plain HTTP, a TLS handshake that ends in noise, MQTT without TLS, and noise alone.
        let starts: [&[u8]; 4] =
            [b"GET / HTTP/1.1\r\n\r\n", &[22, 3, 1, 1, 0xf0, 1, 0, 1, 0xec, 3, 3], &[0x10, 0x20, 0, 4], &[]];
        for address in [&api, &broker] {
            for start in starts {
                let mut socket = std::net::TcpStream::connect(address)?;
                // The other side may hang up before it has read all of it.
                let _ = socket.write_all(&[start, &noise].concat());
                let _ = socket.shutdown(std::net::Shutdown::Write);
                let _ = socket.read_to_end(&mut Vec::new());
            }
        }
        fleet.operator.run(&["device", "list"]).await?;
        fleet.wait_online(1).await?;
        fleet.release_digits("1.0.0").await?;
        fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &stage::PACE[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.0.0").await
    });
}
