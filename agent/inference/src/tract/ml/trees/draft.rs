//! Trees as attributes give them: branches and leaves that refer to each other, read and named but not yet checked as a graph.

use std::collections::HashMap;

use tract_onnx::tract_hir::internal::*;

use super::super::attributes::{Attributes, MAX_COLUMNS, index};

/// What a branch asks of its feature.
#[derive(Debug, Clone)]
pub(super) enum Test {
    LessOrEqual(f64),
    Less(f64),
    GreaterOrEqual(f64),
    Greater(f64),
    Equal(f64),
    NotEqual(f64),
    Member(Vec<f64>),
}

/// Where a branch leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Branch(usize),
    Leaf(usize),
}

#[derive(Debug, Clone)]
pub(super) struct Branch {
    pub(super) feature: usize,
    pub(super) test: Test,
    /// Where NaN goes: as if the test were true, or not.
    pub(super) missing_is_true: bool,
    pub(super) yes: Next,
    pub(super) no: Next,
}

/// All trees of an operator.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) roots: Vec<Next>,
    pub(super) branches: Vec<Branch>,
    /// What each leaf adds to which target.
    pub(super) leaves: Vec<Vec<(usize, f64)>>,
    /// Whether thresholds or weights came in double precision.
    pub(super) is_double: bool,
}

fn flags(name: &str, given: &[i64], count: usize) -> TractResult<Vec<bool>> {
    ensure!(
        given.is_empty() || given.len() == count,
        "attribute '{name}' has {} elements where {count} are needed",
        given.len()
    );
    Ok((0..count).map(|at| given.get(at).is_some_and(|flag| *flag != 0)).collect())
}

impl Draft {
    /// Reads the attributes of TreeEnsembleClassifier and TreeEnsembleRegressor, whose weights' attributes begin with `weighted`.
    pub(super) fn read(attributes: &Attributes<'_>, weighted: &str, targets: usize) -> TractResult<Self> {
        let node_ids = attributes.ints("nodes_nodeids")?;
        let count = node_ids.len();
        ensure!(count > 0, "it has no nodes");
        let list = |name: &str| -> TractResult<_> {
            let given = attributes.ints(name)?;
            attributes.expect_length(name, given.len(), count)?;
            Ok(given)
        };
        let tree_ids = list("nodes_treeids")?;
        let features = list("nodes_featureids")?;
        let (yes, no) = (list("nodes_truenodeids")?, list("nodes_falsenodeids")?);
        let modes = attributes.texts("nodes_modes")?;
        attributes.expect_length("nodes_modes", modes.len(), count)?;
        let values = attributes.numbers("nodes_values", "nodes_values_as_tensor")?;
        attributes.expect_length("nodes_values", values.values.len(), count)?;
        let missing_name = "nodes_missing_value_tracks_true";
        let missing = flags(missing_name, attributes.ints(missing_name)?, count)?;

        let mut draft = Self { is_double: values.is_double, ..Self::default() };
        let mut places: HashMap<(i64, i64), Next> = HashMap::with_capacity(count);
        let mut branches = 0;
        for at in 0..count {
            let place = if modes[at] == "LEAF" {
                draft.leaves.push(Vec::new());
                Next::Leaf(draft.leaves.len() - 1)
            } else {
                branches += 1;
                Next::Branch(branches - 1)
            };
            // The first node of a tree that is named is its root.
            if at == 0 || tree_ids[at] != tree_ids[at - 1] {
                draft.roots.push(place);
            }
            let (tree, node) = (tree_ids[at], node_ids[at]);
            ensure!(places.insert((tree, node), place).is_none(), "tree {tree} has two nodes {node}");
        }
        for at in (0..count).filter(|at| modes[*at] != "LEAF") {
            let (tree, node, value) = (tree_ids[at], node_ids[at], values.values[at]);
            let find = |child: i64| {
                let found = places.get(&(tree, child)).copied();
                found.with_context(|| {
                    format!("node {node} of tree {tree} leads to node {child}, which the tree does not have")
                })
            };
            let test = match modes[at].as_str() {
                "BRANCH_LEQ" => Test::LessOrEqual(value),
                "BRANCH_LT" => Test::Less(value),
                "BRANCH_GTE" => Test::GreaterOrEqual(value),
                "BRANCH_GT" => Test::Greater(value),
                "BRANCH_EQ" => Test::Equal(value),
                "BRANCH_NEQ" => Test::NotEqual(value),
                other => bail!("attribute 'nodes_modes': there is no mode {other:?}"),
            };
            draft.branches.push(Branch {
                feature: index("nodes_featureids", features[at])?,
                test,
                missing_is_true: missing[at],
                yes: find(yes[at])?,
                no: find(no[at])?,
            });
        }
        draft.read_weights(attributes, weighted, targets, &places)?;
        Ok(draft)
    }

