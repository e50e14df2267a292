//! `muster bundle build`: from description, model, golden examples and sample to an unsigned bundle.

use std::path::Path;

use muster_inference::golden::{self, MAX_GOLDEN_BYTES};
use muster_inference::pipeline::{FoldedStep, Loaded};
use muster_inference::{GoldenError, GoldenReport, GoldenSet, Model};
use muster_shared::bundle::{BundleFile, GOLDEN_PATH, MODEL_PATH, Manifest, ModelSignature, TensorSpec};
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::limits::{CHUNK_BYTES, MAX_CHUNKS, MAX_DOCUMENT_BYTES};
use muster_shared::pipeline::Pipeline;
use muster_shared::profile::Profile;
use muster_shared::trust::{DocumentKind, Envelope};
use serde::Serialize;

use super::description::{self, Description};
use super::new_folder::NewFolder;
use super::pipeline::{Assembled, assemble, steps_text};
use super::{labels, profile, program, schema};
use crate::command::Context;
use crate::disk;
use crate::failure::Failure;
use crate::output;

/// The longest file of a bundle, in bytes.
pub(super) const MAX_FILE_BYTES: u64 = MAX_CHUNKS as u64 * CHUNK_BYTES as u64;
const DAY_MS: u64 = 86_400_000;
/// Chunks below which their number does not matter: they take some 200 kB of the manifest.
const MAX_EXTRA_CHUNKS: usize = 2_048;

fn tensors(specs: &[TensorSpec]) -> String {
    let tensor = |spec: &TensorSpec| format!("{} {} {:?}", spec.name, spec.datatype, spec.shape);
    specs.iter().map(tensor).collect::<Vec<_>>().join(", ")
}

/// What a model takes and gives, for people.
pub(super) fn signature_text(signature: &ModelSignature) -> String {
    format!("{} -> {}", tensors(&signature.inputs), tensors(&signature.outputs))
}

/// Reads golden examples.
///
/// # Errors
/// [`Failure`] of bad input when the file holds none.
pub(super) fn read_golden(path: &Path, content: &[u8]) -> Result<GoldenSet, Failure> {
    GoldenSet::parse(content)
        .map_err(|error| Failure::input(format!("{} cannot be used", path.display())).because(error))
}

/// Reads the model and its golden examples: the ONNX file, the examples' file and the examples.
///
/// # Errors
/// [`Failure`] of bad input when a file cannot be read or holds no examples.
pub(super) fn read_model(description: &Description) -> Result<(Vec<u8>, Vec<u8>, GoldenSet), Failure> {
    let onnx = disk::read(&description.model, MAX_FILE_BYTES)?;
    let golden_bytes = disk::read(&description.golden, MAX_GOLDEN_BYTES as u64)?;
    let golden = read_golden(&description.golden, &golden_bytes)?;
    Ok((onnx, golden_bytes, golden))
}

/// Runs the golden examples.
///
/// # Errors
/// [`Failure`] of a failed check with the first that is wrong.
pub(super) fn check_golden(path: &Path, model: &dyn Model, golden: &GoldenSet) -> Result<GoldenReport, Failure> {
    golden::check(model, golden).map_err(|error| {
        let why = match &error {
            GoldenError::Value { .. } | GoldenError::Text { .. } | GoldenError::Form { .. } => {
                "the model gives other answers here than where the examples were made: they are of another model, or the runtime computes this one differently, as it does some with quantised operators"
            }
            GoldenError::TooLarge { .. }
            | GoldenError::Malformed(_)
            | GoldenError::Count(_)
            | GoldenError::Tolerance { .. }
            | GoldenError::Tensor { .. }
            | GoldenError::Names { .. }
            | GoldenError::Run { .. }
            | GoldenError::NoOutput { .. } => "the examples do not fit the model",
        };
        Failure::unmet(format!("{}: {why}", path.display())).because(error)
    })
}

