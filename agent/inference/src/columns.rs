//! The columns that a monitoring profile watches, taken out of a request and its answer.
//!
//! The agent's monitor and `muster bundle build` both read columns through here, so that the reference and what is held
//! against it cannot be computed differently.
//!
//! **Rows.** Where the model leaves a tensor's first dimension free, it is the batch and each of its positions is a row;
//! otherwise the whole tensor is one row. A row's elements are counted in row-major order.
//!
//! **Images.** Of an input of `BYTES` that a pipeline decodes, probes and projections are those of the decoded image: [`ColumnExtractor::measure`]
//! takes them while the image is there.

use std::ops::Range;
use std::sync::Arc;

use muster_shared::bundle::{DataType, ModelSignature, TensorSpec};
use muster_shared::limits::MAX_PROBE_CHANNELS;
use muster_shared::profile::{Column, Probe, Profile, Reference, Side, Source};

use crate::categories::Categories;
use crate::images::{Decoded, Images, MAX_IMAGES};
use crate::tensor::Tensor;
use crate::wide::{Figures, Wide};

/// Why a profile does not fit a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("monitored column {column:?} does not fit the model: {reason}")]
pub struct ColumnError {
    /// The column's name.
    pub column: String,
    /// What is wrong.
    pub reason: String,
}

/// What to take from a row of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Score {
    PredictedClass,
    Confidence,
    Entropy,
    Margin,
}

/// What to take from the figures of a wide row.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Figure {
    Probe(Probe),
    Projection(u8),
}

/// All columns that come from one tensor, each a position in the profile and what it is.
#[derive(Debug, Clone)]
struct Watched {
    side: Side,
    tensor: Arc<str>,
    batched: bool,
    /// Elements that are numbers.
    elements: Vec<(usize, usize)>,
    /// Elements that are categories.
    categories: Vec<(usize, usize, Categories)>,
    scores: Vec<(usize, Score)>,
    figures: Vec<(usize, Figure)>,
    wide: Wide,
}

/// A profile made ready for a model: which element of which tensor each column is.
#[derive(Debug, Clone)]
pub struct ColumnExtractor {
    watched: Vec<Watched>,
}

impl ColumnExtractor {
    /// Holds `profile` against the model's `signature`.
    ///
    /// # Errors
    /// [`ColumnError`] with the first column whose tensor or element the model does not have, that names more classes
    /// than the model gives or such as its elements cannot be, or that asks for other projections of a tensor than the columns before it.
    pub fn new(profile: &Profile, signature: &ModelSignature) -> Result<Self, ColumnError> {
        let mut watched: Vec<Watched> = Vec::new();
        for (position, column) in profile.columns.iter().enumerate() {
            let refuse = |reason: String| ColumnError { column: column.name.clone(), reason };
            let (side, tensor) = column.source.tensor();
            let (specs, word) = match side {
                Side::Input => (&signature.inputs, "input"),
                Side::Output => (&signature.outputs, "output"),
            };
            let spec = specs
                .iter()
                .find(|spec| spec.name == tensor)
                .ok_or_else(|| refuse(format!("the model has no {word} {tensor:?}")))?;
            check(column, spec, word).map_err(refuse)?;
            let known = watched.iter().position(|w| w.side == side && *w.tensor == *tensor);
            let at = known.unwrap_or_else(|| {
                watched.push(Watched::new(side, spec));
                watched.len() - 1
            });
            watched[at].add(position, column, spec.datatype).map_err(refuse)?;
        }
        Ok(Self { watched })
    }

    /// Calls `visit(row, column, value)` for every row and column, `row` being counted from 0 and `column` a position in the profile. All
    /// of a column's rows come in their order; different columns may come in any. The value is a number or the position of a class, -1
    /// for a value that is none of them. It is `None` where there is none: the tensor is missing, the row is shorter than the
    /// profile expects, a category is NaN or an empty text, or a predicted class cannot be told because a NaN is among the values. What
    /// else is taken from such a row is NaN. Of equal values the first is the predicted class.
    ///
    /// Of images, `images` holds what [`ColumnExtractor::measure`] took while the model was run; without, they are missing. Past
    /// [`MAX_IMAGES`] no image is visited.
    ///
    /// Nothing is allocated.
    pub fn visit(
        &self,
        inputs: &[Tensor],
        images: &Images,
        outputs: &[Tensor],
        visit: impl FnMut(usize, usize, Option<f64>),
    ) {
        self.visit_rows(inputs, images, outputs, 0..usize::MAX, visit);
    }

