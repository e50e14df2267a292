//! Trees made ready to run: every node in one array, every test "at most" or "less", every leaf its own successor.
//!
//! What is wrong with a graph of branches is found when it is flattened: a run only follows indices that were checked, and ends,
//! as no node leads back to an earlier one. Several walks go on side by side, for a single one mostly waits for memory.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_num_traits::{Float, NumCast};

use super::draft::{Branch, Draft, Next, Test};

/// Walks that go on side by side.
const LANES: usize = 8;
/// Nodes that an operator may have after flattening.
const MAX_NODES: usize = 1 << 30;
/// The test is "less", not "at most".
const STRICT: u32 = 1 << 30;
/// NaN passes the test.
const MISSING_PASSES: u32 = 1 << 31;
const FEATURE: u32 = STRICT - 1;

/// A branch, or a leaf, whose successor it is itself.
#[derive(Debug, Clone, Copy)]
struct Node<V> {
    /// The threshold; the weight of a leaf that has only one.
    value: V,
    /// The feature, with [`STRICT`] and [`MISSING_PASSES`].
    feature: u32,
    /// Where to go when the test passes, and when not.
    next: [u32; 2],
}

/// How the weights that a row meets become a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

impl Aggregate {
    /// By its name.
    pub(super) fn named(name: &str) -> TractResult<Self> {
        Ok(match name {
            "SUM" => Self::Sum,
            "AVERAGE" => Self::Average,
            "MIN" => Self::Min,
            "MAX" => Self::Max,
            _ => bail!("there is no aggregate_function {name:?}"),
        })
    }

    /// By its number in opset 5.
    pub(super) fn numbered(number: i64) -> TractResult<Self> {
        Ok(match number {
            0 => Self::Average,
            1 => Self::Sum,
            2 => Self::Min,
            3 => Self::Max,
            _ => bail!("there is no aggregate_function {number}"),
        })
    }
}

/// All trees of an operator, with thresholds and weights of type `V`.
#[derive(Debug)]
pub(super) struct Forest<V> {
    nodes: Vec<Node<V>>,
    roots: Vec<u32>,
    /// The target of every leaf, where each has one weight and all the same target.
    only_target: Option<usize>,
    /// The weights of every leaf, one for each target, where each has as many.
    dense: Vec<V>,
    /// Targets of such a leaf; 0 where leaves differ.
    dense_targets: usize,
    /// Otherwise: where each node's weights lie.
    spans: Vec<(u32, u32)>,
    weights: Vec<(u32, V)>,
    /// Nodes before the first leaf.
    branches: usize,
    /// Whether every test is "at most" and none lets NaN pass.
    is_plain: bool,
    pub(super) features: usize,
}

/// Scores of some rows, and which of them any leaf contributed to.
pub(super) struct Scores<X> {
    pub(super) values: Vec<X>,
    pub(super) is_set: Vec<bool>,
}

/// A position among nodes, weights or features, all of which are fewer than [`MAX_NODES`].
fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// How many nodes a branch becomes.
fn width(test: &Test) -> usize {
    match test {
        Test::LessOrEqual(_) | Test::Less(_) | Test::GreaterOrEqual(_) | Test::Greater(_) => 1,
        Test::Equal(_) | Test::NotEqual(_) => 2,
        // A search by halves ends at an equality for each member.
        Test::Member(values) => (values.len() * 3).saturating_sub(1).max(1),
    }
}

/// The branches that a root leads to, each once, or an error when one leads back to itself.
fn reachable(draft: &Draft) -> TractResult<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Open,
        Done,
    }
    let mut states = vec![State::New; draft.branches.len()];
    let mut order = Vec::with_capacity(draft.branches.len());
    for root in &draft.roots {
        // Each branch twice: on the way in, and once everything below it is done.
        let mut stack = vec![(*root, false)];
        while let Some((next, is_exit)) = stack.pop() {
            let Next::Branch(at) = next else { continue };
            match states[at] {
                _ if is_exit => states[at] = State::Done,
                State::Done => {}
                State::Open => bail!("the trees go round in a circle"),
                State::New => {
                    states[at] = State::Open;
                    order.push(at);
                    let Branch { yes, no, .. } = draft.branches[at];
                    stack.extend([(next, true), (no, false), (yes, false)]);
                }
            }
        }
    }
    Ok(order)
}