    fn read_weights(
        &mut self,
        attributes: &Attributes<'_>,
        weighted: &str,
        targets: usize,
        places: &HashMap<(i64, i64), Next>,
    ) -> TractResult<()> {
        let name = |end: &str| format!("{weighted}_{end}");
        let weights = attributes.numbers(&name("weights"), &name("weights_as_tensor"))?;
        self.is_double |= weights.is_double;
        let list = |end: &str| -> TractResult<_> {
            let given = attributes.ints(&name(end))?;
            attributes.expect_length(&name(end), given.len(), weights.values.len())?;
            Ok(given)
        };
        let (trees, nodes, ids) = (list("treeids")?, list("nodeids")?, list("ids")?);
        for (((tree, node), id), weight) in trees.iter().zip(nodes).zip(ids).zip(&weights.values) {
            let target = index(&name("ids"), *id)?;
            ensure!(target < targets, "attribute '{}': {target} is past the last of {targets}", name("ids"));
            match places.get(&(*tree, *node)) {
                Some(Next::Leaf(leaf)) => self.leaves[*leaf].push((target, *weight)),
                Some(Next::Branch(_)) => bail!("node {node} of tree {tree} has a weight, but is no leaf"),
                None => bail!("there is a weight for node {node} of tree {tree}, which does not exist"),
            }
        }
        Ok(())
    }

    /// Reads the attributes of TreeEnsemble, which opset 5 brought.
    pub(super) fn read_joint(attributes: &Attributes<'_>, targets: usize) -> TractResult<Self> {
        let tensor = |name: &str| attributes.tensor(name)?.with_context(|| format!("attribute '{name}' is missing"));
        let (splits, weights) = (tensor("nodes_splits")?, tensor("leaf_weights")?);
        let is_double = [&splits, &weights].iter().any(|numbers| numbers.datum_type() == f64::datum_type());
        let doubles = |tensor: &Tensor| -> TractResult<Vec<f64>> {
            Ok(tensor.cast_to::<f64>()?.try_as_plain_ram()?.as_slice::<f64>()?.to_vec())
        };
        let modes = tensor("nodes_modes")?.cast_to::<i64>()?.into_owned();
        let modes = modes.try_as_plain_ram()?.as_slice::<i64>()?.to_vec();
        let count = modes.len();
        let splits = doubles(&splits)?;
        attributes.expect_length("nodes_splits", splits.len(), count)?;
        let list = |name: &str| -> TractResult<_> {
            let given = attributes.ints(name)?;
            attributes.expect_length(name, given.len(), count)?;
            Ok(given)
        };
        let (yes, yes_leaf) = (list("nodes_truenodeids")?, list("nodes_trueleafs")?);
        let (no, no_leaf) = (list("nodes_falsenodeids")?, list("nodes_falseleafs")?);
        let features = list("nodes_featureids")?;
        let missing_name = "nodes_missing_value_tracks_true";
        let missing = flags(missing_name, attributes.ints(missing_name)?, count)?;
        let ids = attributes.ints("leaf_targetids")?;
        let weights = doubles(&weights)?;
        attributes.expect_length("leaf_targetids", ids.len(), weights.len())?;
        let leaf = |(id, weight): (&i64, f64)| {
            let target = index("leaf_targetids", *id)?;
            ensure!(target < targets, "attribute 'leaf_targetids': {target} is past the last of {targets}");
            Ok(vec![(target, weight)])
        };
        let leaves: Vec<_> = ids.iter().zip(weights).map(leaf).collect::<TractResult<_>>()?;

        let members = attributes.tensor("membership_values")?.map(|values| doubles(&values)).transpose()?;
        let members = members.unwrap_or_default();
        // One set for each node that asks for membership, each ended by NaN.
        let mut sets = members.split(|value| value.is_nan());
        let next = |name: &str, number: i64, is_leaf: i64| {
            let (at, end) = (index(name, number)?, if is_leaf == 0 { count } else { leaves.len() });
            ensure!(at < end, "attribute '{name}': {at} is past the last of {end}");
            Ok(if is_leaf == 0 { Next::Branch(at) } else { Next::Leaf(at) })
        };
        let mut branches = Vec::with_capacity(count);
        for at in 0..count {
            let test = match modes[at] {
                0 => Test::LessOrEqual(splits[at]),
                1 => Test::Less(splits[at]),
                2 => Test::GreaterOrEqual(splits[at]),
                3 => Test::Greater(splits[at]),
                4 => Test::Equal(splits[at]),
                5 => Test::NotEqual(splits[at]),
                6 => Test::Member(sets.next().context("attribute 'membership_values' has too few sets")?.to_vec()),
                other => bail!("attribute 'nodes_modes': there is no mode {other}"),
            };
            branches.push(Branch {
                feature: index("nodes_featureids", features[at])?,
                test,
                missing_is_true: missing[at],
                yes: next("nodes_truenodeids", yes[at], yes_leaf[at])?,
                no: next("nodes_falsenodeids", no[at], no_leaf[at])?,
            });
        }
        let roots = attributes.ints("tree_roots")?;
        ensure!(!roots.is_empty(), "it has no trees");
        let roots = roots.iter().map(|root| next("tree_roots", *root, 0)).collect::<TractResult<_>>()?;
        Ok(Self { roots, branches, leaves, is_double })
    }

    /// Checks a number of targets.
    pub(super) fn targets(count: i64) -> TractResult<usize> {
        let count = index("n_targets", count)?;
        ensure!((1..=MAX_COLUMNS).contains(&count), "it has {count} targets; 1 to {MAX_COLUMNS} are possible");
        Ok(count)
    }
}
