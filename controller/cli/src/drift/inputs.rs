//! What was wrong or odd with inputs, as tables.

use comfy_table::Cell;
use muster_shared::api::{DataFault, DataQuality, OutlierRates};
use muster_shared::data_schema::Handling;

use crate::output::{self, Tone, cell, number, toned};

fn handling(fault: &DataFault) -> Cell {
    let word = output::word(&fault.handling);
    match fault.handling {
        Handling::Counted => cell(word),
        Handling::Flagged | Handling::Imputed => toned(word, Tone::Busy),
        Handling::Rejected => toned(word, Tone::Bad),
    }
}

fn verdict(exceeded: bool, is_above: bool) -> Cell {
    match (exceeded, is_above) {
        (true, _) => toned("exceeded", Tone::Bad),
        (false, true) => toned("chance", Tone::Busy),
        (false, false) => toned("within", Tone::Good),
    }
}

/// Faults by feature and cause, and features whose missing values have a limit.
pub(super) fn quality(quality: &DataQuality) -> String {
    // Without a schema there are only requests that were not of the model's types and shapes.
    let head = if quality.rows == 0 {
        "inputs: no row was held against a data schema".to_owned()
    } else {
        format!(
            "inputs against the data schema: {} row(s); requests: {} rejected, {} flagged, {} imputed",
            quality.rows, quality.rejected, quality.flagged, quality.imputed
        )
    };
    let mut parts = vec![head];
    let rows = quality.faults.iter().map(|fault| {
        vec![
            cell(fault.feature.as_deref().unwrap_or("(row or request)")),
            cell(output::word(&fault.cause)),
            number(fault.count.to_string()),
            number(output::optional(fault.share, output::percent)),
            handling(fault),
        ]
    });
    if !quality.faults.is_empty() {
        parts.push(output::table(&["feature", "cause", "count", "share of rows", "done"], rows));
    }
    if !quality.missing_limits.is_empty() {
        let limits = quality.missing_limits.iter().map(|limit| {
            vec![
                cell(&limit.feature),
                number(output::percent(limit.share)),
                number(output::percent(limit.limit)),
                number(format!("{:.0}", limit.n_effective)),
                number(output::optional(limit.q_value, output::significant)),
                verdict(limit.exceeded, limit.share > limit.limit),
            ]
        });
        let table = output::table(&["feature", "missing", "allowed", "n eff", "q", "verdict"], limits);
        parts.push(format!("\nmissing values, where the schema sets max-missing-share\n{table}"));
    }
    parts.join("\n")
}

/// Rates by cause, beside what the profile expects.
pub(super) fn outliers(outliers: &OutlierRates) -> String {
    let rows = outliers.rates.iter().map(|rate| {
        vec![
            cell(output::word(&rate.cause)),
            number(rate.count.to_string()),
            number(output::percent(rate.share)),
            number(output::percent(rate.expected)),
            number(format!("{:.0}", rate.n_effective)),
            number(output::optional(rate.q_value, output::significant)),
            verdict(rate.exceeded, rate.share > rate.expected),
        ]
    });
    let head = format!("outliers of the reference: {} row(s) looked at", outliers.rows);
    let table = output::table(&["cause", "rows", "share", "expected at most", "n eff", "q", "verdict"], rows);
    format!("{head}\n{table}")
}
