//! What labels say of two models that ran side by side, from the counts of each device.
//!
//! A shadow and its incumbent answered the same rows, so their difference is taken row by row and what sets rows and devices apart cancels; the
//! arms of a split are two groups on the same devices. The device is the unit of every interval.

use muster_shared::comparison::{Accuracy, Errors, LabelReport, PairedLabels, TargetReport};
use muster_shared::labels::{LabelSpec, LabelTask};
use muster_shared::quality::{difference_estimate, mean_estimate, share_estimate};
use muster_shared::sketch::{ClassOutcomes, ErrorSums, LabelOutcomes, RightCounts, TargetOutcomes};
use muster_shared::suppression::K_MIN;

/// Tells what `devices` counted, whose sum is `all`; `incumbent` says what the numbers were counted in. `None` where this version does not know
/// how to.
pub(super) fn report(
    all: &LabelOutcomes,
    devices: &[&LabelOutcomes],
    incumbent: Option<&LabelSpec>,
) -> Option<LabelReport> {
    match all {
        LabelOutcomes::Classes(all) => {
            let devices: Vec<&ClassOutcomes> = devices
                .iter()
                .filter_map(|outcomes| match outcomes {
                    LabelOutcomes::Classes(counts) => Some(counts),
                    LabelOutcomes::Numbers { .. } | LabelOutcomes::Other => None,
                })
                .collect();
            Some(classes(all, &devices))
        }
        LabelOutcomes::Numbers { targets: all } => {
            let target = |(at, all): (usize, &TargetOutcomes)| {
                let devices: Vec<&TargetOutcomes> = devices
                    .iter()
                    .filter_map(|outcomes| match outcomes {
                        LabelOutcomes::Numbers { targets } => targets.get(at),
                        LabelOutcomes::Classes(_) | LabelOutcomes::Other => None,
                    })
                    .collect();
                target(all, &devices, scale_of(incumbent, all.index))
            };
            let least =
                |of: fn(&TargetOutcomes) -> &ErrorSums| all.iter().map(|target| of(target).labels).min().unwrap_or(0);
            Some(
                held_back(least(|t| &t.incumbent), least(|t| &t.candidate))
                    .unwrap_or_else(|| LabelReport::Numbers { targets: all.iter().enumerate().map(target).collect() }),
            )
        }
        LabelOutcomes::Other => None,
    }
}

/// Few labels say little, and may say it of one person.
fn held_back(incumbent: u64, candidate: u64) -> Option<LabelReport> {
    (incumbent.min(candidate) < K_MIN).then_some(LabelReport::TooFew { incumbent, candidate, needed: K_MIN })
}

fn scale_of(spec: Option<&LabelSpec>, index: u32) -> Option<f64> {
    match &spec?.task {
        LabelTask::Regression { targets } => targets.iter().find(|target| target.index == index).map(|t| t.scale),
        LabelTask::Classification { .. } => None,
    }
}

fn accuracy(all: &RightCounts, devices: impl Iterator<Item = RightCounts>) -> Accuracy {
    let devices: Vec<(f64, f64)> = devices.map(|counts| (counts.right as f64, counts.labels as f64)).collect();
    Accuracy { labels: all.labels, right: all.right, accuracy: share_estimate(&devices) }
}

fn classes(all: &ClassOutcomes, devices: &[&ClassOutcomes]) -> LabelReport {
    if let Some(few) = held_back(all.incumbent.labels, all.candidate.labels) {
        return few;
    }
    let is_paired = all.paired() > 0;
    let difference = if is_paired {
        let more_right = |counts: &ClassOutcomes| counts.candidate_right as f64 - counts.incumbent_right as f64;
        let by_device: Vec<(f64, f64)> =
            devices.iter().map(|counts| (more_right(counts), counts.paired() as f64)).collect();
        // Each row in which one alone was right counts 1, squared or not.
        mean_estimate(&by_device, Some(all.candidate_right as f64 + all.incumbent_right as f64))
    } else {
        let ratio = |counts: &RightCounts| (counts.right as f64, counts.labels as f64);
        let by_device: Vec<[(f64, f64); 2]> =
            devices.iter().map(|counts| [ratio(&counts.candidate), ratio(&counts.incumbent)]).collect();
        difference_estimate(&by_device, Some([all.candidate.right as f64, all.incumbent.right as f64]))
    };
    LabelReport::Classes {
        paired: is_paired.then_some(PairedLabels {
            both_right: all.both_right,
            incumbent_right: all.incumbent_right,
            candidate_right: all.candidate_right,
            both_wrong: all.both_wrong,
        }),
        incumbent: accuracy(&all.incumbent, devices.iter().map(|counts| counts.incumbent)),
        candidate: accuracy(&all.candidate, devices.iter().map(|counts| counts.candidate)),
        difference,
    }
}

