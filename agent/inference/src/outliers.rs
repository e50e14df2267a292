//! Which rows of a request are outliers of the reference sample.
//!
//! Every element of an input that a profile watches is held against the range or the categories of its reference; probes and projections of wide
//! tensors are looked at only where a distance is taken over them, as they cost a pass over the tensor. Of a request, the first
//! [`MAX_ROWS`] rows are looked at.

use muster_shared::bundle::ModelSignature;
use muster_shared::profile::{Profile, ReadyDistance, Reference, Side, Source};
use muster_shared::sketch::OutlierCounts;

use crate::columns::{ColumnError, ColumnExtractor};
use crate::images::Images;
use crate::tensor::Tensor;

/// Rows of one request that are looked at.
pub const MAX_ROWS: usize = 1_024;
/// Columns named in an answer, beside the distance.
const MAX_NAMED: usize = 4;

/// What is ordinary for one column.
#[derive(Debug, Clone, Copy)]
enum Ordinary {
    /// Numbers from the first to the second.
    Range(f64, f64),
    /// Known categories.
    Categories,
}

#[derive(Debug, Clone)]
struct Watched {
    name: String,
    ordinary: Ordinary,
    /// Whether the reference has rows without a value.
    may_be_missing: bool,
}

/// A profile made ready to find outliers.
#[derive(Debug, Clone)]
pub struct OutlierFinder {
    /// The elements that are looked at one by one.
    elements: ColumnExtractor,
    watched: Vec<Watched>,
    /// Numbers that are looked at together, in the order of the distance's columns.
    together: Option<(ColumnExtractor, ReadyDistance)>,
}

/// What was found of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutliersFound {
    /// How many rows, by cause.
    pub counts: OutlierCounts,
    /// Causes and columns, the first few of them.
    named: Vec<String>,
}

impl OutliersFound {
    /// What is odd about the request, for its caller; `None` when nothing is.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        (self.counts.flagged > 0).then(|| self.named.join(", "))
    }

    /// Causes and columns one by one, the first few of them; nothing where nothing is odd.
    #[must_use]
    pub fn flags(&self) -> &[String] {
        &self.named
    }

    fn name(&mut self, cause: &str, column: &str) {
        if self.named.len() < MAX_NAMED {
            let named = format!("{cause} {column}");
            if !self.named.contains(&named) {
                self.named.push(named);
            }
        }
    }
}

impl OutlierFinder {
    /// Holds `profile` against the model's `signature`; `None` when it flags nothing.
    ///
    /// # Errors
    /// [`ColumnError`] with the first column that the model does not have.
    pub fn new(profile: &Profile, signature: &ModelSignature) -> Result<Option<Self>, ColumnError> {
        let Some(outliers) = &profile.outliers else { return Ok(None) };
        let (mut elements, mut watched) = (Vec::new(), Vec::new());
        for column in &profile.columns {
            let (Source::Input { .. }, (Side::Input, _)) = (&column.source, column.source.tensor()) else { continue };
            let (ordinary, may_be_missing) = match &column.reference {
                Reference::Numeric { lower_edges, max, missing, .. } => {
                    let least = lower_edges.first().map_or(f64::MIN, |least| f64::from(*least));
                    (Ordinary::Range(least, f64::from(*max)), *missing > 0)
                }
                // Where rows without a value were seen, they are one of the classes.
                Reference::Class { .. } => (Ordinary::Categories, false),
            };
            watched.push(Watched { name: column.name.clone(), ordinary, may_be_missing });
            elements.push(column.clone());
        }
        let extractor = |columns| ColumnExtractor::new(&Profile { columns, ..Profile::default() }, signature);
        let together = match &outliers.distance {
            Some(distance) => {
                let column = |at: &u16| profile.columns.get(usize::from(*at)).cloned();
                Some((extractor(distance.columns.iter().filter_map(column).collect())?, distance.ready()))
            }
            None => None,
        };
        Ok(Some(Self { elements: extractor(elements)?, watched, together }))
    }

    /// Looks at a request, `images` being those of the inputs, as they were measured while the model was run. Nothing is allocated where
    /// nothing is odd.
    #[must_use]
    pub fn find(&self, inputs: &[Tensor], images: &Images) -> OutliersFound {
        let mut found = OutliersFound::default();
        let together = self.together.as_ref().map_or(1, |(extractor, _)| extractor.rows(inputs, &[]));
        let rows = self.elements.rows(inputs, &[]).max(together).min(MAX_ROWS);
        let mut causes = [0_u8; MAX_ROWS];
        // All rows at once: texts can only be walked through from the first.
        self.elements.visit_rows(inputs, images, &[], 0..rows, |row, at, value| {
            let (Some(column), Some(causes)) = (self.watched.get(at), causes.get_mut(row)) else { return };
            let Some(cause) = column.cause(value) else { return };
            *causes |= cause.bit();
            found.name(cause.word(), &column.name);
        });
        let mut any_far = false;
        if let Some((extractor, distance)) = &self.together {
            for (row, causes) in causes.iter_mut().enumerate().take(rows) {
                let mut sums = distance.row();
                extractor.visit_rows(inputs, images, &[], row..row + 1, |_, place, value| sums.add(place, value));
                let far = sums.is_far();
                *causes |= if far { Cause::Distance.bit() } else { 0 };
                any_far |= far;
            }
        }
        if any_far {
            found.named.push(Cause::Distance.word().to_owned());
        }
        let counts = &mut found.counts;
        counts.rows = rows as u64;
        for causes in causes.iter().take(rows).filter(|causes| **causes != 0) {
            let has = |cause: Cause| u64::from(causes & cause.bit() != 0);
            counts.flagged += 1;
            counts.range += has(Cause::Range);
            counts.category += has(Cause::Category);
            counts.missing += has(Cause::Missing);
            counts.distance += has(Cause::Distance);
        }
        found
    }
}

