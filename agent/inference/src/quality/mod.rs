//! Requests held against the data schema, before the pipeline.
//!
//! What a rule may say is [`muster_shared::data_schema`]'s to decide; here every value is looked at once, in the caller's own
//! tensors. Nothing is allocated for a number that breaks no rule. What one request cannot tell — a stuck sensor, a duplicate, a time
//! that goes back — is remembered in a state of fixed size.

mod rule;
mod state;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use muster_shared::bundle::{DataType, ModelSignature};
use muster_shared::data_schema::{DataSchema, Duplicates, Handling, Imputed, OnViolation};
use muster_shared::ids::Digest;
use muster_shared::sketch::{Cause, QualitySketch};

use self::rule::Rule;
use self::state::{FeatureState, QualityState, row_hashes};
use crate::elements;
use crate::tensor::Tensor;

/// Features that an answer names; of more it gives the number.
const MAX_NAMED: usize = 16;

/// A schema made ready for a model's requests, with what is remembered of them.
pub struct QualityGate {
    digest: Digest,
    duplicates: Option<Duplicates>,
    tensors: Vec<TensorRules>,
    /// By place in the schema.
    names: Vec<String>,
    /// Taken only where a rule needs it.
    state: Option<Mutex<QualityState>>,
}

struct TensorRules {
    name: String,
    datatype: DataType,
    rank: usize,
    batched: bool,
    rules: Vec<Rule>,
}

/// Why a request is not answered: the first violation of a rule that rejects.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the data schema rejects the request: {what}, {broken}")]
pub struct Rejection {
    /// Which value, in words.
    pub what: String,
    /// What it is and what is expected, in words.
    pub broken: String,
}

/// What was found in one request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Findings {
    rows: u64,
    duplicates: u64,
    /// Feature, cause and number of values; every pair once.
    counts: Vec<(usize, Cause, u64)>,
    flags: BTreeSet<(usize, Cause)>,
    duplicate_flagged: bool,
    imputed: BTreeSet<(usize, Cause)>,
}

/// The outcome of holding a request against the schema.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checked {
    /// What is to be counted.
    pub findings: Findings,
    /// The inputs with other values put in; `None` when they stay as they are.
    pub inputs: Option<Vec<Tensor>>,
    /// Why the model shall not see the request.
    pub rejection: Option<Rejection>,
}

/// A value to put in: the tensor's and the element's place, and the rule that says which.
struct Repair {
    tensor: usize,
    element: usize,
    rules: usize,
    rule: usize,
}

impl QualityGate {
    /// Makes `schema` ready, which has been validated against `signature`.
    #[must_use]
    pub fn new(schema: &DataSchema, signature: &ModelSignature) -> Self {
        let tensors: Vec<TensorRules> = signature
            .inputs
            .iter()
            .map(|spec| TensorRules {
                name: spec.name.clone(),
                datatype: spec.datatype,
                rank: spec.shape.len(),
                batched: spec.is_batched(),
                rules: Rule::all_of(schema, &spec.name),
            })
            .filter(|tensor| !tensor.rules.is_empty())
            .collect();
        let remembers = schema.duplicates.is_some() || tensors.iter().flat_map(|t| &t.rules).any(Rule::remembers);
        Self {
            digest: schema.digest(),
            duplicates: schema.duplicates,
            tensors,
            names: schema.features.iter().map(|rule| rule.name.clone()).collect(),
            state: remembers.then(|| {
                let room = schema.duplicates.map_or(0, |duplicates| duplicates.among_last as usize);
                Mutex::new(QualityState::new(schema.features.len(), room))
            }),
        }
    }

    /// An empty sketch for what this gate finds.
    #[must_use]
    pub fn sketch(&self) -> QualitySketch {
        QualitySketch::empty(Some(self.digest))
    }

