//! Checking a bundle as the agent does, on one core, beside sha256sum and openssl on the same bytes.
//!
//! The signature of the manifest is checked, then every file is read in the agent's pieces and held against its digest, with the
//! code the agent calls. All take turns on the same core; what a tool needs for an empty file is taken off its time.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::ids::Hasher;
use muster_shared::limits::CHUNK_BYTES;
use muster_shared::trust::{Envelope, TrustedRoot};
use muster_tests::binaries::Binaries;
use muster_tests::fleet::Fleet;

use crate::report::{Table, mebibytes};
use crate::samples::Samples;
use crate::stage;
use crate::usage;

const BUNDLE_BYTES: usize = 20 * 1024 * 1024;
const ROUNDS: usize = 21;
const GOAL_RATIO: f64 = 1.5;
const CORE: &str = "0";
const TOOLS: [(&str, &[&str]); 2] = [("sha256sum", &[]), ("openssl", &["dgst", "-sha256"])];

pub(crate) async fn measure(binaries: &Binaries, folder: &Path) -> anyhow::Result<Vec<Table>> {
    let fleet = Fleet::found(binaries, folder, "").await?;
    fleet.release_large_digits(stage::VERSION, BUNDLE_BYTES).await?;
    let bundle = folder.join(format!("bundles/digits-{}", stage::VERSION));
    let root = read_envelope(&folder.join("keys/root.json"))?;
    drop(fleet);
    let root = TrustedRoot::first(root, None)?;
    // On a thread of its own, which is held to one core together with the tools it starts.
    let turns = tokio::task::spawn_blocking(move || in_turns(&root, &bundle)).await??;
    Ok(vec![turns])
}

fn in_turns(root: &TrustedRoot, bundle: &Path) -> anyhow::Result<Table> {
    let before = allowed_cores()?;
    hold_to(CORE)?;
    let measured = on_one_core(root, bundle);
    // The thread goes back to others.
    hold_to(&before)?;
    measured
}

fn on_one_core(root: &TrustedRoot, bundle: &Path) -> anyhow::Result<Table> {
    // One file for the tools: all bytes of the bundle.
    let (whole, empty) = (bundle.with_extension("whole"), bundle.with_extension("empty"));
    std::fs::write(&empty, [])?;
    let (manifest, _) = check(root, bundle)?;
    let mut bytes = Vec::new();
    for path in &manifest {
        File::open(path)?.read_to_end(&mut bytes)?;
    }
    std::fs::write(&whole, &bytes)?;
    let (mut ours, mut signature) = (Samples::default(), Samples::default());
    let mut tools = TOOLS.map(|_| Some((Samples::default(), Samples::default())));
    for _ in 0..ROUNDS {
        let (_, signed) = ours.time(|| check(root, bundle))?;
        signature.push(signed);
        for ((program, arguments), samples) in TOOLS.iter().zip(&mut tools) {
            let Some((full, nothing)) = samples else { continue };
            let there =
                full.time(|| run(program, arguments, &whole)) && nothing.time(|| run(program, arguments, &empty));
            if !there {
                *samples = None;
            }
        }
    }
    let size = mebibytes(bytes.len() as u64);
    let mut table = Table::new(format!("Checking a bundle of {size:.1} MiB on one core, {ROUNDS} rounds, medians"));
    let own = ours.median_us() / 1e3;
    table.figure("signature and all files, by the agent's code", own, "ms");
    table.figure("  of which the manifest and its signature", signature.median_us() / 1e3, "ms");
    table.figure("  a second", size / own * 1e3, "MiB");
    for ((program, _), samples) in TOOLS.iter().zip(&tools) {
        let Some((full, nothing)) = samples else {
            table.text(program, "not measured: it is not installed");
            continue;
        };
        let theirs = (full.median_us() - nothing.median_us()) / 1e3;
        table.figure(&format!("{program}, without its start"), theirs, "ms");
        table.goal("  ours / its", own / theirs, GOAL_RATIO, "x");
    }
    Ok(table)
}

/// Checks the bundle in `folder`; tells where its files are and how long the signature took.
fn check(root: &TrustedRoot, folder: &Path) -> anyhow::Result<(Vec<std::path::PathBuf>, Duration)> {
    let mut signature = Samples::default();
    let verified = signature.time(|| -> anyhow::Result<_> {
        Ok(root.verify_manifest(&read_envelope(&folder.join("manifest.json"))?, 0)?)
    })?;
    let mut paths = Vec::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    for file in &verified.manifest.files {
        let path = folder.join("files").join(&file.path);
        let (mut open, mut hash) =
            (File::open(&path).with_context(|| format!("{}", path.display()))?, Hasher::default());
        loop {
            let read = open.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
        }
        ensure!(hash.finish() == file.sha256, "{} is not what the manifest says", file.path);
        paths.push(path);
    }
    Ok((paths, signature.percentile(50)))
}

fn read_envelope(path: &Path) -> anyhow::Result<Envelope> {
    let bytes = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Runs a tool on `file`; tells whether it could.
fn run(program: &str, arguments: &[&str], file: &Path) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).arg(file).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The cores this thread may run on.
fn allowed_cores() -> anyhow::Result<String> {
    usage::thread_status("Cpus_allowed_list")
}

/// Holds this thread, and programs it starts from now on, to `cores`.
fn hold_to(cores: &str) -> anyhow::Result<()> {
    let thread = usage::thread_status("Pid")?;
    let status = Command::new("taskset").args(["-cp", cores, &thread]).stdout(Stdio::null()).status();
    ensure!(status.context("taskset (util-linux) is needed")?.success(), "the core could not be chosen");
    Ok(())
}
