//! Metrics for scrapers that do not know OpenMetrics.

/// The content type of OpenMetrics' text form.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of Prometheus' text form.
pub const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The content type and form of `openmetrics` for a scraper that sent this `Accept`: OpenMetrics where it names that, else the
/// text form of Prometheus 0.0.4, which everything reads.
#[must_use]
pub fn for_scraper(accept: Option<&str>, openmetrics: String) -> (&'static str, String) {
    if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
        (OPENMETRICS, openmetrics)
    } else {
        let text = prometheus_text(&openmetrics);
        (PROMETHEUS_TEXT, text)
    }
}

/// OpenMetrics' text as Prometheus had it before. There a family is named as its samples are: a counter's with `_total`, an info's
/// with `_info`, which is a gauge; units and the end have no line.
#[must_use]
pub fn prometheus_text(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    // The help of a family comes before its type, which decides its name.
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take().filter(|(named, _)| *named == name) {
                push(&mut out, &["# HELP ", name, suffix, " ", text]);
            }
            push(&mut out, &["# TYPE ", name, suffix, " ", kind]);
        } else if !line.starts_with('#') {
            push(&mut out, &[line]);
        }
    }
    out
}

fn push(out: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| out.push_str(part));
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = "# HELP a_requests Requests of all.\n# TYPE a_requests counter\na_requests_total{x=\"1\"} 5\n\
        # HELP a_build What runs.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
        # HELP a_lag_seconds Lag.\n# TYPE a_lag_seconds histogram\n# UNIT a_lag_seconds seconds\na_lag_seconds_sum 1.0\n# EOF\n";

    #[test]
    fn families_are_named_as_their_samples() {
        let (kind, text) = for_scraper(Some("text/plain"), OPEN.into());
        assert_eq!(kind, PROMETHEUS_TEXT);
        assert_eq!(
            text,
            "# HELP a_requests_total Requests of all.\n# TYPE a_requests_total counter\na_requests_total{x=\"1\"} 5\n\
             # HELP a_build_info What runs.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
             # HELP a_lag_seconds Lag.\n# TYPE a_lag_seconds histogram\na_lag_seconds_sum 1.0\n"
        );
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        assert_eq!(for_scraper(Some(accept), OPEN.into()), (OPENMETRICS, OPEN.to_owned()));
        assert_eq!(for_scraper(None, OPEN.into()).0, PROMETHEUS_TEXT);
    }
}