impl<V: Float> Forest<V> {
    /// Flattens `draft`.
    pub(super) fn new(draft: &Draft) -> TractResult<Self> {
        let order = reachable(draft)?;
        let size: usize = order.iter().map(|at| width(&draft.branches[*at].test)).sum();
        let weights: usize = draft.leaves.iter().map(Vec::len).sum();
        ensure!(size + draft.leaves.len().max(weights) < MAX_NODES, "it has more than {MAX_NODES} nodes");
        let features = order.iter().map(|at| draft.branches[*at].feature).max().unwrap_or_default();
        ensure!(features < FEATURE as usize, "attribute 'nodes_featureids': {features} is no feature");

        let only_target = draft.leaves.first().and_then(|leaf| leaf.first()).map(|(target, _)| *target);
        let only_target = only_target
            .filter(|target| draft.leaves.iter().all(|leaf| matches!(leaf[..], [(own, _)] if own == *target)));
        let targets = draft.leaves.first().map_or(0, Vec::len);
        let is_dense = |leaf: &Vec<(usize, f64)>| {
            leaf.len() == targets && leaf.iter().enumerate().all(|(at, (target, _))| at == *target)
        };
        let dense_targets = if targets > 1 && draft.leaves.iter().all(is_dense) { targets } else { 0 };
        let mut forest = Self {
            nodes: Vec::with_capacity(size + draft.leaves.len()),
            roots: Vec::new(),
            only_target,
            dense: Vec::with_capacity(dense_targets * draft.leaves.len()),
            dense_targets,
            spans: Vec::new(),
            weights: Vec::new(),
            branches: size,
            is_plain: true,
            features: features + 1,
        };
        let mut places = vec![0_u32; draft.branches.len()];
        let mut free = 0_usize;
        for at in &order {
            places[*at] = place(free);
            free += width(&draft.branches[*at].test);
        }
        let of = |next: Next| match next {
            Next::Branch(at) => places[at],
            Next::Leaf(at) => place(size + at),
        };
        for at in &order {
            let branch = &draft.branches[*at];
            forest.push_branch(branch, of(branch.yes), of(branch.no));
        }
        for leaf in &draft.leaves {
            forest.push_leaf(leaf);
        }
        forest.roots = draft.roots.iter().map(|root| of(*root)).collect();
        forest.is_plain = forest.nodes.iter().all(|node| node.feature & !FEATURE == 0);
        Ok(forest)
    }

    fn push(&mut self, feature: usize, value: f64, strict: bool, missing_passes: bool, next: [u32; 2]) {
        let flags = if strict { STRICT } else { 0 } | if missing_passes { MISSING_PASSES } else { 0 };
        let value = V::from(value).unwrap_or_else(V::nan);
        self.nodes.push(Node { value, feature: place(feature) | flags, next });
    }

    /// A branch as one or several nodes; `yes` and `no` are where it leads.
    fn push_branch(&mut self, branch: &Branch, yes: u32, no: u32) {
        let Branch { feature, missing_is_true: missing, .. } = *branch;
        match &branch.test {
            Test::LessOrEqual(value) => self.push(feature, *value, false, missing, [yes, no]),
            Test::Less(value) => self.push(feature, *value, true, missing, [yes, no]),
            // Turned round, and NaN with it. A threshold of NaN lets nothing pass either way.
            Test::Greater(value) if !value.is_nan() => self.push(feature, *value, false, !missing, [no, yes]),
            Test::GreaterOrEqual(value) if !value.is_nan() => self.push(feature, *value, true, !missing, [no, yes]),
            Test::Greater(value) | Test::GreaterOrEqual(value) => self.push(feature, *value, false, missing, [yes, no]),
            Test::Equal(value) => self.push_equal(feature, *value, missing, yes, no),
            // NaN differs from everything.
            Test::NotEqual(value) => self.push_equal(feature, *value, false, no, yes),
            Test::Member(values) => {
                let mut values = values.clone();
                values.sort_unstable_by(f64::total_cmp);
                self.push_member(feature, &values, missing, yes, no);
            }
        }
    }

