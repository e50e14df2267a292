//! What is installed, as its files say: for those who look while another process, or none, runs the agent. Nothing is written, not even
//! a repair.

use std::path::Path;

use muster_agent_core::record::Record;
use muster_inference::GoldenSet;
use muster_inference::golden::{GoldenReport, Tolerance};
use muster_shared::bundle::{GOLDEN_PATH, Manifest};
use muster_shared::ids::BundleRef;

use super::records::Records;
use super::slot_files::SlotFiles;
use super::{guarded, model};
use crate::causes::with_source;

/// What a self-test of the committed bundle came to.
#[derive(Debug)]
pub(crate) struct SelfTested {
    /// The bundle.
    pub(crate) bundle: BundleRef,
    /// How far an answer may be off.
    pub(crate) tolerance: Tolerance,
    /// What was measured.
    pub(crate) report: GoldenReport,
}

/// The record of what is installed; none where there is none, nor ever was.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn stored_record(data_dir: &Path) -> Result<Option<Record>, String> {
    Records::of(data_dir).look()
}

/// Whether the files of the committed bundle are there and right; none where nothing is committed.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn check_committed(data_dir: &Path) -> Result<Option<BundleRef>, String> {
    steadily(data_dir, |data_dir, record| {
        let Some((pointer, manifest)) = committed(data_dir, record)? else { return Ok(None) };
        SlotFiles::new(data_dir).check(pointer.slot, &manifest).map_err(|damage| damage.reason)?;
        Ok(Some(manifest.bundle()))
    })
}

/// Runs the golden examples of the committed bundle in this process, whatever another one serves; none where nothing is committed.
///
/// # Errors
/// Which example fails, or why none can be run.
pub(crate) fn self_test_committed(data_dir: &Path) -> Result<Option<SelfTested>, String> {
    steadily(data_dir, |data_dir, record| {
        let Some((pointer, manifest)) = committed(data_dir, record)? else { return Ok(None) };
        let slots = SlotFiles::new(data_dir);
        let golden = slots.read(pointer.slot, &manifest, GOLDEN_PATH).map_err(|damage| damage.reason)?;
        let tolerance = GoldenSet::parse(&golden).map_err(|error| with_source(&error))?.tolerance;
        let digest = record.committed_bundle().ok_or("the record names no committed bundle")?.manifest;
        let (_, report) = guarded(|| {
            model::load(&slots, pointer.slot, digest, &manifest, Some(manifest.budgets)).map_err(|damage| damage.reason)
        })?;
        Ok(Some(SelfTested { bundle: manifest.bundle(), tolerance, report }))
    })
}

/// Does `work` with the record; once more if that fails and the record has changed meanwhile, as the agent may exchange bundles at any time.
fn steadily<T>(
    data_dir: &Path,
    work: impl Fn(&Path, &Record) -> Result<Option<T>, String>,
) -> Result<Option<T>, String> {
    let Some(record) = stored_record(data_dir)? else { return Ok(None) };
    work(data_dir, &record).or_else(|reason| match stored_record(data_dir) {
        Ok(Some(now)) if now != record => work(data_dir, &now),
        _ => Err(reason),
    })
}

fn committed(
    data_dir: &Path,
    record: &Record,
) -> Result<Option<(muster_agent_core::slots::Pointer, Manifest)>, String> {
    let Some((pointer, bundle)) = record.committed.zip(record.committed_bundle()) else { return Ok(None) };
    let manifest = Records::of(data_dir).manifest(&bundle.manifest).map_err(|error| with_source(&error))?;
    let (_, manifest) = manifest.ok_or_else(|| format!("the manifest of {} is missing or damaged", bundle.bundle))?;
    Ok(Some((pointer, manifest)))
}
