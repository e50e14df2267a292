//! What the manifest of an agent program says beyond its file.
//!
//! A bundle brings a model, or a program that takes the agent's place; never both. What a model needs a program must not have, and
//! the other way round, so that neither can be taken for the other.

use serde::{Deserialize, Serialize};

use super::{GOLDEN_PATH, MODEL_PATH, Manifest, ManifestError};

/// The file of a bundle that is the program.
pub const PROGRAM_PATH: &str = "muster-agent";
/// The longest name of a target, in bytes.
const MAX_TARGET_BYTES: usize = 64;

/// An agent program. Its version is that of the bundle, its architecture the only one among the bundle's requirements, and the most memory it
/// may take the bundle's budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Program {
    /// What it was built for, as compilers name it: `aarch64-unknown-linux-gnu`.
    pub target: String,
    /// The oldest agent whose data folder and configuration it can take over.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub takes_over_from: semver::Version,
}

/// Checks that `manifest` describes just the `program`.
pub(super) fn validate(manifest: &Manifest, program: &Program) -> Result<(), ManifestError> {
    let refuse = |why| Err(ManifestError::Program(why));
    if manifest.file(PROGRAM_PATH).is_none_or(|file| file.length == 0) {
        return Err(ManifestError::Missing(PROGRAM_PATH));
    }
    if manifest.files.len() != 1 {
        return refuse("it is one file");
    }
    let is_bare = manifest.signature.inputs.is_empty()
        && manifest.signature.outputs.is_empty()
        && manifest.pipeline.is_none()
        && manifest.schema.is_none()
        && manifest.profile == Default::default()
        && manifest.budgets.max_latency_ms.is_none();
    if !is_bare {
        return refuse("a signature, pipeline, schema, profile or latency budget is a model's");
    }
    if manifest.requirements.architectures.len() != 1 {
        return refuse("it must require exactly one architecture: there is one bundle for each");
    }
    let well_named = (1..=MAX_TARGET_BYTES).contains(&program.target.len())
        && program.target.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !well_named {
        return refuse("its target must be named as compilers do, in at most 64 letters, digits, '-', '_' and '.'");
    }
    if program.takes_over_from > manifest.version {
        return refuse("it must be able to take over from itself");
    }
    Ok(())
}

/// Checks that `manifest` has the files every model has.
pub(super) fn validate_model_files(manifest: &Manifest) -> Result<(), ManifestError> {
    [MODEL_PATH, GOLDEN_PATH]
        .into_iter()
        .find(|path| manifest.file(path).is_none())
        .map_or(Ok(()), |path| Err(ManifestError::Missing(path)))
}
