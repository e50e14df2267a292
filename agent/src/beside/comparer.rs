//! What two models' answers to one request have in common, column by column of their profiles.

use std::collections::BTreeMap;

use muster_inference::{ColumnExtractor, Images, Tensor};
use muster_shared::ids::Digest;
use muster_shared::profile::{Column, Profile, Reference, Source};
use muster_shared::sketch::{ClassPairs, ColumnComparison, Differences, MAX_PAIRS, common_answers};

use crate::host::ServedModel;

/// How a column is compared.
enum Kind {
    /// By the classes' names, in the order of each model's output.
    Classes { incumbent: Vec<String>, candidate: Vec<String>, tells_pairs: bool },
    /// By their difference, in spreads of the incumbent's reference.
    Numbers { spread: f64 },
}

/// The columns of answers that two models share.
pub(crate) struct Comparer {
    against: Digest,
    columns: Vec<(String, Kind)>,
    /// None where nothing can be compared.
    extractors: Option<(ColumnExtractor, ColumnExtractor)>,
}

impl Comparer {
    /// Compares the answers that both models have in common.
    pub(crate) fn new(incumbent: &ServedModel, candidate: &ServedModel) -> Self {
        let (mut columns, mut of_incumbent, mut of_candidate) = (Vec::new(), Vec::new(), Vec::new());
        for (old, new) in common_answers(&incumbent.profile, &candidate.profile) {
            let Some(kind) = kind(old, new) else { continue };
            columns.push((old.name.clone(), kind));
            of_incumbent.push(old.clone());
            of_candidate.push(new.clone());
        }
        let extractor = |columns, model: &ServedModel| {
            ColumnExtractor::new(&Profile { columns, ..Profile::default() }, &model.signature)
                .inspect_err(|error| tracing::warn!(bundle = %model.bundle, %error, "answers are not compared"))
                .ok()
        };
        let extractors = extractor(of_incumbent, incumbent).zip(extractor(of_candidate, candidate));
        if columns.is_empty() || extractors.is_none() {
            tracing::warn!(
                incumbent = %incumbent.bundle,
                candidate = %candidate.bundle,
                "the two have no column of answers in common: only times and failures are compared"
            );
        }
        Self { against: incumbent.manifest, columns, extractors }
    }

    /// Digest of the incumbent's manifest.
    pub(crate) fn against(&self) -> Digest {
        self.against
    }

    /// Compares the answers to one request, row by row.
    pub(crate) fn compare(&self, incumbent: &[Tensor], candidate: &[Tensor]) -> BTreeMap<String, ColumnComparison> {
        let Some((of_incumbent, of_candidate)) = &self.extractors else { return BTreeMap::new() };
        let values = |extractor: &ColumnExtractor, outputs: &[Tensor]| {
            let mut values: Vec<Vec<Option<f64>>> = vec![Vec::new(); self.columns.len()];
            extractor.visit(&[], &Images::NONE, outputs, |_, at, value| {
                if let Some(column) = values.get_mut(at) {
                    column.push(value);
                }
            });
            values
        };
        let both = values(of_incumbent, incumbent).into_iter().zip(values(of_candidate, candidate));
        let compared = self.columns.iter().zip(both).map(|((name, kind), (old, new))| {
            let rows = old.len().max(new.len());
            // Where one gave fewer rows, the rest of them is answers that are missing.
            let row = |at: usize| (old.get(at).copied().flatten(), new.get(at).copied().flatten());
            (name.clone(), kind.compare((0..rows).map(row)))
        });
        compared.collect()
    }
}

impl Kind {
    fn compare(&self, rows: impl Iterator<Item = (Option<f64>, Option<f64>)>) -> ColumnComparison {
        match self {
            Self::Classes { incumbent, candidate, tells_pairs } => {
                let mut pairs = ClassPairs::default();
                for (old, new) in rows {
                    pairs.add(class(incumbent, old), class(candidate, new), *tells_pairs);
                }
                ColumnComparison::Classes(pairs)
            }
            Self::Numbers { spread } => {
                let mut differences = Differences::default();
                for (old, new) in rows {
                    differences.add(old, new, *spread);
                }
                ColumnComparison::Numbers(differences)
            }
        }
    }
}

fn kind(old: &Column, new: &Column) -> Option<Kind> {
    if let (Reference::Class { classes: incumbent, .. }, Reference::Class { classes: candidate, .. }) =
        (&old.reference, &new.reference)
    {
        let pairs = (incumbent.len() + 1).saturating_mul(candidate.len() + 1);
        let (incumbent, candidate) = (incumbent.clone(), candidate.clone());
        return Some(Kind::Classes { incumbent, candidate, tells_pairs: pairs <= MAX_PAIRS });
    }
    if let (Reference::Numeric { lower_edges, max, counts, .. }, Reference::Numeric { .. }) =
        (&old.reference, &new.reference)
    {
        // A confidence is a share already, so its differences are told as they are.
        let is_share = matches!(old.source, Source::Confidence { .. });
        return Some(Kind::Numbers { spread: if is_share { 1.0 } else { spread(lower_edges, *max, counts) } });
    }
    None
}