/// What is odd about a row.
#[derive(Debug, Clone, Copy)]
enum Cause {
    Range,
    Category,
    Missing,
    Distance,
}

impl Cause {
    const fn bit(self) -> u8 {
        1 << self as u8
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::Category => "category",
            Self::Missing => "missing",
            Self::Distance => "distance",
        }
    }
}

impl Watched {
    fn cause(&self, value: Option<f64>) -> Option<Cause> {
        match (self.ordinary, value) {
            (Ordinary::Categories, Some(value)) => (value < 0.0).then_some(Cause::Category),
            (Ordinary::Range(least, greatest), Some(value)) if !value.is_nan() => {
                (value < least || value > greatest).then_some(Cause::Range)
            }
            (Ordinary::Range(..) | Ordinary::Categories, _) => (!self.may_be_missing).then_some(Cause::Missing),
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::bundle::{DataType, TensorSpec};
    use muster_shared::profile::{Centre, Column, Distance, Outliers};

    use super::*;

    fn finder(far_counts: bool) -> OutlierFinder {
        let column = |name: &str, index, reference| Column {
            name: name.into(),
            source: Source::Input { tensor: "x".into(), index },
            reference,
        };
        let numeric =
            |missing| Reference::Numeric { lower_edges: vec![0.0, 1.0], max: 2.0, counts: vec![5, 5], missing };
        let class = Reference::Class { classes: vec!["3".into(), "4".into()], counts: vec![5, 5] };
        let centre = Centre { mean: vec![1.0, 1.0], variance: vec![0.25, 0.25] };
        let distance = Distance {
            columns: vec![0, 1],
            centres: vec![centre],
            threshold: 5.0,
            quantile: 0.99,
            whitening: Vec::new(),
        };
        let profile = Profile {
            columns: vec![column("a", 0, numeric(0)), column("b", 1, numeric(2)), column("kind", 2, class)],
            outliers: Some(Outliers { expected_share: 0.1, distance: Some(distance).filter(|_| far_counts) }),
            ..Profile::default()
        };
        profile.validate().unwrap();
        let spec = TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape: vec![-1, 3] };
        let signature = ModelSignature { inputs: vec![spec], outputs: Vec::new() };
        OutlierFinder::new(&profile, &signature).unwrap().unwrap()
    }

    fn found(distance: bool, rows: &[f32]) -> (OutlierCounts, Option<String>) {
        let tensor = Tensor::from_f32("x", vec![rows.len() / 3, 3], rows).unwrap();
        let found = finder(distance).find(&[tensor], &Images::NONE);
        (found.counts, found.text())
    }

    #[test]
    fn what_the_reference_never_showed_is_flagged() {
        let ordinary = [0.0, 2.0, 3.0, 1.5, f32::NAN, 4.0];
        assert_eq!(found(false, &ordinary), (OutlierCounts { rows: 2, ..OutlierCounts::default() }, None));
        let odd = [-0.1, f32::INFINITY, 3.0, f32::NAN, 1.0, 5.0, 1.0, 1.0, 4.0];
        let counts = OutlierCounts { rows: 3, flagged: 2, range: 1, category: 1, missing: 1, distance: 0 };
        assert_eq!(found(false, &odd), (counts, Some("range a, range b, missing a, category kind".into())));
        let nothing = finder(false).find(&[], &Images::NONE);
        assert_eq!((nothing.counts.rows, nothing.counts.missing), (1, 1));
    }

    #[test]
    fn what_is_far_from_every_centre_is_flagged() {
        // Both corners lie within the range; 2 · (1 / 0.5)² = 8 is above 5, (0.5 / 0.5)² · 2 = 2 is not.
        let (counts, text) = found(true, &[2.0, 0.0, 3.0, 1.5, 0.5, 3.0]);
        assert_eq!((counts.rows, counts.flagged, counts.distance), (2, 1, 1));
        assert_eq!(text.as_deref(), Some("distance"));
    }

    #[test]
    fn the_rows_looked_at_are_bounded() {
        let rows = [9.0_f32, 1.0, 3.0].repeat(MAX_ROWS + 5);
        let (counts, text) = found(false, &rows);
        assert_eq!((counts.rows, counts.flagged, text.as_deref()), (1_024, 1_024, Some("range a")));
    }
}
