//! `muster-agent support-bundle`: one file to send to whoever helps. What is secret is cut out of all of it, and no input of a model is in
//! it; it is bounded.

mod secrets;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use self::secrets::without_secrets;
use super::logs::UNIT;
use super::{DeviceArgs, Outcome, ask, block_on, doctor, formed, printed, status};
use crate::attributes::{self, AGENT_VERSION};
use crate::causes::with_source;
use crate::config::{Config, DEFAULT_PATH};
use crate::files;
use crate::system::System;
use crate::time::wall_ms;

/// Most bytes of each part, and what is taken of the log: its end.
const MAX_PART_BYTES: usize = 1024 * 1024;
/// How long the journal may take.
const JOURNAL: Duration = Duration::from_secs(20);
/// Lines of the journal; the last ones.
const JOURNAL_LINES: &str = "--lines=4000";
/// Files of the data folder that are listed.
const MAX_LISTED: usize = 2_000;

/// Where to put it.
#[derive(Debug, Args)]
pub(crate) struct SupportBundleArgs {
    /// The file to write, which must not exist [default: muster-support-<time>.tar.gz in the current folder].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Answer {
    file: PathBuf,
    bytes: u64,
    parts: Vec<&'static str>,
}

impl Answer {
    fn text(&self) -> String {
        format!(
            "{}\n{} bytes: {}\nKeys, tokens and inputs are not in it; look through it before you send it all the same.",
            self.file.display(),
            self.bytes,
            self.parts.join(", ")
        )
    }
}

/// A file of the bundle.
type Part = (&'static str, String);

/// Writes it.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn run(args: &SupportBundleArgs) -> anyhow::Result<Outcome> {
    let loaded = args.device.load();
    let file = args.device.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    let parts = block_on(async {
        let (config, fault) = match loaded {
            Ok(config) => (config, None),
            Err(error) => (Config::default(), Some(with_source(&error))),
        };
        collect(&config, fault, &file).await
    })?;
    let name = format!("muster-support-{}", wall_ms() / 1_000);
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let archive = archive(&name, &parts)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(files::PRIVATE_FILE)
        .open(&out)
        .and_then(|mut file| file.write_all(&archive))
        .with_context(|| format!("cannot write {}", out.display()))?;
    let answer = Answer {
        file: std::fs::canonicalize(&out).unwrap_or(out),
        bytes: archive.len() as u64,
        parts: parts.iter().map(|(name, _)| *name).collect(),
    };
    Ok(Outcome { text: formed(args.device.output, &answer, Answer::text), is_well: true })
}

async fn collect(config: &Config, fault: Option<String>, file: &Path) -> Vec<Part> {
    let examination = doctor::examine(config, fault).await;
    let (now, in_words) = match ask::status(config).await {
        Ok(status) => {
            let text = ask::get(config, "/status", true).await.unwrap_or_else(|error| error.to_string());
            (serde_json::to_string_pretty(&status).unwrap_or_default(), text)
        }
        Err(error) => {
            let stored = status::stored(config, error.0);
            (serde_json::to_string_pretty(&stored).unwrap_or_default(), status::text_of_stored(&stored))
        }
    };
    let metrics = ask::get(config, "/metrics", true).await.unwrap_or_else(|error| error.to_string());
    let unit = format!("--unit={UNIT}");
    let journal = ["--since=-1d", JOURNAL_LINES, "--no-pager", "--output=short-iso", &unit];
    let journal = printed("journalctl", &journal, JOURNAL).await.unwrap_or_default();
    let settings = match files::read_start(file, MAX_PART_BYTES as u64) {
        Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(None) => format!("{} is not there", file.display()),
        Err(error) => with_source(&error),
    };
    let parts = [
        ("status.txt", in_words),
        ("status.json", now),
        ("doctor.txt", examination.text()),
        ("doctor.json", serde_json::to_string_pretty(&examination).unwrap_or_default()),
        ("agent.toml", settings),
        ("journal.txt", String::from_utf8_lossy(&journal).into_owned()),
        ("metrics.txt", metrics),
        ("system.txt", system(config)),
        ("files.txt", listing(&config.data_dir)),
    ];
    parts.map(|(name, text)| (name, end_of(&without_secrets(&text)).to_owned())).into()
}

