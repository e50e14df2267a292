//! From counts to what the API tells of a column.

use super::evidence::Draws;
use super::layout::Layout;
use super::verdict::{ColumnVerdict, Criteria, Score, false_discovery_rates, judge};
use crate::api::{ColumnDrift, ScoreName, Subject};
use crate::profile::Column;

fn beyond_chance(verdict: &ColumnVerdict, alpha: f64) -> Vec<ScoreName> {
    let beyond = |score: Option<Score>| score.is_some_and(|score| score.is_significant());
    let said = [
        (ScoreName::Psi, beyond(Some(verdict.psi))),
        (ScoreName::JensenShannon, beyond(Some(verdict.jensen_shannon))),
        (ScoreName::LInfinity, beyond(Some(verdict.l_infinity))),
        (ScoreName::KolmogorovSmirnov, beyond(verdict.kolmogorov_smirnov)),
        (ScoreName::Wasserstein, beyond(verdict.wasserstein)),
        (ScoreName::ChiSquare, verdict.chi_square.is_some_and(|test| test.p_value <= alpha)),
        (ScoreName::Missing, verdict.missing.p_value <= alpha),
        (ScoreName::Unexpected, verdict.unexpected.p_value <= alpha),
    ];
    said.into_iter().filter(|(_, said)| *said).map(|(name, _)| name).collect()
}

/// Scores what was counted of `column` against `reference`, both in the cells of [`Layout::of`] its reference. Without counts there
/// are no scores, and no alarm.
#[must_use]
pub fn column_drift(
    column: &Column,
    reference: &[u64],
    current: &[u64],
    draws: Draws<'_>,
    criteria: &Criteria,
) -> ColumnDrift {
    let named = ColumnDrift {
        name: column.name.clone(),
        prediction: column.is_prediction(),
        subject: Subject::of(column),
        ..ColumnDrift::default()
    };
    let Some(verdict) = judge(&Layout::of(&column.reference), reference, current, draws, criteria) else {
        return named;
    };
    ColumnDrift {
        psi: Some(verdict.psi.value),
        critical: verdict.psi.critical,
        jensen_shannon: Some(verdict.jensen_shannon),
        l_infinity: Some(verdict.l_infinity),
        kolmogorov_smirnov: verdict.kolmogorov_smirnov,
        wasserstein: verdict.wasserstein,
        chi_square: verdict.chi_square,
        n: verdict.n,
        n_effective: verdict.n_effective,
        clustering: verdict.clustering,
        missing_share: verdict.missing.current,
        reference_missing_share: verdict.missing.reference,
        missing_p_value: Some(verdict.missing.p_value),
        unexpected_share: verdict.unexpected.current,
        unexpected_p_value: Some(verdict.unexpected.p_value),
        p_value: Some(verdict.p_value),
        q_value: None,
        significant: verdict.significant,
        effect: verdict.effect,
        beyond_chance: beyond_chance(&verdict, criteria.alpha),
        drifted: verdict.drifted,
        ..named
    }
}

/// Judges columns that are looked at together: each gets its false discovery rate over all of them, and none counts as drifted whose rate
/// is above `alpha`. However many columns there are, where none has moved there is a false alarm with probability `alpha` at most.
pub fn adjust<'c>(columns: impl IntoIterator<Item = &'c mut ColumnDrift>, alpha: f64) {
    let mut columns: Vec<&mut ColumnDrift> = columns.into_iter().filter(|column| column.p_value.is_some()).collect();
    let p_values: Vec<f64> = columns.iter().filter_map(|column| column.p_value).collect();
    for (column, rate) in columns.iter_mut().zip(false_discovery_rates(&p_values)) {
        column.q_value = Some(rate);
        column.drifted &= rate <= alpha;
    }
}
