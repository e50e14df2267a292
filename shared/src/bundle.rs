//! The manifest: what a bundle is, in one signed document.
//!
//! Everything a device needs to decide whether to fetch, trust, load and watch a model is here; the
//! bundle's other files are named by digest and cut into chunks. Signatures are [`crate::trust`]'s matter.

mod program;
mod requirements;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::program::{PROGRAM_PATH, Program};
pub use self::requirements::{CPU_FEATURE_PREFIX, CPU_FEATURES, Requirements, cpu_feature_attribute};
use crate::card::{Card, CardError};
use crate::data_schema::{DataSchema, SchemaError};
use crate::ids::{BundleName, BundleRef, Digest};
use crate::limits::{CHUNK_BYTES, MAX_CHUNKS, MAX_FILES, MAX_PATH_BYTES};
use crate::pipeline::{Pipeline, PipelineError};
use crate::profile::{Profile, ProfileError};
use crate::trust::Track;

/// The file of a bundle that holds the model.
pub const MODEL_PATH: &str = "model.onnx";
/// The file of a bundle that holds its golden examples.
pub const GOLDEN_PATH: &str = "golden.json";

/// Element types of tensors, by their names in the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[allow(missing_docs, reason = "the names are the definition")]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
}

impl DataType {
    /// Bytes of one element; `None` for [`DataType::Bytes`], whose elements vary.
    #[must_use]
    pub const fn size_bytes(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }

    /// Whether an element is a floating-point number, and so can be NaN or an infinity.
    #[must_use]
    pub const fn is_float(self) -> bool {
        match self {
            Self::Fp16 | Self::Fp32 | Self::Fp64 => true,
            Self::Bool
            | Self::Uint8
            | Self::Uint16
            | Self::Uint32
            | Self::Uint64
            | Self::Int8
            | Self::Int16
            | Self::Int32
            | Self::Int64
            | Self::Bytes => false,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        })
    }
}

/// One input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TensorSpec {
    /// Its name in the model.
    pub name: String,
    /// Its element type.
    pub datatype: DataType,
    /// Its shape; -1 stands for a dimension that a request may choose, as the batch.
    pub shape: Vec<i64>,
}

impl TensorSpec {
    /// Whether the first dimension counts rows: a request chooses it. Otherwise the whole tensor is one row.
    #[must_use]
    pub fn is_batched(&self) -> bool {
        self.shape.first() == Some(&-1)
    }

    /// The dimensions of one row.
    #[must_use]
    pub fn row_dimensions(&self) -> &[i64] {
        self.shape.strip_prefix(&[-1]).unwrap_or(&self.shape)
    }

    /// Elements of one row, where the shape fixes them.
    #[must_use]
    pub fn row_width(&self) -> Option<usize> {
        self.row_dimensions().iter().try_fold(1_usize, |product, d| product.checked_mul(usize::try_from(*d).ok()?))
    }
}

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelSignature {
    /// Inputs, in the model's order.
    pub inputs: Vec<TensorSpec>,
    /// Outputs, in the model's order.
    pub outputs: Vec<TensorSpec>,
}

/// A piece of a file: what a device asks for and checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Chunk {
    /// Digest of its bytes.
    pub sha256: Digest,
    /// Its length, in bytes.
    pub length: u32,
}

impl Chunk {
    fn of(bytes: &[u8]) -> Self {
        Self { sha256: Digest::of(bytes), length: u32::try_from(bytes.len()).unwrap_or(u32::MAX) }
    }

