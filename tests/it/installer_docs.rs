//! docs/devices.md and docs/troubleshooting.md do what they say: each of their commands runs, in the page's order, on a real device with a
//! real controller, and what they quote is what is printed.
//!
//! The pages' commands are run as they stand. What needs root or systemd is played by programs of the same names before them on `PATH`: they
//! take `/etc/muster-agent`, `/run/muster-agent` and the like for folders of the test, and `systemctl` starts and stops the agent itself.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use muster_tests::binaries::Binaries;
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;

use crate::stage;

/// Blocks that are shown and not run, by their first line, and why. Keep them few.
const NOT_RUN: [(&str, &str); 4] = [
    ("sudo dd if=muster-generic-arm64.img", "overwrites a card"),
    ("sudo umount /mnt", "a file system of the host"),
    (
        "sudo apt install ./muster-agent_0.1.0-1_arm64.deb",
        "installs into the host; tests/packages does it in a throw-away one",
    ),
    ("sudo usermod --append --groups", "changes the host's users"),
];

/// What runs instead of programs that need root: the arguments' folders are those of the test.
const MAPPED: &str = r#"#!/usr/bin/env bash
set -euo pipefail
name="${0##*/}" mapped=()
for argument in "$@"; do
    for folder in etc/muster-agent run/muster-agent var/lib/muster-agent mnt; do
        case "$argument" in "/$folder" | "/$folder/"*) argument="$PLACE$argument" ;; esac
    done
    mapped+=("$argument")
done
[ "$name" = sudo ] && { name="${mapped[0]}"; mapped=("${mapped[@]:1}"); }
case "$name" in
    # Folders in what is written, too; the group is not there on this machine, and the port may be taken.
    tee) sed -e "s#\"/run/#\"$PLACE/run/#" -e '/^unix-socket-group/d' -e 's/^\[serve\]/[serve]\nlisten = "127.0.0.1:0"/' | command tee "${mapped[@]}" ;;
    muster-agent)
        case " ${mapped[*]} " in *" --config "*) ;; *) [ "${mapped[0]}" = logs ] || mapped+=(--config "$PLACE/etc/muster-agent/agent.toml") ;; esac
        exec "$AGENT" "${mapped[@]}" ;;
    curl) exec "$CURL" "${mapped[@]}" ;;
    *) exec "$name" "${mapped[@]}" ;;
esac
"#;

/// What runs instead of systemctl.
const SYSTEMCTL: &str = r#"#!/usr/bin/env bash
set -euo pipefail
case "$1 $2" in
    "show muster-agent") echo NRestarts=0 ;;
    "is-active muster-agent") echo unknown ;;
    "restart muster-agent" | "stop muster-agent")
        if [ -f "$PLACE/pid" ]; then
            kill "$(cat "$PLACE/pid")" 2>/dev/null && while kill -0 "$(cat "$PLACE/pid")" 2>/dev/null; do sleep 0.05; done
            rm -f "$PLACE/pid"
        fi
        [ "$1" = restart ] || exit 0
        rm -f "$PLACE/data/endpoints.json"
        CREDENTIALS_DIRECTORY="$PLACE/etc/muster-agent" "$AGENT" --config "$PLACE/etc/muster-agent/agent.toml" </dev/null >>"$PLACE/agent.log" 2>&1 &
        echo $! >"$PLACE/pid"
        # As Type=notify: ready when it says where it answers, or when it has ended.
        until [ -s "$PLACE/data/endpoints.json" ] || ! kill -0 "$(cat "$PLACE/pid")" 2>/dev/null; do sleep 0.05; done ;;
    *) echo "systemctl $* is not known to the test" >&2; exit 64 ;;
esac
"#;

/// A block of a page.
struct Block {
    heading: String,
    kind: String,
    text: String,
}

fn blocks(page: &str) -> anyhow::Result<Vec<Block>> {
    let path = fixtures::folder().join("../../docs").join(page);
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let (mut found, mut heading, mut open) = (Vec::new(), String::new(), None::<Block>);
    for line in text.lines() {
        match (&mut open, line) {
            (Some(_), "```") => found.extend(open.take()),
            (Some(block), line) => block.text.extend([line, "\n"]),
            (None, line) => {
                if let Some(title) = line.strip_prefix("## ") {
                    title.clone_into(&mut heading);
                } else if let Some(kind) = line.strip_prefix("```") {
                    open = Some(Block { heading: heading.clone(), kind: kind.to_owned(), text: String::new() });
                }
            }
        }
    }
    ensure!(open.is_none(), "{page} has a block without an end");
    Ok(found)
}