    /// Adds to `images` the figures of those `decoded` that a column asks for, [`MAX_IMAGES`] at most.
    pub fn measure(&self, decoded: &Decoded<'_>, images: &mut Images) {
        let is_asked = |watched: &&Watched| {
            watched.side == Side::Input && *watched.tensor == *decoded.input && !watched.figures.is_empty()
        };
        let Some(watched) = self.watched.iter().find(is_asked) else { return };
        let width = decoded.data.len().checked_div(decoded.rows).unwrap_or(0).max(1);
        for row in decoded.data.chunks_exact(width).take(MAX_IMAGES) {
            images.push(&watched.tensor, watched.wide.measure_decoded(row));
        }
    }

    /// As [`ColumnExtractor::visit`], for these rows only.
    pub fn visit_rows(
        &self,
        inputs: &[Tensor],
        images: &Images,
        outputs: &[Tensor],
        wanted: Range<usize>,
        mut visit: impl FnMut(usize, usize, Option<f64>),
    ) {
        for watched in &self.watched {
            match watched.find(inputs, outputs) {
                Some(tensor) => watched.visit(tensor, images, &wanted, &mut visit),
                None => {
                    for row in wanted.start..self.rows(inputs, outputs).min(wanted.end) {
                        watched.positions().for_each(|column| visit(row, column, None));
                    }
                }
            }
        }
    }

    /// How many rows a request has: those of its longest watched tensor, at least 1.
    #[must_use]
    pub fn rows(&self, inputs: &[Tensor], outputs: &[Tensor]) -> usize {
        let rows = |watched: &Watched| watched.find(inputs, outputs).map(|tensor| watched.rows_of(tensor));
        self.watched.iter().filter_map(rows).max().unwrap_or(1).max(1)
    }
}

/// Whether a tensor of `spec` has what `column` asks for.
fn check(column: &Column, spec: &TensorSpec, word: &str) -> Result<(), String> {
    let tensor = &spec.name;
    let is_category = matches!(column.reference, Reference::Class { .. })
        && matches!(column.source, Source::Input { .. } | Source::Output { .. });
    let width = spec.row_width();
    if spec.datatype == DataType::Bytes && !is_category {
        let is_figure =
            matches!(column.source, Source::Probe { of: Side::Input, .. } | Source::Projection { of: Side::Input, .. });
        // One image a row; how many numbers there are in it is the pipeline's to say.
        return if is_figure && width == Some(1) { Ok(()) } else { Err(format!("{word} {tensor:?} holds no numbers")) };
    }
    let Some(width) = width else { return Ok(()) };
    match (&column.source, &column.reference) {
        (Source::Input { index, .. } | Source::Output { index, .. }, _) if *index as usize >= width => {
            Err(format!("element {index} is past the end of {word} {tensor:?}, whose rows have {width}"))
        }
        (Source::PredictedClass { .. }, Reference::Class { classes, .. }) if classes.len() > width => {
            Err(format!("{} classes are named, but rows of {word} {tensor:?} have {width} elements", classes.len()))
        }
        (Source::Probe { probe: Probe::ChannelMean { channels, .. }, .. }, _)
            if !width.is_multiple_of(usize::from(*channels)) =>
        {
            Err(format!("rows of {word} {tensor:?} have {width} elements, which are not those of {channels} channels"))
        }
        _ => Ok(()),
    }
}

impl Watched {
    fn new(side: Side, spec: &TensorSpec) -> Self {
        Self {
            side,
            tensor: spec.name.as_str().into(),
            batched: spec.is_batched(),
            elements: Vec::new(),
            categories: Vec::new(),
            scores: Vec::new(),
            figures: Vec::new(),
            wide: Wide::default(),
        }
    }