    /// Whether `bytes` are this chunk.
    #[must_use]
    pub fn describes(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.length as usize && Digest::of(bytes) == self.sha256
    }
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BundleFile {
    /// Relative path, `/` between parts.
    pub path: String,
    /// Length, in bytes.
    pub length: u64,
    /// Digest of the whole file.
    pub sha256: Digest,
    /// The pieces it is cut into, in order.
    pub chunks: Vec<Chunk>,
}

impl BundleFile {
    /// Describes `content` as the file `path`, cut into pieces of [`CHUNK_BYTES`].
    #[must_use]
    pub fn describe(path: impl Into<String>, content: &[u8]) -> Self {
        let pieces = content.chunks(CHUNK_BYTES).map(Chunk::of).collect();
        Self { path: path.into(), length: content.len() as u64, sha256: Digest::of(content), chunks: pieces }
    }

    /// Describes `content` as the file `path`, cut into pieces of these `lengths`, in bytes; what they leave over is one more
    /// piece. That no piece is too long is for [`Manifest::validate`] to say.
    #[must_use]
    pub fn describe_cut(path: impl Into<String>, content: &[u8], lengths: &[usize]) -> Self {
        let mut rest = content;
        let mut chunks: Vec<Chunk> = lengths
            .iter()
            .map(|length| {
                let (piece, after) = rest.split_at(rest.len().min(*length));
                rest = after;
                Chunk::of(piece)
            })
            .collect();
        if !rest.is_empty() {
            chunks.push(Chunk::of(rest));
        }
        Self { path: path.into(), length: content.len() as u64, sha256: Digest::of(content), chunks }
    }
}

/// What the model may use on a device, checked before it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Budgets {
    /// Longest median time of one golden example, in milliseconds.
    pub max_latency_ms: Option<u64>,
    /// Most memory for the model's weights and for the intermediate values of one run, in bytes.
    pub max_memory_bytes: Option<u64>,
}

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Lineage {
    /// The training data, in the team's own words.
    pub dataset: Option<String>,
    /// Digest of the training data.
    pub dataset_sha256: Option<Digest>,
    /// The training code: a repository and commit, or a path.
    pub code: Option<String>,
    /// The training run in the team's experiment tracker.
    pub run: Option<String>,
    /// What the team measured before release.
    pub metrics: BTreeMap<String, f64>,
}

/// The signed description of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Manifest {
    /// The model's name.
    pub name: BundleName,
    /// Its semantic version.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub version: semver::Version,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// Grows with every release of this name.
    pub release_counter: u64,
    /// The least release counter a device may run once it has committed this bundle.
    pub security_floor: u64,
    /// When it was built, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// After this no device installs it, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// Which devices can run it.
    pub requirements: Requirements,
    /// What it may use there.
    pub budgets: Budgets,
    /// Its files.
    pub files: Vec<BundleFile>,
    /// What callers send and get; what the model itself takes and gives, unless a pipeline surrounds it.
    pub signature: ModelSignature,
    /// What is done around the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<Pipeline>,
    /// What inputs must be like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<DataSchema>,
    /// What is watched, and against which reference.
    pub profile: Profile,
    /// Where the model comes from.
    pub lineage: Lineage,
    /// What people should know before they use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<Card>,
    /// The agent program it brings in place of a model. It is left out of a model's, and agents that know of nothing else refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
}

/// Why a manifest is not valid, whoever signed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A path that could leave the bundle's folder, or is not portable.
    #[error(
        "file {0:?}: a path must be relative, of letters, digits, '-', '_', '.', with '/' between parts and no part starting with '.'"
    )]
    Path(String),
    /// A path is named twice, or one is a folder of another.
    #[error("file {0:?} is named twice or collides with a folder")]
    Collision(String),
    /// A file's chunks do not add up.
    #[error("file {0:?}: its chunks do not add up to its length, or one is empty or larger than 64 KiB")]
    Chunks(String),
    /// Too many files or chunks.
    #[error("a bundle has at most {MAX_FILES} files and {MAX_CHUNKS} chunks")]
    TooLarge,
    /// A file every bundle must hold is missing.
    #[error("the bundle has no {0}")]
    Missing(&'static str),
    /// The floor would exclude the bundle itself.
    #[error("the security floor {floor} is above the bundle's own release counter {counter}")]
    Floor {
        /// The security floor.
        floor: u64,
        /// The release counter.
        counter: u64,
    },
    /// It brings a program, and is not as such a bundle must be.
    #[error("a bundle with an agent program: {0}")]
    Program(&'static str),
    /// The model signature names no input, no output, or a tensor twice.
    #[error("the model signature must name each input and output once, and at least one of each")]
    Signature,
    /// The pipeline cannot be carried out.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The data schema cannot be followed.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The monitoring profile breaks a bound.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The card breaks a bound.
    #[error(transparent)]
    Card(#[from] CardError),
}

fn is_safe_path(path: &str) -> bool {
    (1..=MAX_PATH_BYTES).contains(&path.len())
        && path.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        })
}