    /// Holds `inputs` against the schema. Tensors that have not the signature's type and rank are passed over: the model refuses
    /// them.
    #[must_use]
    pub fn check(&self, inputs: &[Tensor]) -> Checked {
        // Rows are hashed before the lock, under which others wait.
        let hashes = self.duplicates.map(|duplicates| (duplicates, row_hashes(inputs)));
        let mut state = self.state.as_ref().map(|state| state.lock().unwrap_or_else(PoisonError::into_inner));
        let mut checked = Checked::default();
        let mut repairs: Vec<Repair> = Vec::new();
        for (rules_at, rules) in self.tensors.iter().enumerate() {
            let found = inputs.iter().enumerate().find(|(_, tensor)| tensor.name() == rules.name);
            let Some((tensor_at, tensor)) = found else { continue };
            if (tensor.datatype(), tensor.shape().len()) != (rules.datatype, rules.rank) {
                continue;
            }
            let rows = if rules.batched { tensor.shape().first().copied().unwrap_or(1) } else { 1 };
            let width = tensor.element_count().checked_div(rows).unwrap_or(0);
            checked.findings.rows = checked.findings.rows.max(rows as u64);
            let mut visit = |rule_at: usize, row: usize, value: rule::Value<'_>| {
                let rule = &rules.rules[rule_at];
                let remembered = state.as_mut().and_then(|state| state.features.get_mut(rule.feature));
                let Some(cause) = rule.look_at(value, remembered) else { return };
                checked.findings.count(rule.feature, cause);
                match rule.handling(cause) {
                    Handling::Counted => {}
                    Handling::Rejected => {
                        checked.rejection.get_or_insert_with(|| Rejection {
                            what: format!("feature {:?} of row {}", self.names[rule.feature], row + 1),
                            broken: rule.words(cause, value),
                        });
                    }
                    Handling::Imputed => {
                        let element = row * width + rule.index;
                        repairs.push(Repair { tensor: tensor_at, element, rules: rules_at, rule: rule_at });
                        checked.findings.imputed.insert((rule.feature, cause));
                    }
                    Handling::Flagged => {
                        checked.findings.flags.insert((rule.feature, cause));
                    }
                }
            };
            if tensor.datatype() == DataType::Bytes {
                // Texts can only be walked through: rules are in the order of their elements.
                let mut texts = tensor.byte_elements();
                for row in 0..rows {
                    let mut next = 0;
                    for element in 0..width {
                        let Some(text) = texts.next() else { break };
                        if rules.rules.get(next).is_some_and(|rule| rule.index == element) {
                            visit(next, row, rule::Value::Text(text));
                            next += 1;
                        }
                    }
                }
            } else {
                let (datatype, data) = (tensor.datatype(), tensor.data());
                for row in 0..rows {
                    for (at, rule) in rules.rules.iter().enumerate().filter(|(_, rule)| rule.index < width) {
                        if let Some(number) = elements::value(datatype, data, row * width + rule.index) {
                            visit(at, row, rule::Value::Number(number));
                        }
                    }
                }
            }
        }
        if let (Some((duplicates, hashes)), Some(state)) = (&hashes, &mut state) {
            look_for_duplicates(*duplicates, hashes, state, &mut checked);
        }
        drop(state);
        if checked.rejection.is_none() && !repairs.is_empty() {
            checked.inputs = Some(self.repaired(inputs, &repairs));
        }
        checked
    }

    /// `inputs` with the values that the rules put in.
    fn repaired(&self, inputs: &[Tensor], repairs: &[Repair]) -> Vec<Tensor> {
        let repair = |(at, tensor): (usize, &Tensor)| {
            let mine = || repairs.iter().filter(move |repair| repair.tensor == at);
            if mine().next().is_none() {
                return tensor.clone();
            }
            let value = |repair: &Repair| &self.tensors[repair.rules].rules[repair.rule].impute;
            let (name, datatype, shape) = (tensor.name().to_owned(), tensor.datatype(), tensor.shape().to_vec());
            let repaired = if datatype == DataType::Bytes {
                let mut texts: Vec<&[u8]> = tensor.byte_elements().collect();
                for repair in mine() {
                    if let (Some(place), Some(Imputed::Text(text))) = (texts.get_mut(repair.element), value(repair)) {
                        *place = text.as_bytes();
                    }
                }
                Tensor::from_byte_elements(name, shape, texts)
            } else {
                let mut data = tensor.data().to_vec();
                let size = datatype.size_bytes().unwrap_or(1);
                let mut bytes = Vec::with_capacity(size);
                for repair in mine() {
                    let place = data.get_mut(repair.element * size..(repair.element + 1) * size);
                    if let (Some(place), Some(Imputed::Number(number))) = (place, value(repair)) {
                        bytes.clear();
                        if elements::push_f64(datatype, *number, &mut bytes) {
                            place.copy_from_slice(&bytes);
                        }
                    }
                }
                Tensor::new(name, datatype, shape, data)
            };
            // As many bytes of the same kind as before, so there is nothing to refuse.
            repaired.unwrap_or_else(|_| tensor.clone())
        };
        inputs.iter().enumerate().map(repair).collect()
    }

    /// What an answer says about `findings`: nothing, or which features were flagged and imputed and why.
    #[must_use]
    pub fn parameters(&self, findings: &Findings) -> Vec<(&'static str, String)> {
        let words = |found: &BTreeSet<(usize, Cause)>, more: Option<&str>| {
            let mut words: Vec<String> = found
                .iter()
                .take(MAX_NAMED)
                .map(|(feature, cause)| format!("{} {cause}", self.names[*feature]))
                .collect();
            words.extend(more.map(str::to_owned));
            if found.len() > MAX_NAMED {
                words.push(format!("and {} more", found.len() - MAX_NAMED));
            }
            words.join(", ")
        };
        let flagged = words(&findings.flags, findings.duplicate_flagged.then_some("row duplicate"));
        let imputed = words(&findings.imputed, None);
        [("quality_flags", flagged), ("quality_imputed", imputed)]
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .collect()
    }
}

