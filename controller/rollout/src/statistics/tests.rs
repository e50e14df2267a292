//! What must hold of any scores. How often verdicts are wrong is simulated in `tests/it/gate.rs` and `muster-bench gate`.

use muster_shared::rollout::Block;
use proptest::prelude::*;

use super::margin::half_width;
use super::*;

fn block(canary: f64, controls: &[f64]) -> Block<f64> {
    Block { canary, controls: controls.to_vec() }
}

fn member(device: u32, stratum: &str, is_canary: bool) -> Member<u32, String> {
    Member { device, stratum: stratum.into(), is_canary }
}

#[test]
fn waves_spend_what_there_is_and_no_more() {
    assert!((wave_alpha(0.05, 0, 1) - 0.05).abs() < 1e-12);
    // 1, 1/4 and 1/9 of 49/36.
    let three = [0.036_734_69, 0.009_183_67, 0.004_081_63];
    for (wave, expected) in (0..).zip(three) {
        assert!((wave_alpha(0.05, wave, 3) - expected).abs() < 1e-8, "{wave}");
    }
    // Of very many waves the first gets 6/π² of it, and none more than is left.
    assert!((wave_alpha(0.05, 0, 100_000) - 0.030_396).abs() < 1e-6);
    assert!(wave_alpha(0.05, 7, 3) < wave_alpha(0.05, 7, 8) * 1.000_001, "a wave past the last is one more");
}

#[test]
fn a_bound_is_what_the_formula_gives_by_hand() {
    let mut margin = Margin::default();
    // 50 differences of ±1 around 0.5: the mean is 0.5, the sample's deviation √(50/49).
    for n in 0..50 {
        assert_eq!(margin.upper_bound(0.05).is_some(), n >= MIN_BLOCKS);
        margin.add(&block(if n % 2 == 0 { 2.5 } else { 0.5 }, &[0.0, 2.0]));
    }
    // √(2 · 5.5 / (2500 · 0.09) · ln(√5.5 / 0.05)) = √(0.048889 · 3.848105) = 0.433741
    let expected = 0.5 + (50.0_f64 / 49.0).sqrt() * 0.433_741;
    assert!((margin.upper_bound(0.05).unwrap() - expected).abs() < 1e-5, "{:?} {expected}", margin.upper_bound(0.05));
    assert_eq!(margin.blocks_needed(0.05, 0.5), None, "the mean itself is no better");
    assert_eq!(margin.blocks_needed(0.05, 1.5), Some(50), "there are enough");
}

#[test]
fn evidence_is_what_the_formula_gives_by_hand() {
    assert!([0.0, -1.0, f64::NAN, f64::INFINITY].iter().all(|scale| EProcess::new(*scale, 10).is_none()));
    let mut process = EProcess::new(1.0, 10).unwrap();
    assert_eq!((process.log_e(), process.rejects(0.05)), (0.0, false));
    // However far the one canary stands out, a block of two brings no more than a factor of two for each λ.
    process.add(&block(1_000.0, &[0.0]));
    assert!((process.log_e() - 2.0_f64.ln()).abs() < 1e-9);
    for _ in 0..4 {
        process.add(&block(1_000.0, &[0.0]));
    }
    assert!((process.log_e() - 32.0_f64.ln()).abs() < 1e-9 && process.rejects(0.05) && !process.rejects(0.03));
}

/// Beside numpy: in 4,000 draws of the formulas, a loss of so many spreads was seen four times in five.
#[test]
fn what_a_gate_will_tell_is_known_before() {
    let near = |found: Option<f64>, expected: f64| found.is_some_and(|found| (found / expected - 1.0).abs() < 0.12);
    for (blocks, controls, loss) in [(20, 1, 1.125), (50, 1, 0.6875), (20, 4, 0.859)] {
        let power = power(blocks, controls, 0.05);
        assert!(near(power.least_loss, loss), "{blocks} 1:{controls}: {power:?}");
    }
    assert_eq!(power(9, 4, 0.05).least_margin, None, "fewer than ten prove nothing");
    assert_eq!(power(0, 4, 0.05), Power::default());
    assert!(power(3, 1, 0.05).least_loss.is_none(), "three pairs bring a factor of eight at most");
}