fn errors(all: &ErrorSums, devices: impl Iterator<Item = ErrorSums>, scale: f64) -> Errors {
    let devices: Vec<(f64, f64)> = devices.map(|sums| (sums.absolute_scales() * scale, sums.labels as f64)).collect();
    let mean_square = all.square_scales() * scale * scale / all.labels as f64;
    Errors {
        labels: all.labels,
        unanswered: all.unanswered,
        mean_absolute_error: mean_estimate(&devices, Some(all.square_scales() * scale * scale)),
        root_mean_square_error: (all.labels > 0).then(|| mean_square.sqrt()),
    }
}

fn target(all: &TargetOutcomes, devices: &[&TargetOutcomes], scale: Option<f64>) -> TargetReport {
    let unit = scale.unwrap_or(1.0);
    let difference = if all.paired() > 0 {
        let by_device: Vec<(f64, f64)> =
            devices.iter().map(|counts| (counts.difference_scales() * unit, counts.paired() as f64)).collect();
        mean_estimate(&by_device, Some(all.difference_square_scales() * unit * unit))
    } else {
        let ratio = |sums: &ErrorSums| (sums.absolute_scales() * unit, sums.labels as f64);
        let by_device: Vec<[(f64, f64); 2]> =
            devices.iter().map(|counts| [ratio(&counts.candidate), ratio(&counts.incumbent)]).collect();
        let squares = |sums: &ErrorSums| sums.square_scales() * unit * unit;
        difference_estimate(&by_device, Some([squares(&all.candidate), squares(&all.incumbent)]))
    };
    TargetReport {
        index: all.index,
        scale,
        incumbent_closer: all.incumbent_closer,
        candidate_closer: all.candidate_closer,
        alike: all.alike,
        incumbent: errors(&all.incumbent, devices.iter().map(|counts| counts.incumbent), unit),
        candidate: errors(&all.candidate, devices.iter().map(|counts| counts.candidate), unit),
        difference,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paired(both: u64, incumbent: u64, candidate: u64, neither: u64) -> LabelOutcomes {
        let labels = both + incumbent + candidate + neither;
        LabelOutcomes::Classes(ClassOutcomes {
            both_right: both,
            incumbent_right: incumbent,
            candidate_right: candidate,
            both_wrong: neither,
            incumbent: RightCounts { labels, right: both + incumbent },
            candidate: RightCounts { labels, right: both + candidate },
        })
    }

    fn sum(devices: &[&LabelOutcomes]) -> LabelOutcomes {
        let (first, rest) = devices.split_first().unwrap();
        let mut sum = (*first).clone();
        rest.iter().for_each(|other| sum.merge(other).unwrap());
        sum
    }

    fn told(devices: &[&LabelOutcomes]) -> LabelReport {
        report(&sum(devices), devices, None).unwrap()
    }

    #[test]
    fn pairs_of_one_device_have_the_interval_of_paired_shares() {
        let LabelReport::Classes { paired: Some(pairs), incumbent, candidate, difference: Some(difference) } =
            told(&[&paired(80, 5, 15, 0)])
        else {
            panic!()
        };
        assert_eq!((pairs.both_right, pairs.candidate_right, incumbent.right, candidate.right), (80, 15, 85, 95));
        // Newcombe (1998), method 8's variance by hand: ((5 + 15) − (15 − 5)²/100) / 100 / 99 (as a sample's), z = 1.959964.
        let half = 1.959_964 * ((20.0 - 1.0_f64) / 100.0 / 99.0).sqrt();
        assert!((difference.value - 0.1).abs() < 1e-12);
        assert!((difference.low.unwrap() - (0.1 - half)).abs() < 1e-6, "{difference:?} {half}");
        assert!((difference.high.unwrap() - (0.1 + half)).abs() < 1e-6);
    }

    #[test]
    fn devices_are_what_pairs_vary_between() {
        let width = |report: LabelReport| match report {
            LabelReport::Classes { difference: Some(difference), .. } => {
                difference.high.unwrap() - difference.low.unwrap()
            }
            other @ (LabelReport::Classes { .. } | LabelReport::Numbers { .. } | LabelReport::TooFew { .. }) => {
                panic!("{other:?}")
            }
        };
        let even = paired(80, 5, 15, 0);
        let alike = width(told(&[&even, &paired(80, 6, 14, 0), &paired(80, 4, 16, 0), &even]));
        let apart = width(told(&[&paired(70, 0, 30, 0), &paired(70, 30, 0, 0), &paired(70, 0, 30, 0), &even]));
        assert!(apart > 5.0 * alike, "{apart} {alike}");
    }

    #[test]
    fn arms_are_two_groups() {
        let arms = LabelOutcomes::Classes(ClassOutcomes {
            incumbent: RightCounts { labels: 70, right: 56 },
            candidate: RightCounts { labels: 30, right: 27 },
            ..ClassOutcomes::default()
        });
        let LabelReport::Classes { paired: None, difference: Some(difference), .. } = told(&[&arms]) else { panic!() };
        assert!((difference.value - 0.1).abs() < 1e-12);
        // Two shares apart: 0.9·0.1/29 + 0.8·0.2/69.
        let half = 1.959_964 * (0.09 / 29.0 + 0.16 / 69.0_f64).sqrt();
        assert!((difference.low.unwrap() - (0.1 - half)).abs() < 1e-6, "{difference:?}");
        // A device on which one arm alone has labels counts as well.
        let lonely = LabelOutcomes::Classes(ClassOutcomes {
            incumbent: RightCounts { labels: 40, right: 30 },
            ..ClassOutcomes::default()
        });
        assert!(matches!(told(&[&arms, &lonely]), LabelReport::Classes { incumbent, .. } if incumbent.labels == 110));
    }

    #[test]
    fn few_labels_are_kept_back() {
        assert_eq!(told(&[&paired(10, 1, 1, 1)]), LabelReport::TooFew { incumbent: 13, candidate: 13, needed: K_MIN });
        assert_eq!(report(&LabelOutcomes::Other, &[], None), None);
    }

    #[test]
    fn numbers_are_told_in_their_own_measure() {
        let sums = |absolute, squares| ErrorSums { labels: 50, unanswered: 1, absolute, squares };
        let outcomes = LabelOutcomes::Numbers {
            targets: vec![TargetOutcomes {
                index: 2,
                incumbent_closer: 10,
                candidate_closer: 38,
                alike: 2,
                larger: 1_000_000,
                smaller: 6_000_000,
                difference_squares: 1_500_000,
                incumbent: sums(10_000_000, 4_000_000),
                candidate: sums(5_000_000, 1_000_000),
            }],
        };
        let targets = vec![muster_shared::labels::LabelTarget { index: 2, scale: 8.0 }];
        let spec = LabelSpec::new("y", LabelTask::Regression { targets });
        let Some(LabelReport::Numbers { targets }) = report(&outcomes, &[&outcomes], Some(&spec)) else { panic!() };
        let target = &targets[0];
        // 10 scales of 8 over 50 labels, and √(4·64/50).
        assert!((target.incumbent.mean_absolute_error.unwrap().value - 1.6).abs() < 1e-9, "{target:?}");
        assert!((target.incumbent.root_mean_square_error.unwrap() - (4.0 * 64.0 / 50.0_f64).sqrt()).abs() < 1e-9);
        assert!((target.difference.unwrap().value + 0.8).abs() < 1e-9, "{target:?}");
        assert!(target.difference.unwrap().high < Some(0.0));
    }
}
