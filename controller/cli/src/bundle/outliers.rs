//! Which inferences a bundle flags as unlike its reference sample.

use muster_shared::outliers::{self, Values};
use muster_shared::profile::{Column, Outliers, Reference, Side, Source};

use super::description::Description;
use crate::failure::Failure;
use crate::output;

/// What the description asks to be flagged, from every column's values over the sample; none where there is nothing to flag.
///
/// # Errors
/// [`Failure`] when a distance is asked for and cannot be had.
pub(super) fn of_sample(
    description: &Description,
    columns: &[Column],
    values: &[Vec<f64>],
) -> Result<Option<Outliers>, Failure> {
    let table = &description.outliers;
    let inputs = || columns.iter().zip(values).filter(|(column, _)| column.source.tensor().0 == Side::Input);
    if !table.flag || inputs().next().is_none() {
        return Ok(None);
    }
    let elements: Vec<Values<'_>> = inputs()
        .filter(|(column, _)| matches!(column.source, Source::Input { .. }))
        .map(|(column, values)| match column.reference {
            Reference::Numeric { .. } => Values::Numbers(values),
            Reference::Class { .. } => Values::Categories(values),
        })
        .collect();
    let rows = values.first().map_or(0, Vec::len);
    let expected_share = outliers::expected_share(&elements, rows);
    output::note(&format!(
        "outliers   {:.1} % of ordinary rows lie outside what the reference has seen",
        100.0 * expected_share
    ));
    if !table.distance {
        return Ok(Some(Outliers { expected_share, distance: None }));
    }
    let is_taken = |column: &Column| {
        matches!(column.reference, Reference::Numeric { .. })
            && matches!(column.source, Source::Input { .. } | Source::Projection { of: Side::Input, .. })
    };
    let taken: Vec<(u16, &[f64])> = (0..)
        .zip(columns.iter().zip(values))
        .filter(|(_, (column, _))| is_taken(column))
        .map(|(at, (_, values))| (at, values.as_slice()))
        .collect();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positions of classes, as they were measured"
    )]
    let classes: Option<Vec<usize>> = columns
        .iter()
        .zip(values)
        .find(|(column, _)| matches!(column.source, Source::PredictedClass { .. }))
        .map(|(_, values)| values.iter().map(|class| *class as usize).collect());
    let distance = outliers::fit(&taken, classes.as_deref(), table.quantile).ok_or_else(|| {
        description.origin.whole_fault(
            "outliers.distance: it needs 20 rows of the reference, a number among the inputs that varies, and at most 4096 classes times \
             columns",
        )
    })?;
    output::note(&format!(
        "           and {:.2} % lie too far from {} centres over {} columns",
        100.0 * (1.0 - distance.quantile),
        distance.centres.len(),
        distance.columns.len()
    ));
    Ok(Some(Outliers { expected_share, distance: Some(distance) }))
}
