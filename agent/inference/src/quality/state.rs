//! What is remembered between requests, in a size that the schema fixes.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher as _};

use muster_shared::bundle::DataType;

use crate::tensor::Tensor;

/// What is remembered of one feature.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FeatureState {
    last: Option<u64>,
    /// How many times in a row the last value came.
    times: u32,
    last_time: Option<f64>,
}

impl FeatureState {
    /// Remembers a value; how many times in a row it has come now.
    pub(super) fn see(&mut self, bits: u64) -> u32 {
        self.times = if self.last == Some(bits) { self.times.saturating_add(1) } else { 1 };
        self.last = Some(bits);
        self.times
    }

    /// Remembers a time; whether it is before the one before it.
    pub(super) fn is_before_last(&mut self, time: f64) -> bool {
        self.last_time.replace(time).is_some_and(|last| time < last)
    }
}

/// What is remembered of a model's requests.
#[derive(Debug)]
pub(super) struct QualityState {
    pub(super) features: Vec<FeatureState>,
    /// Hashes of the last rows, the oldest first.
    rows: VecDeque<u64>,
    room: usize,
}

impl QualityState {
    /// Remembers `features` features and the last `room` rows.
    pub(super) fn new(features: usize, room: usize) -> Self {
        Self { features: vec![FeatureState::default(); features], rows: VecDeque::with_capacity(room), room }
    }

    /// Remembers a row; whether it is one of those remembered already.
    pub(super) fn is_repeated(&mut self, hash: u64) -> bool {
        let repeated = self.rows.contains(&hash);
        if self.rows.len() >= self.room {
            self.rows.pop_front();
        }
        self.rows.push_back(hash);
        repeated
    }
}

pub(super) fn text_hash(text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(text);
    hasher.finish()
}

/// A hash of every row: of all inputs' rows at the same place, where all have as many, otherwise of the whole request.
pub(super) fn row_hashes(inputs: &[Tensor]) -> Vec<u64> {
    let mut ordered: Vec<&Tensor> = inputs.iter().collect();
    // The caller chooses the order, and it means nothing.
    ordered.sort_by_key(|tensor| tensor.name());
    let rows = ordered.first().and_then(|tensor| tensor.shape().first()).copied().unwrap_or(1);
    let alike = rows > 0 && ordered.iter().all(|tensor| tensor.shape().first() == Some(&rows));
    let rows = if alike { rows } else { 1 };
    let mut hashers = vec![DefaultHasher::new(); rows];
    for tensor in ordered {
        if tensor.datatype() == DataType::Bytes {
            let width = (tensor.element_count() / rows).max(1);
            for (at, text) in tensor.byte_elements().enumerate() {
                if let Some(hasher) = hashers.get_mut(at / width) {
                    hasher.write_usize(text.len());
                    hasher.write(text);
                }
            }
        } else {
            let width = (tensor.data().len() / rows).max(1);
            for (hasher, row) in hashers.iter_mut().zip(tensor.data().chunks(width)) {
                hasher.write(row);
            }
        }
    }
    hashers.iter().map(DefaultHasher::finish).collect()
}