fn look_for_duplicates(duplicates: Duplicates, hashes: &[u64], state: &mut QualityState, checked: &mut Checked) {
    for (row, hash) in hashes.iter().enumerate() {
        if !state.is_repeated(*hash) {
            continue;
        }
        checked.findings.duplicates = checked.findings.duplicates.saturating_add(1);
        if duplicates.on_violation == OnViolation::Reject {
            checked.rejection.get_or_insert_with(|| Rejection {
                what: format!("row {}", row + 1),
                broken: format!("which is one of the {} rows before it once more", duplicates.among_last),
            });
        } else {
            checked.findings.duplicate_flagged = true;
        }
    }
}

impl Findings {
    fn count(&mut self, feature: usize, cause: Cause) {
        match self.counts.iter_mut().find(|(known, why, _)| (*known, *why) == (feature, cause)) {
            Some((_, _, count)) => *count = count.saturating_add(1),
            None => self.counts.push((feature, cause, 1)),
        }
    }

    /// Values of the feature at place `feature` of the schema that were found to have `cause`.
    #[must_use]
    pub fn values(&self, feature: usize, cause: Cause) -> u64 {
        self.counts.iter().find(|(at, why, _)| (*at, *why) == (feature, cause)).map_or(0, |(_, _, count)| *count)
    }

    /// Every feature's place in the schema, cause and number of values that were found.
    pub fn counts(&self) -> impl Iterator<Item = (usize, Cause, u64)> {
        self.counts.iter().copied()
    }

    /// Rows that repeat one before them.
    #[must_use]
    pub const fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Adds what was found to a window's counts.
    pub fn add_to(&self, sketch: &mut QualitySketch, rejected: bool) {
        sketch.rows = sketch.rows.saturating_add(self.rows);
        sketch.duplicates = sketch.duplicates.saturating_add(self.duplicates);
        for (feature, cause, values) in &self.counts {
            sketch.add(*feature, *cause, *values);
        }
        let flagged = self.duplicate_flagged || !self.flags.is_empty();
        for (count, happened) in [
            (&mut sketch.rejected, rejected),
            (&mut sketch.flagged, flagged && !rejected),
            (&mut sketch.imputed, !self.imputed.is_empty() && !rejected),
        ] {
            *count = count.saturating_add(u64::from(happened));
        }
    }
}

#[cfg(test)]
mod tests;