/// When the bundle was built: now, or what SOURCE_DATE_EPOCH says (reproducible-builds.org), in milliseconds.
pub(super) fn created_at_ms() -> Result<u64, Failure> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else {
        return Ok(output::now_ms());
    };
    text.to_str()
        .and_then(|text| text.parse::<u64>().ok())
        .and_then(|seconds| seconds.checked_mul(1_000))
        .ok_or_else(|| Failure::input(format!("SOURCE_DATE_EPOCH is {text:?}: seconds since 1970 are expected")))
}

/// When a bundle that was built at `created_at_ms` is installed no more, in milliseconds since the Unix epoch.
pub(super) fn expires_ms(created_at_ms: u64, expires_days: u32) -> u64 {
    created_at_ms.saturating_add(u64::from(expires_days) * DAY_MS)
}

#[derive(Serialize)]
struct Built<'a> {
    bundle: BundleRef,
    manifest_digest: Digest,
    dir: &'a Path,
    total_bytes: u64,
    pipeline_steps: usize,
    folded_steps: Vec<FoldedStepView>,
    columns: usize,
    contains_raw_values: Vec<String>,
    reference_rows: usize,
    golden_examples: usize,
    golden_max_abs_difference: f64,
    golden_median_us: u64,
    memory_bytes: u64,
}

/// A step of the pipeline that is carried out inside the model. Steps are counted from 1 in their half.
#[derive(Serialize)]
struct FoldedStepView {
    half: String,
    number: usize,
    operation: &'static str,
}

impl From<&FoldedStep> for FoldedStepView {
    fn from(step: &FoldedStep) -> Self {
        Self { half: step.half.to_string(), number: step.number, operation: step.operation }
    }
}

/// How the manifest describes `files`: cut where the next version is likely to be cut too, so that it shares chunks with this one;
/// evenly where that would be far more chunks than it takes, since every one costs a place in the manifest.
fn describe(files: &[(String, Vec<u8>)]) -> Vec<BundleFile> {
    let even = files.iter().map(|(path, content)| BundleFile::describe(path, content));
    let cut = files.iter().map(|(path, content)| BundleFile::describe_cut(path, content, &muster_delta::cut(content)));
    let (even, cut): (Vec<_>, Vec<_>) = (even.collect(), cut.collect());
    let chunks = |files: &[BundleFile]| files.iter().map(|file| file.chunks.len()).sum::<usize>();
    if chunks(&cut) > (chunks(&even) * 5 / 4).max(MAX_EXTRA_CHUNKS) { even } else { cut }
}