#[test]
fn controls_are_dealt_in_turns_within_their_stratum() {
    let members = [
        member(1, "lyon", true),
        member(2, "quito", true),
        member(3, "lyon", true),
        member(4, "osaka", true),
        member(5, "lyon", false),
        member(6, "quito", false),
        member(7, "lyon", false),
        member(8, "lyon", false),
        member(9, "berne", false),
    ];
    let made = blocks(members, 2);
    let all: Vec<(u32, Vec<u32>)> = made.into_iter().map(|block| (block.canary, block.controls)).collect();
    assert_eq!(all, [(1, vec![5, 8]), (2, vec![6]), (3, vec![7])], "osaka has no control, berne no canary");
}

/// Every way to choose one of each block's scores as its canary.
fn choices(blocks: &[Vec<f64>]) -> Vec<Vec<Block<f64>>> {
    blocks.iter().fold(vec![Vec::new()], |choices, scores| {
        let with_block = |choice: Vec<Block<f64>>| {
            (0..scores.len()).map(move |at| {
                let mut controls = scores.clone();
                let canary = controls.remove(at);
                choice.iter().cloned().chain([Block { canary, controls }]).collect()
            })
        };
        choices.into_iter().flat_map(with_block).collect()
    })
}

proptest! {
    /// What the error rate rests on: whatever devices score, over all ways chance could have chosen canaries the evidence is 1.
    #[test]
    fn evidence_is_one_on_average_over_all_choices_of_canaries(
        scores in prop::collection::vec(prop::collection::vec(-3.0f64..3.0, 2..5), 1..5),
        scale in 0.2f64..5.0,
    ) {
        let choices = choices(&scores);
        let e = |blocks: &Vec<Block<f64>>| {
            let mut process = EProcess::new(scale, 10).unwrap();
            blocks.iter().for_each(|block| process.add(block));
            process.log_e().exp()
        };
        let mean = choices.iter().map(e).sum::<f64>() / choices.len() as f64;
        prop_assert!((mean - 1.0).abs() < 1e-6, "{mean}");
    }

    #[test]
    fn evidence_does_not_depend_on_order_or_unit_and_survives_any_number(
        scores in prop::collection::vec(prop::collection::vec(any::<f64>(), 1..5), 0..8),
        unit in 0.01f64..100.0,
    ) {
        let run = |blocks: Vec<Block<f64>>, scale: f64| {
            let mut process = EProcess::new(scale, 10).unwrap();
            blocks.iter().for_each(|block| process.add(block));
            (process.log_e(), process.blocks())
        };
        let made = |unit: f64| -> Vec<Block<f64>> {
            scores.iter().map(|s| block(s[0] * unit, &s[1..].iter().map(|x| x * unit).collect::<Vec<_>>())).collect()
        };
        let mut reversed = made(1.0);
        reversed.reverse();
        let (forward, backward) = (run(made(1.0), 1.0), run(reversed, 1.0));
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(1.0);
        prop_assert!(close(forward.0, backward.0) && forward.1 == backward.1);
        let bounded = scores.iter().flatten().all(|x| x.abs() < 1e100);
        prop_assert!(!bounded || close(forward.0, run(made(unit), unit).0), "{forward:?}");
    }

    #[test]
    fn a_bound_lies_above_the_mean_and_falls_with_what_is_spent(
        differences in prop::collection::vec(-1.0f64..1.0, 10..80),
    ) {
        let mut margin = Margin::default();
        differences.iter().for_each(|d| margin.add(&block(*d, &[0.0])));
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        let (loose, tight) = (margin.upper_bound(0.2).unwrap(), margin.upper_bound(0.01).unwrap());
        prop_assert!((margin.mean() - mean).abs() < 1e-12 && mean <= loose && loose <= tight);
        // The least number that is enough: with one less it is not.
        if let Some(needed) = margin.blocks_needed(0.05, mean + 0.2) {
            let deviation = (margin.upper_bound(0.05).unwrap() - mean) / half_width(differences.len() as f64, 0.05);
            let bound = |n: u32| deviation * half_width(f64::from(n), 0.05);
            prop_assert!(bound(needed) < 0.2);
            prop_assert!(needed as usize == differences.len() || bound(needed - 1) >= 0.2);
        }
    }

    #[test]
    fn nobody_is_in_two_blocks_and_each_has_its_own_kind(
        devices in prop::collection::vec((0u8..4, any::<bool>()), 0..60),
        controls in 0usize..5,
    ) {
        let members = devices.iter().enumerate().map(|(device, (stratum, is_canary))| Member { device, stratum: *stratum, is_canary: *is_canary });
        let made = blocks(members, controls);
        let mut seen = std::collections::BTreeSet::new();
        for block in &made {
            prop_assert!(devices[block.canary].1 && !block.controls.is_empty() && block.controls.len() <= controls);
            for device in block.controls.iter().chain([&block.canary]) {
                prop_assert!(seen.insert(*device));
                prop_assert_eq!(devices[*device].0, devices[block.canary].0);
            }
            prop_assert!(block.controls.iter().all(|device| !devices[*device].1));
        }
        // In a stratum, no canary has two controls more than another.
        for stratum in 0..4u8 {
            let sizes: Vec<usize> = made.iter().filter(|b| devices[b.canary].0 == stratum).map(|b| b.controls.len()).collect();
            let spread = sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0);
            prop_assert!(spread <= 1, "{sizes:?}");
        }
    }

    /// Whoever of each block is the canary, not more than a share α of the choices is called different at α: that is what the test rests on.
    #[test]
    fn equal_bundles_differ_as_rarely_as_the_p_value_says(
        tables in prop::collection::vec(prop::collection::vec(prop::collection::vec(0u8..4, 3), 2..4), 1..5),
    ) {
        let sizes: Vec<usize> = tables.iter().map(Vec::len).collect();
        let all: usize = sizes.iter().product();
        let of = |mut number: usize| -> Vec<Block<Vec<f64>>> {
            tables.iter().map(|table| {
                let canary = number % table.len();
                number /= table.len();
                let mut devices: Vec<Vec<f64>> = table.iter().map(|own| own.iter().map(|x| f64::from(*x)).collect()).collect();
                Block { canary: devices.remove(canary), controls: devices }
            }).collect()
        };
        let found: Vec<MaxT> = (0..all).filter_map(|number| max_t(&of(number), 1)).collect();
        prop_assert!(found.is_empty() || found.len() == all);
        for alpha in [0.01, 0.05, 0.1, 0.25, 0.5] {
            let rejected = found.iter().filter(|one| one.p_value <= alpha).count();
            prop_assert!(rejected as f64 <= alpha * all as f64 + 1e-9, "{rejected} of {all} at {alpha}");
        }
        for one in &found {
            prop_assert!(one.exact && one.choices as usize == all && one.p_value >= one.least - 1e-12, "{one:?}");
        }
        // Scaled and shifted numbers say the same.
        if let Some(first) = found.first() {
            let mut blocks = of(0);
            for block in &mut blocks {
                std::iter::once(&mut block.canary).chain(&mut block.controls).for_each(|own| own[1] = own[1] * 8.0 + 3.0);
            }
            let scaled = max_t(&blocks, 1).unwrap();
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + b.abs());
            prop_assert!(close(scaled.p_value, first.p_value) && close(scaled.statistic, first.statistic));
        }
    }
}

