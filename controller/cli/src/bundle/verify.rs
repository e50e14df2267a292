//! `muster bundle verify`: everything that can be checked of a bundle before it goes out.
//!
//! Every check is made even if one before it failed, so that one run names all that is wrong.

use std::path::Path;

use muster_inference::{GoldenReport, TractRuntime, pipeline};
use muster_shared::bundle::{GOLDEN_PATH, MODEL_PATH, Manifest};
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::trust::TrustedRoot;
use serde::Serialize;

use super::build::{check_golden, read_golden};
use super::folder::{Folder, LocalManifest};
use super::program;
use crate::command::Context;
use crate::disk;
use crate::failure::Failure;
use crate::output::{self, Tone, cell, toned};
use crate::root;

#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    passed: bool,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Report {
    bundle: BundleRef,
    manifest_digest: Digest,
    passed: bool,
    checks: Vec<Check>,
}

fn check(check: &'static str, result: Result<String, String>) -> Check {
    match result {
        Ok(detail) => Check { check, passed: true, detail },
        Err(detail) => Check { check, passed: false, detail },
    }
}

fn check_signatures(local: &LocalManifest, root: Option<&TrustedRoot>, now_ms: u64) -> Result<String, String> {
    let count = local.envelope.signatures.len();
    if count == 0 {
        return Err("the manifest is not signed; `muster bundle sign` does that".into());
    }
    let Some(trusted) = root else {
        return Ok(format!("{count} there, but held against no keys; give --root to check whose they are"));
    };
    trusted.check_date(now_ms).map_err(|error| root::trust_words(&error))?;
    trusted.verify_any_manifest(&local.envelope, now_ms).map_err(|error| root::trust_words(&error))?;
    Ok(format!("enough of root version {}'s release keys", trusted.root().version))
}

fn check_date(local: &LocalManifest, now_ms: u64) -> Result<String, String> {
    let expires_ms = local.manifest.expires_ms;
    let text = output::time(expires_ms);
    if now_ms >= expires_ms { Err(format!("expired at {text}")) } else { Ok(format!("until {text}")) }
}

fn check_files(folder: &Folder, local: &LocalManifest) -> Vec<Check> {
    let mut checks: Vec<Check> = local
        .manifest
        .files
        .iter()
        .map(|file| {
            let result = folder.check_file(file);
            let size = output::bytes(file.length);
            check(
                "file",
                result.map(|()| format!("{}: {size}", file.path)).map_err(|why| format!("{}: {why}", file.path)),
            )
        })
        .collect();
    let strangers = folder.strangers(&local.manifest).map_err(|failure| failure.chain()).and_then(|strangers| {
        match strangers.first() {
            None => Ok("no file that the manifest does not name".to_owned()),
            Some(first) => Err(format!("{} is not in the manifest ({} such files)", first.display(), strangers.len())),
        }
    });
    checks.push(check("folder", strangers));
    checks
}

fn check_model(folder: &Folder, local: &LocalManifest) -> Result<GoldenReport, String> {
    let read = |path: &str| {
        let file = folder.file_path(path);
        let length = local.manifest.file(path).map_or(0, |described| described.length);
        disk::read(&file, length).map(|content| (file, content))
    };
    let run = || {
        let (golden_path, golden) = read(GOLDEN_PATH)?;
        let (model_path, onnx) = read(MODEL_PATH)?;
        let golden = read_golden(&golden_path, &golden)?;
        let Manifest { signature, pipeline, .. } = &local.manifest;
        let model = pipeline::load(&TractRuntime, &onnx, signature, pipeline.as_ref(), &golden)
            .map_err(|error| Failure::unmet(format!("{} cannot be loaded", model_path.display())).because(error))?
            .model;
        if model.signature() != signature {
            return Err(Failure::unmet("the model takes or gives other tensors than the manifest says"));
        }
        check_golden(&golden_path, model.as_ref(), &golden)
    };
    run().map_err(|failure| failure.chain())
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when a check fails, or what is to be checked or held against is no such thing.
pub(super) fn run(context: &Context, dir: &Path, root: Option<&Path>) -> Result<(), Failure> {
    let now_ms = output::now_ms();
    let folder = Folder::open(dir)?;
    let local = folder.manifest()?;
    let trusted = root.map(root::read_trusted_root).transpose()?;
    let mut checks = vec![
        check("manifest", Ok(format!("{}, {}", local.manifest.bundle(), local.digest))),
        check("signatures", check_signatures(&local, trusted.as_ref(), now_ms)),
        check("date", check_date(&local, now_ms)),
    ];
    let files = check_files(&folder, &local);
    let intact = files.iter().all(|file| file.passed);
    checks.extend(files);
    // A model that is not what the manifest says need not be loaded to know that the bundle is bad.
    let golden = if local.manifest.program.is_some() {
        None
    } else if intact {
        Some(check_model(&folder, &local).map(|report| {
            let GoldenReport { examples, max_abs_difference, median_us } = report;
            format!("{examples} examples pass, largest difference {max_abs_difference:.1e}, median {median_us} µs")
        }))
    } else {
        Some(Err("not run, for a file is not what the manifest says".to_owned()))
    };
    checks.extend(golden.map(|golden| check("golden", golden)));
    if local.manifest.program.is_some() {
        checks.push(check("program", program::check(&folder, &local.manifest)));
    }

    let report = Report {
        bundle: local.manifest.bundle(),
        manifest_digest: local.digest,
        passed: checks.iter().all(|check| check.passed),
        checks,
    };
    context.output.show(&report, |report| {
        let rows = report.checks.iter().map(|check| {
            let result = if check.passed { toned("ok", Tone::Good) } else { toned("FAILED", Tone::Bad) };
            vec![cell(check.check), result, cell(&check.detail)]
        });
        output::table(&["check", "result", "detail"], rows)
    })?;
    let failed: Vec<String> =
        report.checks.iter().filter(|c| !c.passed).map(|c| format!("{}: {}", c.check, c.detail)).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::unmet(format!("{} does not pass: {}", dir.display(), failed.join("; "))))
}
