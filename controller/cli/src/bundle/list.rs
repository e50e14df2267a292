//! `muster bundle list` and `show`.

use std::path::Path;

use muster_inference::pipeline::folded_steps;
use muster_shared::api::BundleView;
use muster_shared::bundle::Manifest;
use muster_shared::ids::{BundleRef, Digest};
use serde::Serialize;

use super::build::signature_text;
use super::folder::Folder;
use super::pipeline::steps_text;
use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::output::{self, cell, number};

/// Does what `list` asks.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(super) fn run(context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let bundles: Vec<BundleView> = block_on(client.list(&["bundles"], &[]))?;
    if bundles.is_empty() {
        output::note("no bundle");
    }
    context.output.show(&bundles, |bundles| {
        let rows = bundles.iter().map(|bundle| {
            vec![
                cell(bundle.bundle.to_string()),
                cell(bundle.track.to_string()),
                cell(bundle.manifest_digest.short()),
                number(output::bytes(bundle.total_bytes)),
                cell(output::time(bundle.pushed_at_ms)),
            ]
        });
        output::table(&["bundle", "kind", "manifest", "size", "pushed"], rows)
    })
}

#[derive(Serialize)]
struct LocalView {
    manifest_digest: Digest,
    bundle: BundleRef,
    total_bytes: u64,
    signed_by: Vec<String>,
    manifest: Manifest,
}

fn or_any(text: String) -> String {
    if text.is_empty() { "any".to_owned() } else { text }
}

fn manifest_pairs(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let Manifest { requirements, budgets, lineage, profile, .. } = manifest;
    let mut pairs = vec![
        ("description", manifest.description.clone()),
        ("release counter", manifest.release_counter.to_string()),
        ("security floor", manifest.security_floor.to_string()),
        ("created", output::time(manifest.created_at_ms)),
        ("expires", output::time(manifest.expires_ms)),
    ];
    match &manifest.program {
        Some(program) => {
            pairs.push(("program", format!("of the agent, for {}", program.target)));
            pairs.push(("takes over from", program.takes_over_from.to_string()));
        }
        None => pairs.push(("model", signature_text(&manifest.signature))),
    }
    if let Some(pipeline) = &manifest.pipeline {
        pairs.push(("pipeline", steps_text(pipeline, &folded_steps(pipeline, &manifest.signature))));
    }
    let architectures: Vec<&str> = requirements.architectures.iter().map(String::as_str).collect();
    let mut needs = format!("architecture {}", or_any(architectures.join(", ")));
    if requirements.min_memory_bytes > 0 {
        needs.push_str(&format!(", memory {}", output::bytes(requirements.min_memory_bytes)));
    }
    if let Some(version) = &requirements.min_agent_version {
        needs.push_str(&format!(", agent {version}"));
    }
    if !requirements.cpu_features.is_empty() {
        let features: Vec<&str> = requirements.cpu_features.iter().map(String::as_str).collect();
        needs.push_str(&format!(", processor with {}", features.join(", ")));
    }
    if let Some(attributes) = &requirements.attributes {
        needs.push_str(&format!(", {attributes}"));
    }
    pairs.push(("requires", needs));
    pairs.extend(budgets.max_latency_ms.map(|ms| ("latency budget", format!("{ms} ms"))));
    pairs.extend(budgets.max_memory_bytes.map(|count| ("memory budget", output::bytes(count))));
    let columns = &profile.columns;
    let predictions = columns.iter().filter(|column| column.is_prediction()).count();
    if manifest.program.is_none() {
        pairs.push(("monitors", format!("{} inputs, {predictions} predictions", columns.len() - predictions)));
    }
    let raw: Vec<&str> = profile.quantile_columns().collect();
    if !raw.is_empty() {
        pairs.push(("quantiles", format!("{} (contains raw values)", raw.join(", "))));
    }
    if !profile.objectives.is_empty() {
        let ms = profile.objectives.latency_us.iter().map(|us| format!("{} ms", *us as f64 / 1_000.0));
        pairs.push(("latency objectives", ms.collect::<Vec<_>>().join(", ")));
    }
    pairs.extend(lineage.dataset.clone().map(|text| ("dataset", text)));
    pairs.extend(lineage.dataset_sha256.map(|digest| ("dataset sha256", digest.to_string())));
    pairs.extend(lineage.code.clone().map(|text| ("code", text)));
    pairs.extend(lineage.run.clone().map(|text| ("run", text)));
    let metrics: Vec<String> = lineage.metrics.iter().map(|(name, value)| format!("{name} {value}")).collect();
    if !metrics.is_empty() {
        pairs.push(("metrics", metrics.join("\n")));
    }
    let files: Vec<String> = manifest
        .files
        .iter()
        .map(|file| format!("{}  {}  {}", file.path, output::bytes(file.length), file.sha256))
        .collect();
    pairs.push(("files", files.join("\n")));
    pairs
}

fn show_local(context: &Context, dir: &Path) -> Result<(), Failure> {
    let local = Folder::open(dir)?.manifest()?;
    let view = LocalView {
        manifest_digest: local.digest,
        bundle: local.manifest.bundle(),
        total_bytes: local.manifest.total_bytes(),
        signed_by: local.envelope.signatures.into_iter().map(|signature| signature.keyid).collect(),
        manifest: local.manifest,
    };
    context.output.show(&view, |view| {
        let signed = if view.signed_by.is_empty() { "by nobody".to_owned() } else { view.signed_by.join("\n") };
        let mut pairs = vec![
            ("bundle", view.bundle.to_string()),
            ("manifest", view.manifest_digest.to_string()),
            ("size", output::bytes(view.total_bytes)),
            ("signed (unchecked)", signed),
        ];
        pairs.extend(manifest_pairs(&view.manifest));
        output::properties(&pairs)
    })
}

/// Does what `show` asks: a folder if there is one of that name, a bundle of the controller otherwise.
///
/// # Errors
/// [`Failure`] when there is no such bundle.
pub(super) fn show(context: &Context, bundle: &str) -> Result<(), Failure> {
    if Path::new(bundle).is_dir() {
        return show_local(context, Path::new(bundle));
    }
    let bundle: BundleRef = bundle.parse().map_err(|error| {
        Failure::input(format!("{bundle:?} is neither a folder nor a bundle's name")).because(error)
    })?;
    let client = context.client()?;
    let version = bundle.version.to_string();
    let view: BundleView = block_on(client.get(&["bundles", bundle.name.as_str(), &version], &[]))?;
    context.output.show(&view, |view| {
        let mut pairs = vec![
            ("bundle", view.bundle.to_string()),
            ("manifest", view.manifest_digest.to_string()),
            ("size", output::bytes(view.total_bytes)),
            ("pushed", output::time(view.pushed_at_ms)),
        ];
        pairs.extend(view.manifest.as_ref().map(manifest_pairs).unwrap_or_default());
        output::properties(&pairs)
    })
}
