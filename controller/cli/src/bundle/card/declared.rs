//! The part of a card that is signed: who made the model, what for, of what, and what it takes and gives.

use muster_shared::api::ModelCard;
use muster_shared::bundle::{BundleFile, GOLDEN_PATH, MODEL_PATH, Manifest, TensorSpec};
use muster_shared::card::Card;
use muster_shared::data_schema::FeatureRule;
use muster_shared::profile::{Profile, Reference, SliceBy};
use muster_shared::quality::Baseline;

use super::{code, facts, prose, section, table};
use crate::output;

/// What a card should say and this one does not.
fn undeclared(card: &Card) -> String {
    let wanted = [
        ("owners", card.owners.is_empty()),
        ("license", card.license.is_none()),
        ("intended use", card.intended_use.is_none()),
        ("limitations", card.limitations.is_none()),
    ];
    let missing: Vec<&str> = wanted.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name).collect();
    if missing.is_empty() { String::new() } else { format!("*Not declared: {}.*", missing.join(", ")) }
}

fn details(card: &ModelCard) -> Option<String> {
    let ModelCard { manifest, .. } = card;
    let declared = manifest.card.clone().unwrap_or_default();
    let owners = (!declared.owners.is_empty()).then(|| prose(&declared.owners.join(", ")));
    let signed = match (&card.signed_by[..], card.live.is_some()) {
        ([], _) => "by nobody".to_owned(),
        (keys, true) => keys.iter().map(|key| code(key)).collect::<Vec<_>>().join(", "),
        (keys, false) => {
            format!("{} (not checked)", keys.iter().map(|key| code(key)).collect::<Vec<_>>().join(", "))
        }
    };
    let list = facts([
        ("owners", owners),
        ("contact", declared.contact.as_deref().map(prose)),
        ("license", declared.license.as_deref().map(prose)),
        ("base model", declared.base_model.as_deref().map(prose)),
        ("manifest", Some(code(&card.manifest_digest.to_string()))),
        ("signed", Some(signed)),
        ("release counter", Some(manifest.release_counter.to_string())),
        ("built", Some(output::time(manifest.created_at_ms))),
        ("taken in", card.pushed_at_ms.map(output::time)),
        ("installed until", Some(output::time(manifest.expires_ms))),
        ("size", Some(output::bytes(manifest.total_bytes()))),
        ("citation", declared.citation.as_deref().map(prose)),
    ]);
    section("## Model details", [list, undeclared(&declared)])
}

