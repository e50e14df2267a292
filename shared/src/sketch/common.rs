//! What the answers of two models have in common, by their profiles: that much a device compares, and a controller takes no more from it.

use std::collections::{BTreeMap, BTreeSet};

use super::comparison::{ClassPairs, ColumnComparison, Comparison, MAX_PAIRS, UNTOLD_CLASS};
use super::outcomes::LabelOutcomes;
use crate::profile::{Column, Profile, Reference};

/// The columns of answers that both models declare by one name and of one kind, in the incumbent's order: the incumbent's and the candidate's.
pub fn common_answers<'a>(
    incumbent: &'a Profile,
    candidate: &'a Profile,
) -> impl Iterator<Item = (&'a Column, &'a Column)> {
    let of_candidate: BTreeMap<&str, &Column> =
        answers(candidate).map(|column| (column.name.as_str(), column)).collect();
    answers(incumbent).filter_map(move |old| {
        let new = of_candidate.get(old.name.as_str())?;
        let is_alike = matches!(
            (&old.reference, &new.reference),
            (Reference::Class { .. }, Reference::Class { .. }) | (Reference::Numeric { .. }, Reference::Numeric { .. })
        );
        is_alike.then_some((old, *new))
    })
}

fn answers(profile: &Profile) -> impl Iterator<Item = &Column> {
    profile.columns.iter().filter(|column| column.is_prediction())
}

impl Comparison {
    /// What of it a device that runs the two models can have counted: columns that both declare, each of its kind and by their classes, and
    /// labels of what both are labelled with. The rest is left out, whether a later device counted it or one that lies, so that what is left
    /// of the windows of all devices adds up.
    #[must_use]
    pub fn within(&self, incumbent: &Profile, candidate: &Profile) -> Self {
        let columns = common_answers(incumbent, candidate).filter_map(|(old, new)| {
            let (name, compared) = self.columns.get_key_value(&old.name)?;
            is_of(compared, &old.reference, &new.reference).then(|| (name.clone(), compared.clone()))
        });
        let specs = incumbent.labels.as_ref().zip(candidate.labels.as_ref());
        let declared = specs.and_then(|(old, new)| LabelOutcomes::empty(old, new));
        let labels = self.labels.as_deref().zip(declared).filter(|(counted, declared)| counted.is_like(declared));
        Self {
            columns: columns.collect(),
            labels: labels.map(|(counted, _)| Box::new(counted.clone())),
            incumbent_us: self.incumbent_us.clone(),
            ..*self
        }
    }
}

fn is_of(compared: &ColumnComparison, incumbent: &Reference, candidate: &Reference) -> bool {
    match (compared, incumbent, candidate) {
        (ColumnComparison::Numbers(_), Reference::Numeric { .. }, Reference::Numeric { .. }) => true,
        (
            ColumnComparison::Classes(pairs),
            Reference::Class { classes: incumbent, .. },
            Reference::Class { classes: candidate, .. },
        ) => pairs.is_of(incumbent, candidate),
        (ColumnComparison::Numbers(_) | ColumnComparison::Classes(_) | ColumnComparison::Other, _, _) => false,
    }
}

impl ClassPairs {
    /// Whether all pairs are of these classes, and no more than are told apart.
    fn is_of(&self, incumbent: &[String], candidate: &[String]) -> bool {
        self.pairs.values().map(BTreeMap::len).sum::<usize>() <= MAX_PAIRS + 1
            && are_of(self.pairs.keys(), incumbent)
            && are_of(self.pairs.values().flat_map(BTreeMap::keys), candidate)
    }
}