/// The standard deviation of a reference sample, each row taken to lie in the middle of its bin.
fn spread(lower_edges: &[f32], max: f32, counts: &[u64]) -> f64 {
    let upper = lower_edges.iter().skip(1).copied().chain([max]);
    let middles: Vec<(f64, f64)> = lower_edges
        .iter()
        .zip(upper)
        .zip(counts)
        .map(|((low, high), n)| ((f64::from(*low) + f64::from(high)) / 2.0, *n as f64))
        .collect();
    let rows: f64 = middles.iter().map(|(_, n)| n).sum();
    let mean = middles.iter().map(|(middle, n)| middle * n).sum::<f64>() / rows;
    (middles.iter().map(|(middle, n)| n * (middle - mean) * (middle - mean)).sum::<f64>() / rows).sqrt()
}

fn class(names: &[String], value: Option<f64>) -> Option<&str> {
    let value = value.filter(|value| value.is_finite() && *value >= 0.0)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float-to-int cast saturates")]
    let at = value as usize;
    names.get(at).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixtures::{column_of, digits, doubling, held_out};

    #[test]
    fn classes_go_by_name_and_confidences_by_difference() {
        let (old, new) = (digits("1.0.0", 1), digits("1.2.0", 2));
        let comparer = Comparer::new(&old, &new);
        let rows = held_out();
        let flat: Vec<f32> = rows.iter().flat_map(|(_, pixels)| pixels.clone()).collect();
        let input = Tensor::from_f32("image", vec![rows.len(), 64], &flat).unwrap();
        let answers = [&old, &new].map(|model| model.model.run(std::slice::from_ref(&input)).unwrap());
        let compared = comparer.compare(&answers[0], &answers[1]);
        assert_eq!(compared.keys().collect::<Vec<_>>(), ["class", "confidence"]);
        // Counted here from the probabilities alone.
        let best = |answer: &[Tensor]| -> Vec<(usize, f64)> {
            let all: Vec<f64> = answer[0].values().collect();
            let best = |row: &[f64]| (0..10).rev().max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
            all.chunks(10).map(|row| (best(row), row[best(row)])).collect()
        };
        let pairs: Vec<_> = best(&answers[0]).into_iter().zip(best(&answers[1])).collect();
        let agreed = pairs.iter().filter(|((old, _), (new, _))| old == new).count() as u64;
        let ColumnComparison::Classes(classes) = &compared["class"] else { panic!("{compared:?}") };
        assert_eq!((classes.agreed, classes.rows()), (agreed, rows.len() as u64));
        assert!(agreed < rows.len() as u64, "the two versions differ somewhere");
        let of = |old: usize, new: usize| pairs.iter().filter(|((o, _), (n, _))| (*o, *n) == (old, new)).count() as u64;
        for (old, row) in &classes.pairs {
            for (new, n) in row {
                assert_eq!(*n, of(old.parse().unwrap(), new.parse().unwrap()), "{old} {new}");
            }
        }
        let ColumnComparison::Numbers(confidence) = &compared["confidence"] else { panic!("{compared:?}") };
        let mean = pairs.iter().map(|((_, old), (_, new))| new - old).sum::<f64>() / pairs.len() as f64;
        assert!((confidence.mean().unwrap() - mean).abs() < 1e-6, "{confidence:?} {mean}");
    }

    #[test]
    fn rows_that_one_of_them_lacks_are_untold() {
        let (old, new) = (doubling("1.0.0", 1), doubling("1.1.0", 2));
        let comparer = Comparer::new(&old, &new);
        let compared = comparer.compare(&[column_of("y", &[1.0, 2.0, 3.0])], &[column_of("y", &[1.0])]);
        let ColumnComparison::Numbers(numbers) = &compared["y"] else { panic!("{compared:?}") };
        assert_eq!((numbers.rows(), numbers.untold), (1, 2));
    }

    #[test]
    fn models_of_other_columns_have_nothing_to_compare() {
        let comparer = Comparer::new(&doubling("1.0.0", 1), &digits("1.0.0", 1));
        assert!(comparer.compare(&[column_of("y", &[1.0])], &[]).is_empty());
    }

    #[test]
    fn the_spread_is_that_of_the_reference() {
        // Two bins of width 2 around 1 and 3, as many rows in each: a standard deviation of 1.
        assert!((spread(&[0.0, 2.0], 4.0, &[5, 5]) - 1.0).abs() < 1e-12);
        assert!(!spread(&[0.0], 0.0, &[0]).is_normal());
    }
}