    fn add(&mut self, position: usize, column: &Column, datatype: DataType) -> Result<(), String> {
        let score = |score| (position, score);
        match (&column.source, &column.reference) {
            (Source::Input { index, .. } | Source::Output { index, .. }, Reference::Class { classes, .. }) => {
                let categories = Categories::new(classes, datatype)?;
                self.categories.push((position, *index as usize, categories));
            }
            (Source::Input { index, .. } | Source::Output { index, .. }, Reference::Numeric { .. }) => {
                self.elements.push((position, *index as usize));
            }
            (Source::PredictedClass { .. }, _) => self.scores.push(score(Score::PredictedClass)),
            (Source::Confidence { .. }, _) => self.scores.push(score(Score::Confidence)),
            (Source::Entropy { .. }, _) => self.scores.push(score(Score::Entropy)),
            (Source::Margin { .. }, _) => self.scores.push(score(Score::Margin)),
            (Source::Probe { probe, .. }, _) => {
                match probe {
                    Probe::Saturated { at } => agree(&mut self.wide.saturated_at, *at, "value of saturation")?,
                    Probe::ChannelMean { channels, last, .. } => {
                        let channels = usize::from(*channels).min(MAX_PROBE_CHANNELS);
                        agree(&mut self.wide.channels, (channels, *last), "layout of channels")?;
                    }
                    Probe::Mean
                    | Probe::Std
                    | Probe::Min
                    | Probe::Max
                    | Probe::Norm
                    | Probe::Roughness
                    | Probe::Zeros => {}
                }
                self.figures.push((position, Figure::Probe(*probe)));
            }
            (Source::Projection { seed, number, .. }, _) => {
                agree(&mut self.wide.seed, *seed, "seed")?;
                self.figures.push((position, Figure::Projection(*number)));
            }
        }
        Ok(())
    }

    fn find<'a>(&self, inputs: &'a [Tensor], outputs: &'a [Tensor]) -> Option<&'a Tensor> {
        let tensors = match self.side {
            Side::Input => inputs,
            Side::Output => outputs,
        };
        tensors.iter().find(|tensor| tensor.name() == &*self.tensor)
    }

    fn rows_of(&self, tensor: &Tensor) -> usize {
        if self.batched { tensor.shape().first().copied().unwrap_or(1) } else { 1 }
    }

    /// The profile's positions of all its columns.
    fn positions(&self) -> impl Iterator<Item = usize> {
        let elements = self.elements.iter().map(|(column, _)| *column);
        let categories = self.categories.iter().map(|(column, _, _)| *column);
        let scores = self.scores.iter().map(|(column, _)| *column);
        elements.chain(categories).chain(scores).chain(self.figures.iter().map(|(column, _)| *column))
    }

    fn visit(
        &self,
        tensor: &Tensor,
        images: &Images,
        wanted: &Range<usize>,
        visit: &mut impl FnMut(usize, usize, Option<f64>),
    ) {
        let rows = self.rows_of(tensor);
        let width = tensor.element_count().checked_div(rows).unwrap_or(0);
        let rows = wanted.start..rows.min(wanted.end);
        match tensor.datatype() {
            DataType::Bytes => {
                self.visit_images(images, rows.clone(), visit);
                self.visit_texts(tensor, rows, width, visit);
            }
            DataType::Fp32 => {
                let (data, _) = tensor.data().as_chunks::<4>();
                let get = |at: usize| data.get(at).map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
                self.visit_numbers(tensor, rows, width, get, visit);
            }
            DataType::Bool
            | DataType::Uint8
            | DataType::Uint16
            | DataType::Uint32
            | DataType::Uint64
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Fp16
            | DataType::Fp64 => self.visit_numbers(tensor, rows, width, |at| tensor.value(at), visit),
        }
    }

    #[inline]
    fn visit_numbers(
        &self,
        tensor: &Tensor,
        rows: Range<usize>,
        width: usize,
        get: impl Fn(usize) -> Option<f64>,
        visit: &mut impl FnMut(usize, usize, Option<f64>),
    ) {
        let wants_entropy = self.scores.iter().any(|(_, score)| *score == Score::Entropy);
        for row in rows {
            let start = row * width;
            let element = |index: usize| if index < width { get(start + index) } else { None };
            for (column, index) in &self.elements {
                visit(row, *column, element(*index));
            }
            for (column, index, categories) in &self.categories {
                visit(row, *column, categories.of_number(element(*index)));
            }
            if !self.scores.is_empty() {
                let scores = Scores::of(width, element, wants_entropy);
                for (column, score) in &self.scores {
                    visit(row, *column, scores.as_ref().and_then(|scores| scores.value(*score)));
                }
            }
            if !self.figures.is_empty() {
                let figures = self.wide.measure(tensor, start, width);
                for (column, figure) in &self.figures {
                    visit(row, *column, figures.as_ref().map(|figures| figure.of(figures)));
                }
            }
        }
    }

