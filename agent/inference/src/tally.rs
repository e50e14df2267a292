//! Counting requests into the cells of a profile: what every inference pays for being monitored.
//!
//! Nothing is allocated for a request of up to 64 rows, but where a profile asks for quantiles of raw values. Which window is being counted into, and under which lock, is the caller's
//! matter.

use std::sync::Arc;

use muster_shared::bundle::ModelSignature;
use muster_shared::profile::{Profile, SliceSet};
use muster_shared::sketch::{Cell, ColumnSketch, QuantileSketch, SliceSketch};

use crate::columns::{ColumnError, ColumnExtractor};
use crate::images::{Decoded, Images};
use crate::slices::SliceFinder;
use crate::tensor::Tensor;

/// Larger numbers are counted as this one: beyond every bin, whose edges are FP32, and yet small enough that the moments
/// of a window stay finite. One absurd FP64 value would otherwise make the whole window unreadable.
const MAX_MAGNITUDE: f64 = 1e100;
/// Rows whose slices are kept on the stack.
const FEW_ROWS: usize = 64;

/// A profile made ready to count the requests of a model.
#[derive(Debug, Clone)]
pub struct Tally {
    profile: Arc<Profile>,
    columns: ColumnExtractor,
    slices: SliceFinder,
}

/// What was counted, of all rows and of each slice's.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// One sketch a column, in the profile's order.
    pub columns: Vec<ColumnSketch>,
    /// The same for each slice, at the position that is its number.
    pub slices: Vec<SliceSketch>,
    /// Raw values of the columns of which the profile wants them, at their positions; empty where it wants none.
    pub quantiles: Vec<Option<QuantileSketch>>,
}

impl Counted {
    /// Nothing counted yet against `profile`.
    #[must_use]
    pub fn nothing(profile: &Profile) -> Self {
        let mut quantiles = vec![None; if profile.quantiles.is_empty() { 0 } else { profile.columns.len() }];
        for at in &profile.quantiles {
            if let Some(sketch) = quantiles.get_mut(usize::from(*at)) {
                *sketch = Some(QuantileSketch::default());
            }
        }
        Self {
            columns: profile.columns.iter().map(ColumnSketch::empty).collect(),
            slices: vec![SliceSketch::empty(profile); profile.slice_count()],
            quantiles,
        }
    }

    /// Adds what was counted against the same profile, and tells whether it was.
    #[must_use]
    pub fn merge(&mut self, other: &Self) -> bool {
        let columns = self.columns.iter_mut().zip(&other.columns).map(|(mine, theirs)| mine.merge(theirs));
        let slices = self.slices.iter_mut().zip(&other.slices).map(|(mine, theirs)| mine.merge(theirs));
        let quantiles = self.quantiles.iter_mut().zip(&other.quantiles);
        let quantiles = quantiles.filter_map(|(mine, theirs)| Some(mine.as_mut()?.merge(theirs.as_ref()?)));
        columns.chain(slices).chain(quantiles).all(|merged| merged.is_ok())
    }
}

impl Tally {
    /// Holds `profile` against the model's `signature`.
    ///
    /// # Errors
    /// [`ColumnError`] with the first column or slicing that the model does not have.
    pub fn new(profile: Arc<Profile>, signature: &ModelSignature) -> Result<Self, ColumnError> {
        let columns = ColumnExtractor::new(&profile, signature)?;
        let slices = SliceFinder::new(&profile, signature)?;
        Ok(Self { profile, columns, slices })
    }

    /// The slices that row `row` of a request is in.
    #[must_use]
    pub fn slices_of(&self, inputs: &[Tensor], row: usize) -> SliceSet {
        self.slices.slices_of(inputs, row)
    }

    /// Adds to `images` what the profile's columns ask of images that a pipeline has just `decoded`.
    pub fn measure(&self, decoded: &Decoded<'_>, images: &mut Images) {
        self.columns.measure(decoded, images);
    }

    /// Counts every row of a request into `counted`, which was made for the same profile. `images` are those of the inputs, as they were
    /// measured while the model was run. Without `outputs` the model gave none, and what comes from them is missing.
    pub fn count(&self, counted: &mut Counted, inputs: &[Tensor], images: &Images, outputs: &[Tensor]) {
        let Counted { columns, slices, quantiles } = counted;
        if self.slices.is_empty() {
            self.columns.visit(inputs, images, outputs, |_, at, value| {
                self.count_value(columns, at, value);
                keep_value(quantiles, at, value);
            });
            return;
        }
        let rows = self.columns.rows(inputs, outputs);
        let (mut few, mut many) = ([SliceSet::default(); FEW_ROWS], Vec::new());
        let sets = match few.get_mut(..rows) {
            Some(sets) => sets,
            None => {
                many.resize(rows, SliceSet::default());
                many.as_mut_slice()
            }
        };
        self.slices.fill(inputs, 0, sets);
        for slice in sets.iter().flat_map(|set| set.iter()) {
            if let Some(slice) = slices.get_mut(usize::from(slice)) {
                slice.rows = slice.rows.saturating_add(1);
            }
        }
        self.columns.visit(inputs, images, outputs, |row, at, value| {
            self.count_value(columns, at, value);
            keep_value(quantiles, at, value);
            for slice in sets.get(row).copied().unwrap_or_default().iter() {
                if let Some(slice) = slices.get_mut(usize::from(slice)) {
                    self.count_value(&mut slice.columns, at, value);
                }
            }
        });
    }

    #[inline]
    fn count_value(&self, sketches: &mut [ColumnSketch], at: usize, value: Option<f64>) {
        let (Some(sketch), Some(column)) = (sketches.get_mut(at), self.profile.columns.get(at)) else { return };
        match value {
            Some(x) => {
                let x = if x.is_finite() { x.clamp(-MAX_MAGNITUDE, MAX_MAGNITUDE) } else { x };
                sketch.count(column.reference.cell(x), x);
            }
            None => sketch.count(Cell::Missing, 0.0),
        }
    }
}

#[inline]
fn keep_value(quantiles: &mut [Option<QuantileSketch>], at: usize, value: Option<f64>) {
    if let (Some(Some(sketch)), Some(x)) = (quantiles.get_mut(at), value) {
        sketch.add(x);
    }
}
