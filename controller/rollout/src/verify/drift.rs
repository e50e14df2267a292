//! Rules about predictions: counted as reported, and compared by every choice of canaries that the statistic is to be held against.

use muster_shared::ids::RolloutId;
use muster_shared::rollout::{Block, GateEvidence, PredictedClasses, ScoredDevice};
use sha2::{Digest, Sha256};

use super::Case;

/// Choices up to which all are looked at, and how many are drawn beyond.
const ALL_UP_TO: usize = 10_000;
const DRAWN: usize = 4_999;

/// The first eight bytes of SHA-256 over the rollout, a zero byte and the wave.
pub(super) fn seed(rollout: &RolloutId, wave: u32) -> u64 {
    let digest = Sha256::digest(format!("{rollout}\0wave {wave}").as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

impl Case<'_> {
    /// Whether what a canary is said to have predicted is what it reported since the soak began.
    pub(super) fn predictions_are_right(&self, judged: &GateEvidence, canary: &ScoredDevice) -> bool {
        let (Some(classes), false) = (&judged.predicted, canary.predicted.is_empty()) else { return true };
        let (Some(target), Some(facts)) =
            (self.before.targets.get(&canary.device), self.fleet.devices.get(&canary.device))
        else {
            return false;
        };
        let reported = |column: &str, class: Option<&String>| -> u64 {
            let own =
                facts.soak.iter().filter(|e| (Some(e.manifest), e.generation) == (target.manifest, target.generation));
            let counts = own.filter_map(|e| e.predictions.get(column)).flatten();
            counts.filter(|(name, _)| class.is_none_or(|class| *name == class)).map(|(_, n)| n).sum()
        };
        let mut expected = Vec::new();
        for column in &classes.columns {
            let named: Vec<u64> = column.classes.iter().map(|class| reported(&column.column, Some(class))).collect();
            let rest = reported(&column.column, None) - named.iter().sum::<u64>();
            expected.extend(named);
            expected.push(rest);
        }
        canary.predicted == expected
    }
}

/// The p-value of the greatest standardised difference of a class's share; none where there is nothing to compare.
pub(super) fn p_value(blocks: &[Block<ScoredDevice>], classes: &PredictedClasses) -> Option<f64> {
    let cells: Vec<usize> = classes.columns.iter().map(|column| column.classes.len() + 1).collect();
    let shares = |device: &ScoredDevice| -> Option<Vec<f64>> {
        let mut counts = device.predicted.iter().map(|n| *n as f64);
        let mut all = Vec::new();
        for n in &cells {
            let own: Vec<f64> = counts.by_ref().take(*n).collect();
            let total: f64 = own.iter().sum();
            if total == 0.0 {
                return None;
            }
            all.extend(own.iter().map(|count| count / total));
        }
        Some(all).filter(|all| !all.is_empty())
    };
    // Devices of each block, the canary first.
    let tables: Vec<Vec<Vec<f64>>> = blocks
        .iter()
        .filter_map(|block| {
            let mut all = vec![shares(&block.canary)?];
            all.extend(block.controls.iter().filter_map(shares));
            (all.len() > 1).then_some(all)
        })
        .collect();
    let width = tables.first()?.first()?.len();
    // The mean difference of class `f` if device `c` of a block were its canary, straight from its definition.
    let difference = |table: &[Vec<f64>], c: usize, f: usize| {
        let others = table.iter().enumerate().filter(|(at, _)| *at != c).map(|(_, own)| own[f]);
        table[c][f] - others.sum::<f64>() / (table.len() - 1) as f64
    };
    let all: Vec<Vec<Vec<f64>>> = tables
        .iter()
        .map(|table| (0..table.len()).map(|c| (0..width).map(|f| difference(table, c, f)).collect()).collect())
        .collect();
    let deviation = |f: usize| {
        let mean_square = |block: &Vec<Vec<f64>>| block.iter().map(|d| d[f] * d[f]).sum::<f64>() / block.len() as f64;
        all.iter().map(mean_square).sum::<f64>().sqrt()
    };
    let deviations: Vec<f64> = (0..width).map(deviation).collect();
    let greatest = |choice: &dyn Fn(usize) -> usize| {
        let of = |f: usize| all.iter().enumerate().map(|(b, block)| block[choice(b)][f]).sum::<f64>().abs();
        let standardised = (0..width).filter(|f| deviations[*f] > 1e-12).map(|f| of(f) / deviations[f]);
        standardised.fold(0.0, f64::max)
    };
    let observed = greatest(&|_| 0);
    if observed == 0.0 && deviations.iter().all(|deviation| *deviation <= 1e-12) {
        return None;
    }
    let reaches = |choice: &[usize]| greatest(&|b| choice[b]) >= observed * (1.0 - 1e-9);
    let choices = all.iter().try_fold(1usize, |n, block| n.checked_mul(block.len()).filter(|n| *n <= ALL_UP_TO));
    if let Some(choices) = choices {
        let digits = |mut number: usize| -> Vec<usize> {
            let digit = |block: &Vec<Vec<f64>>| {
                let digit = number % block.len();
                number /= block.len();
                digit
            };
            all.iter().map(digit).collect()
        };
        return Some((0..choices).filter(|number| reaches(&digits(*number))).count() as f64 / choices as f64);
    }
    let mut state = classes.seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let one = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let two = (one ^ (one >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        two ^ (two >> 31)
    };
    let drawn = (0..DRAWN).filter(|_| {
        let places = all.iter().map(|block| usize::try_from(next() % block.len() as u64).unwrap_or_default());
        let choice: Vec<usize> = places.collect();
        reaches(&choice)
    });
    Some((1 + drawn.count()) as f64 / (DRAWN + 1) as f64)
}
