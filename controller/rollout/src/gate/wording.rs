//! What a comparison showed, in sentences.

use muster_shared::rollout::{DriftReport, GateReport, Guardrail, GuardrailReport, Metric, Outcome, ScoreRange};

use crate::statistics::MIN_BLOCKS;
use crate::wording::{count, counted, latency};

/// Odds above this are not spelt out.
const LARGE_LOG_ODDS: f64 = 13.8;

fn name(guardrail: &Guardrail) -> String {
    let range = |what: &str, unit: &str| match guardrail.range {
        Some(ScoreRange { best, worst }) => format!("{what} from {best}{unit} to {worst}{unit}"),
        None => what.to_owned(),
    };
    match (guardrail.metric, guardrail.above_us, &guardrail.name) {
        (Metric::LatencyShare, Some(edge_us), _) => format!("share of requests above {}", latency(edge_us as f64)),
        (Metric::Confidence, ..) => "lack of confidence".to_owned(),
        (Metric::Memory, ..) => range("memory", " B"),
        (Metric::Temperature, ..) => range("temperature", " °C"),
        (Metric::PredictionDrift, ..) => "predictions".to_owned(),
        (Metric::Custom, _, Some(name)) => range(name.as_str(), ""),
        (metric, ..) => metric.to_string(),
    }
}

/// A share as percentage points, with its sign.
fn points(share: f64) -> String {
    // What rounds to nothing has no sign.
    let shown = if share.abs() < 5e-5 { 0.0 } else { share * 100.0 };
    format!("{shown:+.2} points")
}

fn odds(log_e: f64) -> String {
    match log_e {
        large if large > LARGE_LOG_ODDS => "more than a million to 1".to_owned(),
        log_e => format!("{:.1} to 1", log_e.exp()),
    }
}

/// What one guardrail showed.
pub(super) fn guardrail(report: &GuardrailReport) -> String {
    let GuardrailReport { guardrail, outcome, blocks, mean_difference, upper_bound, .. } = report;
    let name = name(guardrail);
    if let Some(drift) = &report.drift {
        return predictions(drift, *blocks);
    }
    let Some(mean) = mean_difference else { return format!("{name}: nothing to compare") };
    let basis = format!("{name} {} over {}", points(*mean), counted(u64::from(*blocks), "block"));
    if let Some(gain) = guardrail.margin.filter(|_| guardrail.asks_for_gain()) {
        return experiment(report, gain, &basis);
    }
    match (outcome, guardrail.margin, upper_bound) {
        (Outcome::Failed, _, _) => format!("{basis}, evidence {}", odds(report.log_e)),
        (_, None, _) => format!("{basis}, evidence of a loss {}", odds(report.log_e)),
        (_, Some(_), None) => format!("{basis}, {MIN_BLOCKS} needed to rule anything out"),
        (Outcome::Successful, Some(margin), Some(bound)) => {
            format!("{basis}, at most {}, {} allowed", points(*bound), points(margin))
        }
        (_, Some(margin), Some(bound)) => {
            let enough =
                more_canaries(report).map_or_else(|| "what would tell is".to_owned(), |enough| format!("{enough}, or"));
            // The next tenth of a point that the bound lies below.
            let wider = (bound * 1_000.0).floor() / 1_000.0 + 0.001;
            format!(
                "{basis}, up to {} is not ruled out, {} allowed: {enough} a margin of {:.1} points",
                points(*bound),
                points(margin),
                wider * 100.0
            )
        }
    }
}

/// How many more devices would tell, if any number would.
fn more_canaries(report: &GuardrailReport) -> Option<String> {
    let more = report.blocks_needed?.checked_sub(report.blocks).filter(|more| *more > 0)?;
    Some(format!("{} more canaries like these would tell", count(u64::from(more))))
}

/// What an experiment showed of what should have become better by more than `gain`, a margin of 0 or less.
fn experiment(report: &GuardrailReport, gain: f64, basis: &str) -> String {
    let GuardrailReport { outcome, upper_bound, .. } = report;
    let asked = format!("{} or less asked for", points(gain));
    match (outcome, upper_bound) {
        (Outcome::Failed, _) => format!("{basis}, {asked}, evidence of a loss {}", odds(report.log_e)),
        (_, None) => format!("{basis}, {asked}, {MIN_BLOCKS} needed to show anything"),
        (Outcome::Successful, Some(bound)) => format!("{basis}, better: at most {}, {asked}", points(*bound)),
        (_, Some(bound)) => {
            let told = more_canaries(report);
            let told = told.unwrap_or_else(|| "no number of canaries like these would show it".to_owned());
            format!("{basis}, not shown to be better: up to {} is not ruled out, {asked}; {told}", points(*bound))
        }
    }
}

/// What the predictions showed.
fn predictions(drift: &DriftReport, blocks: u32) -> String {
    let DriftReport { p_value, level, least_p_value, column, class, difference, .. } = drift;
    let class = class.as_ref().map_or_else(|| "the rest".to_owned(), |class| format!("{class:?}"));
    let basis = format!(
        "predictions: {class} of {column} {} over {}, p = {p_value:.2$}",
        points(*difference),
        counted(u64::from(blocks), "block"),
        if *p_value < 0.01 { 4 } else { 2 }
    );
    match least_p_value > level {
        true => format!(
            "{basis}, and with so few blocks no p-value is below {least_p_value:.4}, where {level:.4} is enough"
        ),
        false => format!("{basis}, where {level:.4} is enough"),
    }
}

/// What the whole showed.
pub(super) fn report(report: &GateReport) -> String {
    let sentences = |wanted: &dyn Fn(&GuardrailReport) -> bool| {
        let all = report.guardrails.iter().filter(|report| wanted(report)).map(|report| report.sentence.as_str());
        all.collect::<Vec<_>>().join("; ")
    };
    match report.outcome {
        Outcome::Failed => format!(
            "canaries are worse than their controls, evidence {} where {} is enough: {}",
            odds(report.log_e),
            odds(report.log_threshold),
            sentences(&|report| report.outcome == Outcome::Failed)
        ),
        Outcome::Successful => format!("canaries are not worse than allowed: {}", sentences(&|_| true)),
        Outcome::Inconclusive | Outcome::Error if report.limits_only => match report.blocks {
            0 => "limits only, nobody is left to compare with".to_owned(),
            blocks => format!(
                "limits only, {} of canaries and controls, {MIN_BLOCKS} needed to compare",
                counted(u64::from(blocks), "block")
            ),
        },
        Outcome::Inconclusive | Outcome::Error => {
            let open = sentences(&|report| report.outcome != Outcome::Successful);
            format!("it is not shown that canaries are not worse: {open}")
        }
    }
}
