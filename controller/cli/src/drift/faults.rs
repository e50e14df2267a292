//! Holds the rows of a table against a bundle's data schema, by the code that devices hold requests against it.

use std::collections::BTreeMap;

use muster_inference::Tensor;
use muster_inference::quality::{Checked, QualityGate};
use muster_shared::api::DataQuality;
use muster_shared::bundle::ModelSignature;
use muster_shared::data_schema::DataSchema;
use muster_shared::drift::{Criteria, InputCounts, adjust_limits};
use muster_shared::ids::Digest;
use muster_shared::sketch::QualitySketch;

use super::rows::Rows;

/// Devices of which the last rows are remembered, and whose counts are kept apart before they are put into random groups.
const MAX_APART: usize = 4_096;
/// Parts into which rows that are of no device are put by their number, to tell how they scatter.
const PARTS: u64 = 128;

/// What becomes of a row.
#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    /// The model may see it, with other values put in where the schema says so.
    Passed(Vec<Tensor>),
    /// The model must not see it.
    Rejected,
}

/// Counts by feature and cause.
pub(super) struct Faults<'m> {
    signature: &'m ModelSignature,
    /// Of the features that the table has.
    schema: DataSchema,
    digest: Digest,
    by_device: bool,
    /// By device where anything is to be remembered.
    gates: BTreeMap<String, QualityGate>,
    apart: BTreeMap<String, QualitySketch>,
    counts: InputCounts,
    rows: u64,
    /// Features of the schema that the table does not have.
    pub(super) unchecked: Vec<String>,
    /// There were too many devices to remember the last rows of all.
    pub(super) forgot: bool,
}

impl<'m> Faults<'m> {
    /// Makes `schema` ready for a table whose inputs are found by `rows`. With `by_device` its rows name their device.
    pub(super) fn new(schema: &DataSchema, signature: &'m ModelSignature, rows: &Rows, by_device: bool) -> Self {
        let mut schema = schema.clone();
        let mut unchecked = Vec::new();
        schema.features.retain(|rule| {
            let is_there = rows.has(&rule.tensor, rule.index as usize);
            if !is_there {
                unchecked.push(rule.name.clone());
            }
            is_there
        });
        if rows.lacking.is_some() {
            // Rows may differ in what is not there.
            schema.duplicates = None;
        }
        Self {
            signature,
            digest: schema.digest(),
            schema,
            by_device,
            gates: BTreeMap::new(),
            apart: BTreeMap::new(),
            counts: InputCounts::default(),
            rows: 0,
            unchecked,
            forgot: false,
        }
    }

    fn remembers(&self) -> bool {
        self.schema.duplicates.is_some()
            || self.schema.features.iter().any(|rule| rule.is_time || rule.stuck_after.is_some())
    }

    fn gate(&mut self, device: &str) -> &QualityGate {
        let device = if self.remembers() { device } else { "" };
        if self.gates.len() >= MAX_APART && !self.gates.contains_key(device) {
            self.gates.clear();
            self.forgot = true;
        }
        let (schema, signature) = (&self.schema, self.signature);
        self.gates.entry(device.to_owned()).or_insert_with(|| QualityGate::new(schema, signature))
    }

    /// The counts of the device, or of the part that the next row falls into.
    fn sketch(&mut self, device: &str) -> &mut QualitySketch {
        let name = if self.by_device { device.to_owned() } else { (self.rows % PARTS).to_string() };
        self.rows += 1;
        if self.apart.len() >= MAX_APART && !self.apart.contains_key(&name) {
            self.settle();
        }
        let digest = self.digest;
        self.apart.entry(name).or_insert_with(|| QualitySketch::empty(Some(digest)))
    }

    fn settle(&mut self) {
        for (device, sketch) in std::mem::take(&mut self.apart) {
            self.counts.add_quality(&device, &sketch);
        }
    }

    /// Holds a row of `device` against the schema.
    pub(super) fn look_at(&mut self, device: &str, tensors: Vec<Tensor>) -> Seen {
        let Checked { findings, inputs, rejection } = self.gate(device).check(&tensors);
        findings.add_to(self.sketch(device), rejection.is_some());
        if rejection.is_some() { Seen::Rejected } else { Seen::Passed(inputs.unwrap_or(tensors)) }
    }

    /// Counts a row of `device` that no tensors could be made of: a device refuses such a request before it looks at values.
    pub(super) fn malformed(&mut self, device: &str) {
        let sketch = self.sketch(device);
        sketch.malformed = sketch.malformed.saturating_add(1);
    }

    /// What was wrong with the rows.
    pub(super) fn told(mut self, criteria: &Criteria) -> Option<DataQuality> {
        self.settle();
        let mut quality = self.counts.quality(Some(&self.schema), criteria)?;
        adjust_limits(&mut quality, criteria.alpha);
        Some(quality)
    }
}