fn use_and_limits(card: &Card) -> Vec<String> {
    let text = |text: &Option<String>| text.as_deref().map(prose).unwrap_or_default();
    let users = card.intended_users.as_deref().map(|users| format!("Users: {}", prose(users))).unwrap_or_default();
    let beyond = card.out_of_scope_use.as_deref().map(|text| format!("Out of scope: {}", prose(text)));
    [
        section("## Intended use", [text(&card.intended_use), users, beyond.unwrap_or_default()]),
        section("## Limitations", [text(&card.limitations)]),
        section("## Ethical considerations", [text(&card.ethical_considerations)]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn training(manifest: &Manifest) -> Option<String> {
    let lineage = &manifest.lineage;
    let list = facts([
        ("training data", lineage.dataset.as_deref().map(prose)),
        ("training data sha256", lineage.dataset_sha256.map(|digest| code(&digest.to_string()))),
        ("code", lineage.code.as_deref().map(prose)),
        ("run", lineage.run.as_deref().map(prose)),
    ]);
    let metrics = lineage.metrics.iter().map(|(name, value)| vec![code(name), value.to_string()]);
    let metrics =
        if lineage.metrics.is_empty() { String::new() } else { table(&["measured before release", "value"], metrics) };
    section("## Training", [list, metrics])
}

fn tensors(kind: &str, tensors: &[TensorSpec]) -> Vec<Vec<String>> {
    let row = |tensor: &TensorSpec| {
        let shape: Vec<String> =
            tensor.shape.iter().map(|d| if *d < 0 { "any".to_owned() } else { d.to_string() }).collect();
        vec![kind.to_owned(), code(&tensor.name), tensor.datatype.to_string(), shape.join(" × ")]
    };
    tensors.iter().map(row).collect()
}

fn rules(rule: &FeatureRule) -> String {
    let mut parts = Vec::new();
    match (rule.min, rule.max) {
        (Some(min), Some(max)) => parts.push(format!("{min} to {max}")),
        (Some(min), None) => parts.push(format!("at least {min}")),
        (None, Some(max)) => parts.push(format!("at most {max}")),
        (None, None) => {}
    }
    parts.extend(rule.categories.as_ref().map(|_| "known categories only".to_owned()));
    parts.push(if rule.may_be_missing { "may be missing" } else { "must be there" }.to_owned());
    parts.extend(rule.max_missing_share.map(|share| format!("missing in at most {}", output::percent(share))));
    parts.extend(rule.stuck_after.map(|n| format!("stuck after {n} equal values")));
    parts.extend(rule.is_time.then(|| "a time that grows".to_owned()));
    parts.join(", ")
}

fn interface(manifest: &Manifest) -> Option<String> {
    let signature = &manifest.signature;
    let rows = tensors("input", &signature.inputs).into_iter().chain(tensors("output", &signature.outputs));
    let mut parts = vec![table(&["", "name", "type", "shape"], rows)];
    if let Some(pipeline) = &manifest.pipeline {
        let half = |steps: &[muster_shared::pipeline::Step]| {
            let steps: Vec<String> =
                steps.iter().map(|step| format!("{} to {}", step.operation.name(), code(&step.to))).collect();
            (!steps.is_empty()).then(|| steps.join(", "))
        };
        parts.push(facts([("before the model", half(&pipeline.pre)), ("after the model", half(&pipeline.post))]));
    }
    if let Some(schema) = &manifest.schema {
        let row = |rule: &FeatureRule| vec![code(&rule.name), rules(rule), output::word(&rule.on_violation)];
        parts.push(table(&["expected of", "what", "else"], schema.features.iter().map(row)));
    }
    let file = |path: &str| manifest.file(path).map(described);
    let needs = &manifest.requirements;
    let architectures: Vec<&str> = needs.architectures.iter().map(String::as_str).collect();
    let cpu_features: Vec<&str> = needs.cpu_features.iter().map(String::as_str).collect();
    parts.push(facts([
        ("model file", file(MODEL_PATH)),
        ("golden examples", file(GOLDEN_PATH)),
        ("architectures", (!architectures.is_empty()).then(|| prose(&architectures.join(", ")))),
        ("processor", (!cpu_features.is_empty()).then(|| prose(&cpu_features.join(", ")))),
        ("attributes", needs.attributes.as_ref().map(|wanted| code(&wanted.to_string()))),
        ("memory", (needs.min_memory_bytes > 0).then(|| output::bytes(needs.min_memory_bytes))),
        ("latency budget", manifest.budgets.max_latency_ms.map(|ms| format!("{ms} ms"))),
        ("memory budget", manifest.budgets.max_memory_bytes.map(output::bytes)),
    ]));
    section("## Inputs and outputs", parts)
}

fn described(file: &BundleFile) -> String {
    format!("{}, sha256 {}", output::bytes(file.length), code(&file.sha256.to_string()))
}

/// Rows of the reference sample, by the column that counts most of them.
fn reference_rows(profile: &Profile) -> u64 {
    let rows = |reference: &Reference| match reference {
        Reference::Numeric { counts, missing, .. } => counts.iter().fold(*missing, |n, c| n.saturating_add(*c)),
        Reference::Class { counts, .. } => counts.iter().fold(0_u64, |n, c| n.saturating_add(*c)),
    };
    profile.columns.iter().map(|column| rows(&column.reference)).max().unwrap_or(0)
}

fn baseline(baseline: &Baseline) -> String {
    match baseline {
        Baseline::Classification { rows, right, .. } => {
            let accuracy = if *rows == 0 { 0.0 } else { *right as f64 / *rows as f64 };
            format!("accuracy {} over {rows} rows", output::percent(accuracy))
        }
        Baseline::Regression { rows, targets } => {
            let errors: Vec<String> = targets.iter().map(|target| output::significant(target.mae)).collect();
            format!("mean absolute error {} over {rows} rows", errors.join(", "))
        }
    }
}

fn evaluation(profile: &Profile) -> Option<String> {
    if profile.columns.is_empty() && profile.labels.is_none() {
        return section("## Reference", ["*No reference sample: drift of this model is not seen.*".to_owned()]);
    }
    let predictions = profile.columns.iter().filter(|column| column.is_prediction()).count();
    let slicing = |slicing: &muster_shared::profile::Slicing| {
        let by = match &slicing.by {
            SliceBy::Range { edges, .. } => format!("ranges, {} edge(s)", edges.len()),
            SliceBy::Category { values, .. } => values.iter().map(|value| code(value)).collect::<Vec<_>>().join(", "),
            SliceBy::Label { label } => format!("the device's label {}", code(label)),
        };
        format!("{} by {by}", code(&slicing.name))
    };
    let slices: Vec<String> = profile.slices.iter().map(slicing).collect();
    let labels = profile.labels.as_ref();
    let list = facts([
        ("sample", Some(format!("{} rows", reference_rows(profile)))),
        ("watched", Some(format!("{} input column(s), {predictions} of answers", profile.columns.len() - predictions))),
        ("slices", (!slices.is_empty()).then(|| slices.join("; "))),
        ("labels", labels.map(|spec| format!("of {}", code(&spec.tensor)))),
        ("quality on the sample", labels.and_then(|spec| spec.baseline.as_ref()).map(baseline)),
        ("outliers expected", profile.outliers.as_ref().map(|outliers| output::percent(outliers.expected_share))),
    ]);
    section("## Reference", [list])
}

/// Everything that the manifest says.
pub(super) fn sections(card: &ModelCard) -> Vec<String> {
    let manifest = &card.manifest;
    let title = format!("# {} {}", prose(manifest.name.as_str()), manifest.version);
    let declared = manifest.card.clone().unwrap_or_default();
    let description = (!manifest.description.is_empty()).then(|| prose(&manifest.description));
    let mut sections = vec![title];
    sections.extend(description);
    sections.extend(details(card));
    sections.extend(use_and_limits(&declared));
    sections.extend(training(manifest));
    sections.extend(interface(manifest));
    sections.extend(evaluation(&manifest.profile));
    sections
}