    /// At most the value, and then not less.
    fn push_equal(&mut self, feature: usize, value: f64, missing: bool, yes: u32, no: u32) {
        let second = place(self.nodes.len() + 1);
        self.push(feature, value, false, missing, [second, no]);
        self.push(feature, value, true, false, [no, yes]);
    }

    /// Whether the feature is one of `values`, which are in order.
    fn push_member(&mut self, feature: usize, values: &[f64], missing: bool, yes: u32, no: u32) {
        match values {
            [] => self.push(feature, f64::NAN, false, missing, [yes, no]),
            [value] => self.push_equal(feature, *value, missing, yes, no),
            _ => {
                let (lower, upper) = values.split_at(values.len() / 2);
                let here = self.nodes.len();
                let greatest = lower.last().copied().unwrap_or(f64::NAN);
                self.push(feature, greatest, false, false, [place(here + 1), 0]);
                self.push_member(feature, lower, missing, yes, no);
                self.nodes[here].next[1] = place(self.nodes.len());
                self.push_member(feature, upper, missing, yes, no);
            }
        }
    }

    fn push_leaf(&mut self, weights: &[(usize, f64)]) {
        let here = place(self.nodes.len());
        let value = weights.first().map_or(0.0, |(_, weight)| *weight);
        self.push(0, value, false, false, [here, here]);
        if self.dense_targets > 0 {
            self.dense.extend(weights.iter().map(|(_, weight)| V::from(*weight).unwrap_or_else(V::nan)));
        } else if self.only_target.is_none() {
            // Spans are kept by node; branches have none.
            self.spans.resize(self.nodes.len(), (0, 0));
            let from = place(self.weights.len());
            let weigh = |(target, weight): &(usize, f64)| (place(*target), V::from(*weight).unwrap_or_else(V::nan));
            self.weights.extend(weights.iter().map(weigh));
            self.spans[here as usize] = (from, place(self.weights.len()));
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(self.nodes.as_slice())
            + size_of_val(self.dense.as_slice())
            + size_of_val(self.spans.as_slice())
            + size_of_val(self.weights.as_slice())
            + size_of_val(self.roots.as_slice())
    }

    /// Goes on from `at` to leaves, each lane in a row of its own.
    fn descend<X: Float + From<V>, const PLAIN: bool>(
        &self,
        mut at: [u32; LANES],
        rows: &[&[X]; LANES],
    ) -> [u32; LANES] {
        let nodes = self.nodes.as_slice();
        loop {
            let mut moved = 0;
            for (at, row) in at.iter_mut().zip(rows) {
                let node = &nodes[*at as usize];
                let x = row[(node.feature & FEATURE) as usize];
                let value = <X as From<V>>::from(node.value);
                let passes = if PLAIN {
                    x <= value
                } else {
                    (x < value)
                        | ((x == value) & (node.feature & STRICT == 0))
                        | (x.is_nan() & (node.feature & MISSING_PASSES != 0))
                };
                let next = node.next[if passes { 0 } else { 1 }];
                moved |= next ^ *at;
                *at = next;
            }
            if moved == 0 {
                return at;
            }
        }
    }

    /// The scores of `input`'s rows of `columns` features, [`Self::features`] at least.
    pub(super) fn score<X: Float + From<V>>(
        &self,
        input: &[X],
        columns: usize,
        targets: usize,
        aggregate: Aggregate,
    ) -> Scores<X> {
        let rows: Vec<&[X]> = input.chunks_exact(columns).collect();
        let mut scores =
            Scores { values: vec![X::zero(); rows.len() * targets], is_set: vec![false; rows.len() * targets] };
        if self.is_plain {
            self.walk::<X, true>(&rows, &mut scores, targets, aggregate);
        } else {
            self.walk::<X, false>(&rows, &mut scores, targets, aggregate);
        }
        if let Some(target) = self.only_target {
            scores.is_set.chunks_exact_mut(targets).for_each(|row| row[target] = true);
        }
        if self.dense_targets > 0 && !self.roots.is_empty() {
            scores.is_set.chunks_exact_mut(targets).for_each(|row| row[..self.dense_targets].fill(true));
        }
        if aggregate == Aggregate::Average
            && let Some(trees) = <X as NumCast>::from(self.roots.len())
        {
            scores.values.iter_mut().for_each(|score| *score = *score / trees);
        }
        scores
    }

    fn walk<X: Float + From<V>, const PLAIN: bool>(
        &self,
        rows: &[&[X]],
        scores: &mut Scores<X>,
        targets: usize,
        aggregate: Aggregate,
    ) {
        let (eights, rest) = rows.as_chunks::<LANES>();
        // With rows enough, each tree stays in the cache for all of them.
        for root in &self.roots {
            for (block, eight) in eights.iter().enumerate() {
                let leaves = self.descend::<X, PLAIN>([*root; LANES], eight);
                for (lane, leaf) in leaves.iter().enumerate() {
                    self.add(*leaf, block * LANES + lane, scores, targets, aggregate);
                }
            }
        }
        // The others go through several trees at once.
        for (at, row) in rest.iter().enumerate() {
            for roots in self.roots.chunks(LANES) {
                let mut lanes = [roots[0]; LANES];
                lanes[..roots.len()].copy_from_slice(roots);
                let leaves = self.descend::<X, PLAIN>(lanes, &[row; LANES]);
                for leaf in &leaves[..roots.len()] {
                    self.add(*leaf, eights.len() * LANES + at, scores, targets, aggregate);
                }
            }
        }
    }

    /// Adds what `leaf` says to the scores of `row`.
    #[inline]
    fn add<X: Float + From<V>>(
        &self,
        leaf: u32,
        row: usize,
        scores: &mut Scores<X>,
        targets: usize,
        aggregate: Aggregate,
    ) {
        let leaf = leaf as usize;
        let is_sum = matches!(aggregate, Aggregate::Sum | Aggregate::Average);
        if let Some(target) = self.only_target
            && is_sum
        {
            let score = &mut scores.values[row * targets + target];
            *score = *score + <X as From<V>>::from(self.nodes[leaf].value);
            return;
        }
        let width = self.dense_targets;
        let dense = (leaf - self.branches) * width;
        if width > 0 && is_sum {
            let weights = &self.dense[dense..dense + width];
            let scores = &mut scores.values[row * targets..row * targets + width];
            for (score, weight) in scores.iter_mut().zip(weights) {
                *score = *score + <X as From<V>>::from(*weight);
            }
            return;
        }
        let mut take = |target: usize, weight: V| {
            let (at, weight) = (row * targets + target, <X as From<V>>::from(weight));
            let score = &mut scores.values[at];
            *score = match aggregate {
                Aggregate::Sum | Aggregate::Average => *score + weight,
                _ if !scores.is_set[at] => weight,
                Aggregate::Min => {
                    if weight < *score {
                        weight
                    } else {
                        *score
                    }
                }
                Aggregate::Max => {
                    if weight > *score {
                        weight
                    } else {
                        *score
                    }
                }
            };
            scores.is_set[at] = true;
        };
        match self.only_target {
            Some(target) => take(target, self.nodes[leaf].value),
            None if width > 0 => {
                let weights = &self.dense[dense..dense + width];
                weights.iter().enumerate().for_each(|(target, weight)| take(target, *weight));
            }
            None => {
                let (from, to) = self.spans[leaf];
                for (target, weight) in &self.weights[from as usize..to as usize] {
                    take(*target as usize, *weight);
                }
            }
        }
    }
}