/// The last [`MAX_PART_BYTES`] of `text`: what went wrong last is what matters.
fn end_of(text: &str) -> &str {
    let mut from = text.len().saturating_sub(MAX_PART_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

fn system(config: &Config) -> String {
    let read = |path: &str| {
        let bytes = files::read_start(Path::new(path), 64 * 1024).ok().flatten().unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    };
    let mut text = format!("muster-agent {AGENT_VERSION} for {}\n", std::env::consts::ARCH);
    for path in ["/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/etc/os-release"] {
        text.push_str(&format!("\n== {path}\n{}\n", read(path)));
    }
    text.push_str("\n== attributes\n");
    for (name, value) in attributes::all(&System::default(), &config.data_dir, &config.attributes) {
        text.push_str(&format!("{name} = {value}\n"));
    }
    text
}

/// Names and sizes of the files below `data_dir`, and nothing of what is in them.
fn listing(data_dir: &Path) -> String {
    let mut folders = vec![data_dir.to_owned()];
    let mut lines = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            lines.push(format!("{} cannot be read", folder.display()));
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            if lines.len() >= MAX_LISTED {
                lines.push("and more".to_owned());
                return lines.join("\n");
            }
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => lines.push(format!("{:>12} {}", metadata.len(), entry.path().display())),
                Err(_) => {}
            }
        }
    }
    lines.sort();
    lines.join("\n")
}

/// `parts` as a compressed archive, each below the folder `name`.
fn archive(name: &str, parts: &[Part]) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (part, text) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(files::PRIVATE_FILE);
        header.set_mtime(wall_ms() / 1_000);
        builder.append_data(&mut header, format!("{name}/{part}"), text.as_bytes())?;
    }
    builder.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn collected(folder: &Path, settings: &str) -> Vec<Part> {
        let path = folder.join("agent.toml");
        std::fs::write(&path, settings).unwrap();
        let (config, fault) = match Config::load(&path) {
            Ok(config) => (config, None),
            Err(error) => (Config::default(), Some(with_source(&error))),
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        block_on(collect(&config, fault, &path)).unwrap()
    }

    #[test]
    fn no_key_and_no_token_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        for (name, content) in [
            ("identity/device.key", "-----BEGIN PRIVATE KEY-----\nkeykeykeykey\n-----END PRIVATE KEY-----\n"),
            ("identity/identity.json", "{\"device\": \"muster1.hunter2hunter2\"}"),
            ("samples/one", "raw raw raw"),
        ] {
            let path = data.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let listen = "[serve]\nlisten = \"127.0.0.1:9\"\n";
        for token in [
            "enrolment-token = \"muster1.hunter2\"",
            "enrolment-token = \"hunter2",
            "enrolment-token = '''\nhunter2\n'''",
        ] {
            let parts = collected(folder.path(), &format!("data-dir = {data:?}\n{token}\n{listen}"));
            assert_eq!(parts.len(), 9);
            for (name, text) in &parts {
                for secret in ["hunter2", "keykeykeykey", "raw raw raw"] {
                    assert!(!text.contains(secret), "{secret} is in {name}: {text}");
                }
            }
            let settings = &parts.iter().find(|(name, _)| *name == "agent.toml").unwrap().1;
            assert!(settings.contains("data-dir = ") && settings.contains("listen = "), "{settings}");
        }
        let parts = collected(folder.path(), &format!("data-dir = {data:?}\n{listen}"));
        let text = |wanted: &str| &parts.iter().find(|(name, _)| *name == wanted).unwrap().1;
        assert!(text("files.txt").contains("identity/device.key"), "{}", text("files.txt"));
        assert!(text("doctor.txt").contains("FAULT") && text("status.txt").contains("does not answer"));
    }

    #[test]
    fn it_is_bounded_and_can_be_unpacked() {
        let long = format!("{}the end", "é".repeat(MAX_PART_BYTES));
        assert!(end_of(&long).len() <= MAX_PART_BYTES && end_of(&long).ends_with("the end"));
        let bytes = archive("muster-support-1", &[("a.txt", "one".to_owned()), ("b.txt", "two".to_owned())]).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((entry.path().unwrap().display().to_string(), text));
        }
        let expected = [("muster-support-1/a.txt", "one"), ("muster-support-1/b.txt", "two")];
        assert_eq!(found, expected.map(|(path, text)| (path.to_owned(), text.to_owned())));
    }
}