#[test]
fn choices_that_are_drawn_are_the_same_again_and_say_about_the_same_as_all() {
    // 13 pairs have 8,192 choices, 14 twice as many.
    let pairs = |n: usize| -> Vec<Block<Vec<f64>>> {
        let own = |at: usize, by: f64| vec![(at * 7 % 5) as f64 + by, (at * 3 % 7) as f64];
        (0..n).map(|at| Block { canary: own(at, 0.9), controls: vec![own(at + 2, 0.0)] }).collect()
    };
    let (all, drawn) = (max_t(&pairs(13), 1).unwrap(), max_t(&pairs(14), 1).unwrap());
    assert_eq!((all.exact, all.choices, drawn.exact, drawn.choices), (true, 8_192, false, 5_000));
    assert_eq!(max_t(&pairs(14), 1).unwrap(), drawn);
    let other = max_t(&pairs(14), 2).unwrap();
    // Four standard errors of what is drawn.
    let error = 4.0 * (2.0 * drawn.p_value * (1.0 - drawn.p_value) / 5_000.0).sqrt();
    assert!((other.p_value - drawn.p_value).abs() <= error, "{other:?} {drawn:?}");
    assert!(max_t(&[], 1).is_none());
    assert!(max_t(&[Block { canary: vec![1.0], controls: vec![vec![1.0]] }], 1).is_none());
}