/// Reads the attachments, each to lie in the bundle under its own file name.
fn read_attachments(description: &Description) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let named = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.map(ToOwned::to_owned).ok_or_else(|| {
            description.origin.whole_fault(format!("attachments: {} does not end in a file's name", path.display()))
        })
    };
    description.attachments.iter().map(|path| Ok((named(path)?, disk::read(path, MAX_FILE_BYTES)?))).collect()
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when an input is wrong or the model fails a check; nothing is written then.
pub(super) fn run(context: &Context, description: &Path, out: &Path, force: bool) -> Result<(), Failure> {
    let text = description::read(description)?;
    if program::is_described(&text) {
        return program::build(context, &text, description, out, force);
    }
    let created_at_ms = created_at_ms()?;
    let description = Description::parse(&text, description)?;
    let (onnx, golden_bytes, golden) = read_model(&description)?;
    let Assembled { loaded: Loaded { model, folded }, pipeline } = assemble(&description, &onnx, &golden)?;
    output::note(&format!(
        "model      {}, {} of memory to run: {}",
        output::bytes(onnx.len() as u64),
        output::bytes(model.memory_bytes()),
        signature_text(model.signature())
    ));
    if let Some(pipeline) = &pipeline {
        output::note(&format!("pipeline   {}", steps_text(pipeline, &folded)));
    }
    if let Some(limit) = description.budgets().max_memory_bytes.filter(|limit| model.memory_bytes() > *limit) {
        return Err(description.origin.whole_fault(format!(
            "budgets.max-memory-bytes: the model needs {} bytes, more than the {limit} allowed: every device would refuse it",
            model.memory_bytes()
        )));
    }

    let report = check_golden(&description.golden, model.as_ref(), &golden)?;
    output::note(&format!(
        "golden     {} examples pass, largest difference {:.1e}, median {} µs",
        report.examples, report.max_abs_difference, report.median_us
    ));

    let (profile, reference_rows) = match &description.reference {
        Some(reference) => {
            let changes_rows = pipeline.as_ref().is_some_and(Pipeline::changes_rows);
            let measured = profile::build(&description, reference, model.as_ref(), changes_rows)?;
            output::note(&format!("reference  {} rows, {} columns", measured.rows, measured.profile.columns.len()));
            let with_raw_values: Vec<&str> = measured.profile.quantile_columns().collect();
            if !with_raw_values.is_empty() {
                output::warn(&format!(
                    "quantiles of {} are kept: what devices send of them contains raw values",
                    with_raw_values.join(", ")
                ));
            }
            if description.outputs.is_empty() {
                output::warn("no output is described, so the model's answers are not monitored");
            }
            (measured.profile, measured.rows)
        }
        None => {
            profile::check_names(&description, model.signature())?;
            output::warn("there is no reference sample: drift of this model will not be seen, nor stop a rollout");
            let labels = labels::without_reference(&description, model.signature())?;
            (Profile { labels, objectives: description.objectives.objectives(), ..Profile::default() }, 0)
        }
    };

    let schema = schema::read(&description, model.signature())?;
    if let Some(schema) = &schema {
        let inputs = &model.signature().inputs;
        let sample = description.reference.as_ref().map(|path| profile::sample_tensors(&description, path, inputs));
        schema::check(schema, model.signature(), sample.transpose()?.as_deref(), &golden)?;
    }

    let mut files = vec![(MODEL_PATH.to_owned(), onnx), (GOLDEN_PATH.to_owned(), golden_bytes)];
    files.extend(read_attachments(&description)?);
    let manifest = Manifest {
        name: description.name.clone(),
        version: description.version.clone(),
        description: description.description.clone(),
        release_counter: description.release_counter,
        security_floor: description.security_floor,
        created_at_ms,
        expires_ms: expires_ms(created_at_ms, description.expires_days),
        requirements: description.requirements(),
        budgets: description.budgets(),
        files: describe(&files),
        signature: model.signature().clone(),
        pipeline,
        schema,
        profile,
        lineage: description.lineage(),
        card: description.card(),
        program: None,
    };
    manifest.validate().map_err(|error| description.origin.whole_fault(error.to_string()))?;
    let payload = serde_json::to_vec(&manifest)
        .map_err(|error| Failure::unmet("the manifest has no form in JSON").because(error))?;
    if payload.len() > MAX_DOCUMENT_BYTES {
        return Err(description.origin.whole_fault(format!(
            "the manifest would have {} bytes, and {MAX_DOCUMENT_BYTES} are allowed: watch fewer columns \
             (monitor = false in [[inputs]]), or split the model's file",
            payload.len()
        )));
    }

    let folder = NewFolder::create(out, force)?;
    for (path, content) in &files {
        folder.write_file(path, content)?;
    }
    folder.publish(&Envelope::unsigned(DocumentKind::Manifest, &payload))?;

    let built = Built {
        bundle: manifest.bundle(),
        manifest_digest: Digest::of(&payload),
        dir: out,
        total_bytes: manifest.total_bytes(),
        pipeline_steps: manifest.pipeline.as_ref().map_or(0, |pipeline| pipeline.pre.len() + pipeline.post.len()),
        folded_steps: folded.iter().map(FoldedStepView::from).collect(),
        columns: manifest.profile.columns.len(),
        contains_raw_values: manifest.profile.quantile_columns().map(ToOwned::to_owned).collect(),
        reference_rows,
        golden_examples: report.examples,
        golden_max_abs_difference: report.max_abs_difference,
        golden_median_us: report.median_us,
        memory_bytes: model.memory_bytes(),
    };
    context.output.show(&built, |built| {
        format!("{} ({}) is in {}, not signed yet", built.bundle, built.manifest_digest.short(), built.dir.display())
    })
}
