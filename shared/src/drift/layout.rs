//! What the cells of a column mean: which have an order, which stand for a missing value, which for an unexpected one.
//!
//! The order is that of [`crate::sketch::ColumnSketch::cells`].

use crate::profile::Reference;

/// Where the bins of a numeric column lie.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// The lower edges and the maximum: one more than there are bins.
    pub edges: Vec<f64>,
}

/// The meaning of each cell of a column.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    order: Vec<usize>,
    scale: Option<Scale>,
    missing: usize,
    unexpected: Vec<usize>,
}

impl Layout {
    /// The cells of a number with these edges: lower edges of the bins, ascending, then the maximum.
    #[must_use]
    pub fn numeric(edges: Vec<f64>) -> Self {
        let bins = edges.len().saturating_sub(1);
        let (below, above, plus, minus) = (0, bins + 1, bins + 2, bins + 3);
        let order = [minus, below].into_iter().chain(1..=bins).chain([above, plus]).collect();
        Self { order, scale: Some(Scale { edges }), missing: bins + 4, unexpected: vec![below, above, plus, minus] }
    }

    /// The cells of one of `classes` classes.
    #[must_use]
    pub fn classes(classes: usize) -> Self {
        Self { order: (0..=classes).collect(), scale: None, missing: classes + 1, unexpected: vec![classes] }
    }

    /// The cells of a profile's column.
    #[must_use]
    pub fn of(reference: &Reference) -> Self {
        match reference {
            Reference::Numeric { lower_edges, max, .. } => {
                Self::numeric(lower_edges.iter().chain([max]).map(|edge| f64::from(*edge)).collect())
            }
            Reference::Class { classes, .. } => Self::classes(classes.len()),
        }
    }

    /// How many cells there are.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.missing + 1
    }

    /// The cells of values that are there: in ascending order of a number, as they come for classes.
    #[must_use]
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Where the bins lie; none for classes, which have no order.
    #[must_use]
    pub fn scale(&self) -> Option<&Scale> {
        self.scale.as_ref()
    }

    /// The cell of rows without a value.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// The cells of values outside the reference's range, infinite, or in no known class.
    #[must_use]
    pub fn unexpected(&self) -> &[usize] {
        &self.unexpected
    }
}

impl Scale {
    /// The standard deviation of `counts`, one a cell of [`Layout::numeric`], values lying evenly within their bin and those outside at
    /// the nearest edge. `None` without values or where all lie at one point.
    #[must_use]
    pub fn spread(&self, counts: &[u64]) -> Option<f64> {
        let bins = self.edges.windows(2).zip(counts.get(1..)?);
        let (mut n, mut sum) = (0.0, 0.0);
        for (edge, count) in bins.clone() {
            n += *count as f64;
            sum += *count as f64 * f64::midpoint(edge[0], edge[1]);
        }
        if n <= 0.0 {
            return None;
        }
        let mean = sum / n;
        let squares: f64 = bins
            .map(|(edge, count)| {
                let (width, off) = (edge[1] - edge[0], f64::midpoint(edge[0], edge[1]) - mean);
                *count as f64 * (off * off + width * width / 12.0)
            })
            .sum();
        Some((squares / n).sqrt()).filter(|spread| *spread > 0.0 && spread.is_finite())
    }
}
