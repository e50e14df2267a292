//! What really travels to a device for a new version of a model, beside what other tools make of the same two files.
//!
//! A real agent holds the old file beside the digits model and gets the new one by a rollout; its own counters tell how many bytes of
//! chunks came. The manifest travels in any case and has a column of its own. Pairs come from `tests/fixtures/make_pairs.py`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use muster_tests::binaries::Binaries;
use muster_tests::fixtures;
use muster_tests::fleet::Fleet;

use crate::report::Table;
use crate::stage;

const BASES: [&str; 2] = ["base", "base-int8"];
const CHANGES: [&str; 3] = ["metadata", "head", "nudged"];
/// The fixture of which every version is made here.
const FIXTURE: &str = "1.0.0";
/// A frame's bytes before those of its chunk: kind, digest, index, encoding.
const FRAME_BYTES: f64 = 38.0;

pub(crate) async fn measure(binaries: &Binaries, folder: &Path, pairs: &[PathBuf]) -> anyhow::Result<Vec<Table>> {
    let mut fleet = stage::one_device(binaries, folder).await?;
    let http = reqwest::Client::new();
    let mut table = Table::new("Bytes that travel to a device for a new version, in % of the new file by zstd -19");
    let head = ["zstd -19", "muster", "manifest", "zstd patch", "xdelta3", "bsdiff"];
    table.text("pair", &row(head.map(str::to_owned)));
    let mut number = 0;
    for pair in pairs {
        let name = pair.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for base in BASES {
            for change in CHANGES {
                let (old, new) = (pair.join(format!("{base}.onnx")), pair.join(format!("{base}.{change}.onnx")));
                ensure!(
                    old.exists() && new.exists(),
                    "{}: make pairs with tests/fixtures/make_pairs.py",
                    pair.display()
                );
                bring(&fleet, number, &old).await?;
                let before = received(&mut fleet, &http).await?;
                let manifest = bring(&fleet, number + 1, &new).await?;
                let travelled = received(&mut fleet, &http).await? - before;
                number += 2;
                let peers = Peers::of(&old, &new, folder)?;
                let columns = [
                    format!("{} B", peers.full),
                    peers.percent(Some(travelled)),
                    peers.percent(Some(manifest)),
                    peers.percent(peers.patch),
                    peers.percent(peers.xdelta),
                    peers.percent(peers.bsdiff),
                ];
                table.text(&format!("{name} {base} {change}"), &row(columns));
            }
        }
    }
    Ok(vec![table])
}

fn row(columns: [String; 6]) -> String {
    columns.map(|column| format!("{column:>11}")).concat()
}

/// Brings `file` to the device in a bundle numbered `number`, and gives the bytes of its manifest.
async fn bring(fleet: &Fleet, number: u32, file: &Path) -> anyhow::Result<f64> {
    let (version, counter) = (format!("2.{number}.0"), number + 1);
    let folder = fleet.folder.join("descriptions").join(&version);
    std::fs::create_dir_all(&folder)?;
    for file in ["reference.csv".to_owned(), format!("golden-{FIXTURE}.json"), format!("digits-{FIXTURE}.onnx")] {
        std::fs::copy(fixtures::digits().join(&file), folder.join(&file))?;
    }
    std::fs::copy(file, folder.join("pair.onnx")).with_context(|| format!("{}", file.display()))?;
    let description = std::fs::read_to_string(fixtures::digits().join(format!("bundle-{FIXTURE}.toml")))?
        .replacen(&format!("version = \"{FIXTURE}\""), &format!("version = \"{version}\""), 1)
        .replacen("release-counter = 1\n", &format!("release-counter = {counter}\n"), 1);
    let path = folder.join("bundle.toml");
    std::fs::write(&path, format!("attachments = [\"pair.onnx\"]\n{description}"))?;
    fleet.release(&format!("digits-{version}"), &path).await?;
    stage::commit(fleet, &version).await?;
    Ok(std::fs::metadata(fleet.folder.join(format!("bundles/digits-{version}/manifest.json")))?.len() as f64)
}

/// Bytes of chunks the device has received so far, with their frames.
async fn received(fleet: &mut Fleet, http: &reqwest::Client) -> anyhow::Result<f64> {
    let device = stage::device(fleet)?;
    let bytes = device.metric(http, "muster_agent_chunk_received_bytes_total").await?;
    Ok(bytes + FRAME_BYTES * device.metric(http, "muster_agent_chunks_received_total").await?)
}

/// What other tools make of two files, in bytes; none where one is not installed.
struct Peers {
    full: f64,
    patch: Option<f64>,
    xdelta: Option<f64>,
    bsdiff: Option<f64>,
}

impl Peers {
    fn of(old: &Path, new: &Path, folder: &Path) -> anyhow::Result<Self> {
        let out = folder.join("peer");
        let (old, new, to) = (text(old)?, text(new)?, text(&out)?);
        let full = size("zstd", &["-19", "-q", "-f", new, "-o", to], &out);
        let patch = format!("--patch-from={old}");
        Ok(Self {
            full: full.context("zstd is needed to compare with")?,
            patch: size("zstd", &["-19", "--long=27", "-q", "-f", &patch, new, "-o", to], &out),
            xdelta: size("xdelta3", &["-9", "-f", "-e", "-s", old, new, to], &out),
            bsdiff: size("bsdiff", &[old, new, to], &out),
        })
    }

    fn percent(&self, bytes: Option<f64>) -> String {
        bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.2} %", 100.0 * bytes / self.full))
    }
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The size of what a tool wrote to `out`; none where it is not installed.
fn size(program: &str, arguments: &[&str], out: &Path) -> Option<f64> {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    status.success().then(|| std::fs::metadata(out).map_or(0.0, |metadata| metadata.len() as f64))
}
