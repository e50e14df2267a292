//! Documents as agents of earlier numbers read them, for tests: their structs as they stood in the agents' own days, each refusing what it
//! does not know.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bundle::{Budgets, BundleFile, Lineage, Manifest, ModelSignature, Program};
use crate::card::Card;
use crate::data_schema::DataSchema;
use crate::ids::{BundleName, DeviceId, Digest, RolloutId};
use crate::pipeline::Pipeline;
use crate::profile::{Profile, Reference};
use crate::trust::{Activation, Assignment, DeliveryPolicy, Stage, WatchPolicy};

/// Assignments before any of the features came.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
struct Assignment0 {
    device: DeviceId,
    rollout: RolloutId,
    manifest: Option<Digest>,
    generation: u64,
    issued_at_ms: u64,
    expires_ms: u64,
    watch: WatchPolicy,
}

/// Assignments of agents that knew requirements on the processor, and no programs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
struct Assignment1 {
    device: DeviceId,
    rollout: RolloutId,
    manifest: Option<Digest>,
    generation: u64,
    issued_at_ms: u64,
    expires_ms: u64,
    watch: WatchPolicy,
    #[serde(default)]
    delivery: DeliveryPolicy,
    #[serde(default)]
    stage: Stage,
    #[serde(default)]
    activation: Activation,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Requirements0 {
    architectures: BTreeSet<String>,
    min_memory_bytes: u64,
    min_agent_version: Option<semver::Version>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Requirements1 {
    architectures: BTreeSet<String>,
    min_memory_bytes: u64,
    min_agent_version: Option<semver::Version>,
    cpu_features: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from", deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
enum Source0 {
    Input { tensor: String, index: u32 },
    Output { tensor: String, index: u32 },
    PredictedClass { tensor: String },
    Confidence { tensor: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
struct Column0 {
    name: String,
    source: Source0,
    reference: Reference,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
struct Profile0 {
    columns: Vec<Column0>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
struct Manifest0 {
    name: BundleName,
    version: semver::Version,
    #[serde(default)]
    description: String,
    release_counter: u64,
    security_floor: u64,
    created_at_ms: u64,
    expires_ms: u64,
    requirements: Requirements0,
    budgets: Budgets,
    files: Vec<BundleFile>,
    signature: ModelSignature,
    profile: Profile0,
    lineage: Lineage,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
struct Manifest1 {
    name: BundleName,
    version: semver::Version,
    #[serde(default)]
    description: String,
    release_counter: u64,
    security_floor: u64,
    created_at_ms: u64,
    expires_ms: u64,
    requirements: Requirements1,
    budgets: Budgets,
    files: Vec<BundleFile>,
    signature: ModelSignature,
    #[serde(default)]
    pipeline: Option<Pipeline>,
    #[serde(default)]
    schema: Option<DataSchema>,
    profile: Profile,
    lineage: Lineage,
    #[serde(default)]
    card: Option<Card>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what matters is what it refuses")]
struct Manifest2 {
    name: BundleName,
    version: semver::Version,
    #[serde(default)]
    description: String,
    release_counter: u64,
    security_floor: u64,
    created_at_ms: u64,
    expires_ms: u64,
    requirements: Requirements1,
    budgets: Budgets,
    files: Vec<BundleFile>,
    signature: ModelSignature,
    #[serde(default)]
    pipeline: Option<Pipeline>,
    #[serde(default)]
    schema: Option<DataSchema>,
    profile: Profile,
    lineage: Lineage,
    #[serde(default)]
    card: Option<Card>,
    #[serde(default)]
    program: Option<Program>,
}

/// Whether `T` holds what the document says and knows all of it.
fn reads<T: DeserializeOwned>(document: &impl Serialize) -> bool {
    serde_json::to_string(document).is_ok_and(|text| serde_json::from_str::<T>(&text).is_ok())
}

/// Whether an agent of number `protocol` reads the assignment.
#[must_use]
pub fn reads_assignment(protocol: u32, document: &Assignment) -> bool {
    match protocol {
        0 => reads::<Assignment0>(document),
        1 => reads::<Assignment1>(document),
        _ => reads::<Assignment>(document),
    }
}

/// Whether an agent of number `protocol` reads the manifest.
#[must_use]
pub fn reads_manifest(protocol: u32, document: &Manifest) -> bool {
    match protocol {
        0 => reads::<Manifest0>(document),
        1 => reads::<Manifest1>(document),
        2 => reads::<Manifest2>(document),
        _ => reads::<Manifest>(document),
    }
}