    /// The figures of images that were decoded; missing where none were.
    fn visit_images(&self, images: &Images, rows: Range<usize>, visit: &mut impl FnMut(usize, usize, Option<f64>)) {
        if self.figures.is_empty() {
            return;
        }
        let were_decoded = images.of(&self.tensor).next().is_some();
        let mut measured = images.of(&self.tensor).skip(rows.start);
        for row in rows {
            let figures = measured.next();
            if figures.is_none() && were_decoded {
                return;
            }
            for (column, figure) in &self.figures {
                visit(row, *column, figures.map(|figures| figure.of(figures)));
            }
        }
    }

    /// Texts lie one behind the other, so they are read in one go.
    fn visit_texts(
        &self,
        tensor: &Tensor,
        rows: Range<usize>,
        width: usize,
        visit: &mut impl FnMut(usize, usize, Option<f64>),
    ) {
        let elements = rows.start.saturating_mul(width)..rows.end.saturating_mul(width);
        let texts = tensor.byte_elements().enumerate().take(elements.end).skip(elements.start);
        for (at, text) in texts {
            let (row, element) = (at / width.max(1), at % width.max(1));
            for (column, _, categories) in self.categories.iter().filter(|(_, index, _)| *index == element) {
                visit(row, *column, categories.of_text(text));
            }
        }
        for row in rows {
            for (column, _, _) in self.categories.iter().filter(|(_, index, _)| *index >= width) {
                visit(row, *column, None);
            }
        }
    }
}

/// Keeps the first `value`, and refuses another one.
fn agree<T: PartialEq>(kept: &mut Option<T>, value: T, what: &str) -> Result<(), String> {
    match kept {
        Some(known) if *known != value => Err(format!("another column of the tensor has another {what}")),
        Some(_) => Ok(()),
        None => {
            *kept = Some(value);
            Ok(())
        }
    }
}

impl Figure {
    fn of(self, figures: &Figures) -> f64 {
        match self {
            Self::Probe(probe) => figures.probe(probe),
            Self::Projection(number) => figures.projection(number),
        }
    }
}

/// What a row of scores says.
struct Scores {
    /// None when a NaN is among them.
    class: Option<usize>,
    largest: f64,
    second: Option<f64>,
    entropy: f64,
}

impl Scores {
    /// Reads a row of `width` scores; `None` when there is none.
    #[inline]
    fn of(width: usize, get: impl Fn(usize) -> Option<f64>, wants_entropy: bool) -> Option<Self> {
        let mut scores = Self { class: None, largest: f64::NEG_INFINITY, second: None, entropy: 0.0 };
        for at in 0..width {
            let value = get(at)?;
            if value.is_nan() {
                return Some(Self { class: None, largest: f64::NAN, second: Some(f64::NAN), entropy: f64::NAN });
            }
            if scores.class.is_none() || value > scores.largest {
                scores.second = scores.class.map(|_| scores.largest);
                (scores.class, scores.largest) = (Some(at), value);
            } else if scores.second.is_none_or(|second| value > second) {
                scores.second = Some(value);
            }
            // The limit of p · ln p at 0 is 0; below, the logarithm is NaN.
            if wants_entropy && value != 0.0 {
                scores.entropy -= value * value.ln();
            }
        }
        scores.class.is_some().then_some(scores)
    }

    fn value(&self, score: Score) -> Option<f64> {
        match score {
            Score::PredictedClass => self.class.map(|class| class as f64),
            Score::Confidence => Some(self.largest),
            // Adding 0 turns −0, of a certain row, into 0.
            Score::Entropy => Some(self.entropy + 0.0),
            Score::Margin => self.second.map(|second| self.largest - second),
        }
    }
}

#[cfg(test)]
mod tests;