impl Manifest {
    /// What of a device it is for.
    #[must_use]
    pub fn track(&self) -> Track {
        if self.program.is_some() { Track::Program } else { Track::Model }
    }

    /// The bundle's name and version.
    #[must_use]
    pub fn bundle(&self) -> BundleRef {
        BundleRef { name: self.name.clone(), version: self.version.clone() }
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.length))
    }

    /// How many chunks all files have together.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        u32::try_from(self.files.iter().map(|f| f.chunks.len()).sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// Every chunk in the order of its number: its file, where it starts in that file (bytes), and itself.
    pub fn chunks(&self) -> impl Iterator<Item = (&BundleFile, u64, Chunk)> {
        self.files.iter().flat_map(|file| {
            file.chunks.iter().scan(0, move |offset: &mut u64, chunk| {
                let start = *offset;
                *offset += u64::from(chunk.length);
                Some((file, start, *chunk))
            })
        })
    }

    /// The file with this path.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&BundleFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Checks what must hold in every manifest, before any of it is acted upon.
    ///
    /// # Errors
    /// [`ManifestError`] with the first fault found.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.files.len() > MAX_FILES || self.files.iter().map(|f| f.chunks.len()).sum::<usize>() > MAX_CHUNKS {
            return Err(ManifestError::TooLarge);
        }
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for file in &self.files {
            if !is_safe_path(&file.path) {
                return Err(ManifestError::Path(file.path.chars().take(80).collect()));
            }
            // Folded, so that two names stay two files on a file system that ignores case.
            if !taken.insert(file.path.to_ascii_lowercase()) {
                return Err(ManifestError::Collision(file.path.clone()));
            }
            let sizes_ok = file.chunks.iter().all(|c| (1..=CHUNK_BYTES).contains(&(c.length as usize)));
            let sum: u64 = file.chunks.iter().map(|c| u64::from(c.length)).sum();
            if !sizes_ok || sum != file.length {
                return Err(ManifestError::Chunks(file.path.clone()));
            }
        }
        for path in &taken {
            let prefix = format!("{path}/");
            if taken.range(prefix.clone()..).next().is_some_and(|next| next.starts_with(&prefix)) {
                return Err(ManifestError::Collision(path.clone()));
            }
        }
        match &self.program {
            Some(program) => program::validate(self, program)?,
            None => program::validate_model_files(self)?,
        }
        if self.security_floor > self.release_counter {
            return Err(ManifestError::Floor { floor: self.security_floor, counter: self.release_counter });
        }
        let once = |tensors: &[TensorSpec]| {
            !tensors.is_empty() && tensors.iter().map(|t| &t.name).collect::<BTreeSet<_>>().len() == tensors.len()
        };
        if self.program.is_none() && (!once(&self.signature.inputs) || !once(&self.signature.outputs)) {
            return Err(ManifestError::Signature);
        }
        if let Some(pipeline) = &self.pipeline {
            pipeline.validate(&self.signature)?;
        }
        if let Some(schema) = &self.schema {
            schema.validate(&self.signature)?;
        }
        self.profile.validate()?;
        if let Some(card) = &self.card {
            card.validate()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