/// A device without systemd, an operator beside it, and a terminal at both.
struct Terminal {
    place: PathBuf,
    fleet: Fleet,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The agent was started by a shell, and must not outlive the test.
        drop(self.run("systemctl stop muster-agent"));
    }
}

impl Terminal {
    async fn open(binaries: &Binaries, place: &Path) -> anyhow::Result<Self> {
        let fleet = stage::fleet(binaries, place, 0).await?;
        for folder in ["bin", "etc/muster-agent", "run/muster-agent", "var/lib/muster-agent", "mnt/muster", "work"] {
            std::fs::create_dir_all(place.join(folder))?;
        }
        let journal = "#!/bin/sh\nexec cat \"$PLACE/agent.log\"\n";
        let clock = "#!/bin/sh\necho 'System clock synchronized: yes'\n";
        for (name, text) in [
            ("sudo", MAPPED),
            ("muster-agent", MAPPED),
            ("curl", MAPPED),
            ("systemctl", SYSTEMCTL),
            ("journalctl", journal),
            ("timedatectl", clock),
        ] {
            let path = place.join("bin").join(name);
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
        let repository = fixtures::folder().join("../..").canonicalize()?;
        for (from, to) in [
            (repository.join("tests"), "work/tests"),
            (repository.join("examples"), "work/examples"),
            (place.join("keys/root.json"), "work/root.json"),
            (place.join("keys/release.key"), "work/release.key"),
            (fleet.operator.program().to_path_buf(), "bin/muster"),
        ] {
            std::os::unix::fs::symlink(from, place.join(to))?;
        }
        std::fs::write(place.join("agent.log"), "")?;
        let terminal = Self { place: place.to_path_buf(), fleet };
        terminal.configure("")?;
        Ok(terminal)
    }

    /// The packaged configuration, with the test's folder for data, and `more` behind it.
    fn configure(&self, more: &str) -> anyhow::Result<()> {
        let path = self.place.join("etc/muster-agent/agent.toml");
        Ok(std::fs::write(path, format!("data-dir = {:?}\n{more}", self.place.join("data")))?)
    }

    /// Runs `commands` as somebody at the terminal does; gives the status and all that was said.
    fn run(&self, commands: &str) -> anyhow::Result<(Option<i32>, String)> {
        let path = std::env::var("PATH")?;
        let curl = muster_tests::programs::find(&["curl"]).context("curl is not installed")?;
        let environment = self.fleet.operator.shell_environment();
        let output = Command::new("bash")
            .args(["-eu", "-c", &format!("{environment}\n{{ {commands}\n}} 2>&1")])
            .current_dir(self.place.join("work"))
            .env("PATH", format!("{}:{path}", self.place.join("bin").display()))
            .env("PLACE", &self.place)
            .env("AGENT", &self.fleet.binaries.agent)
            .env("CURL", curl)
            .output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
    }

    fn expect(&self, commands: &str) -> anyhow::Result<String> {
        let (status, said) = self.run(commands)?;
        ensure!(status == Some(0), "{commands} ended with {status:?}: {said}");
        Ok(said)
    }

    /// Waits until the device's status has all of `parts`.
    async fn shows(&self, parts: &[&str]) -> anyhow::Result<()> {
        wait::until(&format!("the status shows {parts:?}"), PATIENCE, async || {
            let said = self.run("muster-agent status")?.1;
            Ok(parts.iter().all(|part| said.contains(part)).then_some(()))
        })
        .await
    }

    /// Runs a page's block; one that is only shown has to be known as such.
    fn follow(&self, block: &Block) -> anyhow::Result<Option<(Option<i32>, String)>> {
        match block.kind.as_str() {
            "sh" => self.run(&block.text).map(Some),
            "sh norun" => {
                let known = NOT_RUN.iter().any(|(start, _)| block.text.starts_with(start));
                ensure!(known, "a block that is not run, for no reason that the test knows: {}", block.text);
                Ok(None)
            }
            other => bail!("{}: a block of {other:?} is not known to the test", block.heading),
        }
    }
}

#[test]
fn a_device_is_set_up_as_its_page_says() {
    stage::run(async |binaries, folder| {
        let terminal = Terminal::open(&binaries, &folder).await?;
        let mut said = String::new();
        for block in &blocks("devices.md")? {
            let Some((status, text)) = terminal.follow(block)? else { continue };
            // Doctor warns where no time server keeps the clock, and faults nothing.
            ensure!(status == Some(0), "{} ended with {status:?}: {text}", block.text);
            if block.text.contains("systemctl restart") {
                terminal.shows(&["device:", "press-7", "connected since"]).await?;
            }
            said = text;
        }
        ensure!(std::fs::metadata(folder.join("mnt/muster/enrolment-token"))?.len() > 0);
        // Before them it may say that it waits for the model.
        let lines: Vec<&str> = said.lines().filter(|line| line.ends_with(" digits@1.0.0")).collect();
        // The first held-out image is a seven.
        ensure!(lines.len() == 3 && lines[0].starts_with("1 7 0."), "{said}");
        Ok(())
    });
}

const SERVE: &str = "[serve]\nlisten = \"127.0.0.1:0\"\n";

/// Brings about what the section `heading` is about, from where the section before it has left the device.
async fn bring_about(terminal: &Terminal, heading: &str) -> anyhow::Result<()> {
    let socket = format!("unix-socket = {:?}\n", terminal.place.join("run/muster-agent/inference.sock"));
    let token_file = terminal.place.join("etc/muster-agent/enrolment-token");
    match heading {
        "The agent does not start" => terminal.configure("[serve]\nlisten = 8600\n"),
        "The service has ended with status 78" => {
            terminal.configure(SERVE)?;
            let agent = terminal.place.join("etc/muster-agent/agent.toml");
            let ended = Command::new(&terminal.fleet.binaries.agent).arg("--config").arg(agent).output()?;
            ensure!(ended.status.code() == Some(78), "{}", ended.status);
            Ok(())
        }
        "The token is refused" => {
            // Used up by another device.
            let token = terminal.fleet.enrolment_token(1).await?;
            std::fs::write(&token_file, &token)?;
            let other = terminal.place.join("other.toml");
            std::fs::write(&other, format!("data-dir = {:?}\ndevice-id = \"other\"\n", terminal.place.join("other")))?;
            let (other, token) = (other.display(), token_file.display());
            terminal.expect(&format!("\"$AGENT\" enrol --config {other} --token-file {token}")).map(drop)
        }
        "The clock is wrong" => {
            std::fs::write(&token_file, terminal.fleet.enrolment_token(1).await?)?;
            terminal.configure(&format!("device-id = \"press-7\"\n{SERVE}{socket}"))?;
            terminal.expect("systemctl restart muster-agent")?;
            terminal.shows(&["connected since"]).await
        }
        "The broker cannot be reached" => {
            terminal.configure(&format!(
                "device-id = \"press-7\"\n{SERVE}{socket}[broker]\nhost = \"127.0.0.1\"\nport = 1\n"
            ))?;
            terminal.expect("systemctl restart muster-agent")?;
            terminal.shows(&["not connected", "messages wait"]).await
        }
        "The agent does not answer" => terminal.expect("systemctl stop muster-agent").map(drop),
        // As the page begins, or as the section before has left it.
        ""
        | "The certificate has expired"
        | "No prediction: 503"
        | "A bundle is refused, fails its golden examples, or was reverted"
        | "The outbox piles up"
        | "The disk is full"
        | "Hot, short of memory, or slow"
        | "Permission denied at the socket"
        | "The watchdog starts the agent again and again"
        | "Somebody else has to look" => Ok(()),
        other => bail!("the section {other:?} of docs/troubleshooting.md is not known to the test"),
    }
}

#[test]
fn each_symptom_shows_itself_as_its_page_says() {
    stage::run(async |binaries, folder| {
        let terminal = Terminal::open(&binaries, &folder).await?;
        let (mut heading, mut said, mut quotes) = (None, String::new(), 0);
        for block in &blocks("troubleshooting.md")? {
            if heading != Some(&block.heading) {
                bring_about(&terminal, &block.heading).await?;
                heading = Some(&block.heading);
            }
            if block.kind == "text" {
                for line in block.text.lines() {
                    ensure!(said.contains(line), "{}: {line:?} is not in {said}", block.heading);
                    quotes += 1;
                }
            } else if let Some((status, text)) = terminal.follow(block)? {
                // 1: something is wrong, as it is meant to be here. Anything else is a command that is wrong itself.
                ensure!(matches!(status, Some(0 | 1)), "{} ended with {status:?}: {text}", block.text);
                said = text;
            }
        }
        ensure!(quotes > 12, "only {quotes} quotes were found");
        ensure!(std::fs::metadata(folder.join("work/support.tar.gz"))?.len() > 1000);
        Ok(())
    });
}
