//! What labels say of two models side by side, in words.

use muster_shared::comparison::{Accuracy, Errors, LabelReport, PairedLabels, TargetReport};
use muster_shared::quality::Estimate;

use crate::output::{self, cell, number};

fn between(estimate: Option<&Estimate>, show: impl Fn(f64) -> String) -> String {
    output::optional(estimate, |estimate| output::interval(estimate, &show))
}

/// A difference with its sign; that of shares in percentage points.
fn signed(text: String, value: f64) -> String {
    if value > 0.0 { format!("+{text}") } else { text }
}

fn points(value: f64) -> String {
    signed(format!("{:.2} pp", value * 100.0), value)
}

/// What a difference says, given which sign is good for the candidate.
fn meaning(difference: Option<&Estimate>, better: f64) -> &'static str {
    let Some((low, high)) = difference.and_then(|estimate| estimate.low.zip(estimate.high)) else {
        return "how sure that is cannot be told";
    };
    if low > 0.0 || high < 0.0 {
        if (low > 0.0) == (better > 0.0) { "the candidate is better" } else { "the candidate is worse" }
    } else {
        "no difference beyond chance"
    }
}

fn accuracy_row(name: &str, of: &Accuracy) -> Vec<comfy_table::Cell> {
    let share = between(of.accuracy.as_ref(), output::percent);
    vec![cell(name), number(of.labels.to_string()), number(of.right.to_string()), cell(share)]
}

fn errors_row(name: &str, of: &Errors) -> Vec<comfy_table::Cell> {
    let root = of.root_mean_square_error.map_or_else(|| "-".to_owned(), output::significant);
    vec![
        cell(name),
        number(of.labels.to_string()),
        number(of.unanswered.to_string()),
        cell(between(of.mean_absolute_error.as_ref(), output::significant)),
        number(root),
    ]
}

fn target_text(target: &TargetReport) -> String {
    let measure = if target.scale.is_some() { "" } else { ", in shares of its scale" };
    let mut text = output::clean(&format!("labels of element {}{measure}:\n", target.index));
    text.push_str(&output::table(
        &["model", "labels", "unanswered", "MAE (95 %)", "RMSE"],
        [errors_row("incumbent", &target.incumbent), errors_row("candidate", &target.candidate)],
    ));
    let rows = target.incumbent_closer + target.candidate_closer + target.alike;
    if rows > 0 {
        text.push_str(&format!(
            "\nof {rows} row(s) that both answered, the candidate came closer in {}, the incumbent in {}, both alike in {}",
            target.candidate_closer, target.incumbent_closer, target.alike
        ));
    }
    let show = |value: f64| signed(output::significant(value), value);
    text.push_str(&format!(
        "\nMAE of the candidate less the incumbent's (95 %): {}: {}",
        between(target.difference.as_ref(), show),
        meaning(target.difference.as_ref(), -1.0)
    ));
    text
}

fn pairs_table(pairs: &PairedLabels) -> String {
    let row =
        |name: &str, right: u64, wrong: u64| vec![cell(name), number(right.to_string()), number(wrong.to_string())];
    output::table(
        &["same rows", "candidate right", "candidate wrong"],
        [
            row("incumbent right", pairs.both_right, pairs.incumbent_right),
            row("incumbent wrong", pairs.candidate_right, pairs.both_wrong),
        ],
    )
}

/// The report as people read it.
pub(super) fn text(report: &LabelReport) -> String {
    match report {
        LabelReport::Classes { paired, incumbent, candidate, difference } => {
            let table = output::table(
                &["model", "labels", "right", "accuracy (95 %)"],
                [accuracy_row("incumbent", incumbent), accuracy_row("candidate", candidate)],
            );
            let basis = if paired.is_some() { "row by row" } else { "between two groups of requests" };
            let last = format!(
                "accuracy of the candidate less the incumbent's (95 %), {basis}: {}: {}",
                between(difference.as_ref(), points),
                meaning(difference.as_ref(), 1.0)
            );
            let pairs = paired.as_ref().map(pairs_table);
            ["labels:".to_owned(), table].into_iter().chain(pairs).chain([last]).collect::<Vec<_>>().join("\n")
        }
        LabelReport::Numbers { targets } => targets.iter().map(target_text).collect::<Vec<_>>().join("\n"),
        LabelReport::TooFew { incumbent, candidate, needed } => format!(
            "labels: {incumbent} of the incumbent's answers and {candidate} of the candidate's; nothing is shown below {needed} of each"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_say_who_is_better() {
        let estimate =
            |value: f64, half: f64| Some(Estimate { value, low: Some(value - half), high: Some(value + half) });
        let accuracy =
            |labels, right| Accuracy { labels, right, accuracy: estimate(right as f64 / labels as f64, 0.01) };
        let of = |difference, paired| {
            text(&LabelReport::Classes {
                paired,
                incumbent: accuracy(100, 85),
                candidate: accuracy(100, 95),
                difference,
            })
        };
        let pairs = PairedLabels { both_right: 80, incumbent_right: 5, candidate_right: 15, both_wrong: 0 };
        let words = of(estimate(0.1, 0.02), Some(pairs));
        for part in ["(95 %), row by row: +10.00 pp (+8.00 pp to +12.00 pp): the candidate is better", "80", "15"] {
            assert!(words.contains(part), "{part:?} is not in {words}");
        }
        assert!(of(estimate(-0.1, 0.02), None).contains("two groups of requests: -10.00 pp"));
        assert!(of(estimate(-0.1, 0.02), None).ends_with("the candidate is worse"));
        assert!(of(estimate(0.01, 0.02), None).ends_with("no difference beyond chance"));
        let errors = Errors {
            labels: 40,
            unanswered: 1,
            mean_absolute_error: estimate(2.0, 0.5),
            root_mean_square_error: Some(3.0),
        };
        let target = TargetReport {
            index: 2,
            scale: Some(8.0),
            incumbent_closer: 10,
            candidate_closer: 28,
            alike: 2,
            incumbent: errors,
            candidate: errors,
            difference: estimate(-0.5, 0.1),
        };
        let words = text(&LabelReport::Numbers { targets: vec![target] });
        assert!(words.contains("element 2:") && words.contains("came closer in 28"), "{words}");
        assert!(words.ends_with("the candidate is better"), "{words}");
        let few = text(&LabelReport::TooFew { incumbent: 3, candidate: 4, needed: 20 });
        assert!(few.contains("nothing is shown below 20"), "{few}");
    }
}