fn are_of<'a>(mut names: impl Iterator<Item = &'a String>, classes: &[String]) -> bool {
    let known: BTreeSet<&str> = classes.iter().map(String::as_str).chain([UNTOLD_CLASS]).collect();
    names.all(|name| known.contains(name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;
    use crate::labels::{LabelSpec, LabelTask};
    use crate::profile::Source;
    use crate::sketch::{ClassOutcomes, Differences};

    fn class(classes: &[&str]) -> Reference {
        let classes: Vec<String> = classes.iter().map(|name| (*name).to_owned()).collect();
        Reference::Class { counts: vec![1; classes.len()], classes }
    }

    fn numeric() -> Reference {
        Reference::Numeric { lower_edges: vec![0.0], max: 1.0, counts: vec![1], missing: 0 }
    }

    fn profile(columns: Vec<(&str, Reference)>) -> Profile {
        let source = || Source::Output { tensor: "out".into(), index: 0 };
        let columns = columns
            .into_iter()
            .map(|(name, reference)| Column { name: name.into(), source: source(), reference })
            .collect();
        let task = LabelTask::Classification { classes: vec!["cat".into(), "dog".into()] };
        Profile { columns, labels: Some(LabelSpec::new("out", task)), ..Profile::default() }
    }

    #[test]
    fn columns_are_common_by_name_and_kind_and_only_of_answers() {
        let old = profile(vec![("c", class(&["cat"])), ("y", numeric()), ("z", numeric()), ("gone", numeric())]);
        let mut new =
            profile(vec![("z", class(&["a"])), ("y", numeric()), ("c", class(&["cat", "dog"])), ("in", numeric())]);
        let names = |new: &Profile| {
            common_answers(&old, new).map(|(a, b)| (a.name.clone(), b.name.clone())).collect::<Vec<_>>()
        };
        assert_eq!(names(&new), [("c".to_owned(), "c".to_owned()), ("y".to_owned(), "y".to_owned())]);
        new.columns[1].source = Source::Input { tensor: "in".into(), index: 0 };
        assert_eq!(names(&new), [("c".to_owned(), "c".to_owned())]);
    }

    #[test]
    fn of_a_lying_device_no_more_is_left_than_an_honest_one_counts() {
        let (old, new) = (
            profile(vec![("c", class(&["cat"])), ("y", numeric())]),
            profile(vec![("c", class(&["dog"])), ("y", numeric())]),
        );
        let pairs = |incumbent: &str, candidate: &str| {
            let mut pairs = ClassPairs::default();
            pairs.add(Some(incumbent), Some(candidate), true);
            ColumnComparison::Classes(pairs)
        };
        let numbers = || ColumnComparison::Numbers(Differences::default());
        let honest = Comparison {
            compared: 1,
            columns: [("c".to_owned(), pairs("cat", "dog")), ("y".to_owned(), numbers())].into(),
            labels: Some(Box::new(LabelOutcomes::Classes(ClassOutcomes::default()))),
            ..Comparison::empty(Digest::of(b"incumbent"))
        };
        assert_eq!(honest.within(&old, &new), honest);
        let none_known =
            Comparison { columns: [("c".to_owned(), pairs(UNTOLD_CLASS, UNTOLD_CLASS))].into(), ..honest.clone() };
        assert_eq!(none_known.within(&old, &new), none_known);

        let lies = [
            ("c", numbers()),
            ("c", ColumnComparison::Other),
            ("c", pairs("dog", "dog")),
            ("c", pairs("cat", "cat")),
            ("y", pairs("cat", "dog")),
            ("more", numbers()),
        ];
        for (name, lie) in lies {
            let lying = Comparison { columns: [(name.to_owned(), lie.clone())].into(), ..honest.clone() };
            let left = lying.within(&old, &new);
            assert_eq!(left, Comparison { columns: BTreeMap::new(), ..honest.clone() }, "{name}: {lie:?}");
            let mut sum = left;
            sum.merge(&honest).unwrap();
            assert_eq!((sum.compared, sum.columns.len()), (2, 2));
        }
        for labels in [LabelOutcomes::Other, LabelOutcomes::Numbers { targets: Vec::new() }] {
            let lying = Comparison { labels: Some(Box::new(labels)), ..honest.clone() };
            assert_eq!(lying.within(&old, &new), Comparison { labels: None, ..honest.clone() });
        }
        let unlabelled = Profile { labels: None, ..new };
        assert_eq!(honest.within(&old, &unlabelled).labels, None);
    }
}
