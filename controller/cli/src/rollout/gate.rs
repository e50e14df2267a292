//! How canaries are compared with devices like them, from flags or from a file in the same words.

use std::str::FromStr;

use clap::Args;
use muster_shared::rollout::{GateSpec, Guardrail, Metric, ScoreRange};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::duration::Millis;

/// A guardrail in a word: `METRIC[:…][=MARGIN]`, as `error-rate=3%`, `latency-share:50ms=5%`, `memory:50MB..200MB=5%` or
/// `metric:line_stops:0..10=5%`; ranges go from the best number to the worst.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(
    with = "String",
    extend("pattern" = r"^[a-z-]+(:[^=]+)?(=-?[0-9.]+%?)?$", "examples" = ["error-rate=3%", "latency-share:50ms=5%", "metric:line_stops:0..10=5%"])
)]
pub(crate) struct GuardrailWord(Guardrail);

impl FromStr for GuardrailWord {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (what, margin) = match text.split_once('=') {
            Some((what, margin)) => (what, Some(share(margin)?)),
            None => (text, None),
        };
        let (name, detail) = what.split_once(':').map_or((what, None), |(name, detail)| (name, Some(detail)));
        let metric = Metric::ALL
            .into_iter()
            .find(|metric| metric.as_str() == name)
            .ok_or_else(|| format!("{name:?} is no guardrail: {} are", Metric::ALL.map(Metric::as_str).join(", ")))?;
        let mut guardrail = Guardrail::of(metric, margin);
        match (metric, detail) {
            (Metric::Custom, detail) => {
                let parts = detail.and_then(|detail| detail.split_once(':'));
                let (name, ends) = parts.ok_or_else(|| format!("{what:?}: write metric:NAME:BEST..WORST"))?;
                guardrail.name = Some(name.parse().map_err(|error| format!("{error}"))?);
                guardrail.range = Some(range(ends, &number)?);
            }
            (Metric::Memory, detail) => guardrail.range = Some(range(detail.unwrap_or_default(), &bytes)?),
            (Metric::Temperature, detail) => guardrail.range = Some(range(detail.unwrap_or_default(), &number)?),
            (_, None) => {}
            (_, Some(edge)) => {
                let edge: Millis = edge.parse().map_err(|error| format!("{edge:?}: {error}"))?;
                guardrail.above_us = Some(edge.0.saturating_mul(1_000));
            }
        }
        Ok(Self(guardrail))
    }
}

/// `0..10`, from the best to the worst.
fn range(text: &str, end: &dyn Fn(&str) -> Option<f64>) -> Result<ScoreRange, String> {
    let ends =
        text.split_once("..").and_then(|(best, worst)| Some(ScoreRange { best: end(best)?, worst: end(worst)? }));
    ends.ok_or_else(|| format!("{text:?} is no range: write BEST..WORST, as 0..10, 90..20 or, of memory, 50MB..200MB"))
}

fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|number: &f64| number.is_finite())
}

/// `200MB`, `190MiB` or a number of bytes.
fn bytes(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 6] =
        [("KiB", 1_024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)];
    let unit = UNITS.iter().find_map(|(unit, size)| Some((text.trim().strip_suffix(unit)?, *size)));
    let (digits, size) = unit.unwrap_or((text, 1.0));
    number(digits).map(|number| number * size)
}

impl TryFrom<String> for GuardrailWord {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// `3%` or `0.03`.
fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let number: f64 = number.trim().parse().map_err(|_| format!("{text:?} is no margin: write 3% or 0.03"))?;
    Ok(number / unit)
}

/// How the devices of a wave are compared with others.
#[derive(Debug, Clone, Default, Args, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct GateOptions {
    /// What must not become worse against devices like them: error-rate, latency-share (of requests above a latency, as
    /// latency-share:50ms), failures, label-error, disagreement, confidence, memory:BEST..WORST, temperature:BEST..WORST,
    /// metric:NAME:BEST..WORST (a number that applications send); with the margin that a wave must rule out, as error-rate=3% or
    /// metric:line_stops:0..10=5%, a share of the range; with a margin of 0 or less (an experiment) the first wave must be shown to be better.
    /// Once for each.
    #[arg(long = "guardrail", value_name = "METRIC[:DETAIL][=MARGIN]")]
    guardrails: Vec<GuardrailWord>,
    /// Devices that each canary is compared with [default: 4].
    #[arg(long, value_name = "N", requires = "guardrails")]
    controls: Option<u32>,
    /// A label or attribute that a canary and its controls must share, as site. Once for each.
    #[arg(long, value_name = "KEY", requires = "guardrails")]
    match_on: Vec<String>,
    /// The chance that an equal bundle is rolled back, over all waves [default: 0.05].
    #[arg(long, value_name = "SHARE", requires = "guardrails")]
    alpha: Option<f64>,
}

impl GateOptions {
    /// The gate asked for; none without guardrails.
    pub(crate) fn gate(&self) -> Option<GateSpec> {
        let default = GateSpec::of(self.guardrails.iter().map(|word| word.0.clone()).collect());
        (!self.guardrails.is_empty()).then(|| GateSpec {
            alpha: self.alpha.unwrap_or(default.alpha),
            controls: self.controls.unwrap_or(default.controls),
            match_on: self.match_on.clone(),
            ..default
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_word_is_a_guardrail() {
        let read = |text: &str| text.parse::<GuardrailWord>().map(|word| word.0);
        let guardrail = |metric, margin, above_us| Ok(Guardrail { above_us, ..Guardrail::of(metric, margin) });
        assert_eq!(read("error-rate=3%"), guardrail(Metric::ErrorRate, Some(0.03), None));
        assert_eq!(read("latency-share:50ms=0.05"), guardrail(Metric::LatencyShare, Some(0.05), Some(50_000)));
        assert_eq!(read("error-rate=0%"), guardrail(Metric::ErrorRate, Some(0.0), None));
        assert_eq!(read("label-error=-1%"), guardrail(Metric::LabelError, Some(-0.01), None));
        assert_eq!(read("failures"), guardrail(Metric::Failures, None, None));
        let ranged = |metric, name: Option<&str>, best, worst, margin| {
            let name = name.map(|name| name.parse().unwrap());
            Ok(Guardrail { name, range: Some(ScoreRange { best, worst }), ..Guardrail::of(metric, margin) })
        };
        assert_eq!(read("confidence=5%"), guardrail(Metric::Confidence, Some(0.05), None));
        assert_eq!(
            read("metric:line_stops:0..10=5%"),
            ranged(Metric::Custom, Some("line_stops"), 0.0, 10.0, Some(0.05))
        );
        assert_eq!(read("metric:yield.pct:99.5..90"), ranged(Metric::Custom, Some("yield.pct"), 99.5, 90.0, None));
        assert_eq!(read("temperature:-40..85"), ranged(Metric::Temperature, None, -40.0, 85.0, None));
        assert_eq!(read("memory:50MB..1GiB=5%"), ranged(Metric::Memory, None, 5e7, 1_073_741_824.0, Some(0.05)));
        for (bad, why) in [
            ("errors", "error-rate, latency-share"),
            ("error-rate=much", "0.03"),
            ("latency-share:soon", "soon"),
            ("metric:line_stops", "metric:NAME:BEST..WORST"),
            ("metric:Line Stops:0..10", "metric name"),
            ("metric:line_stops:0..many", "BEST..WORST"),
            ("memory=5%", "50MB..200MB"),
            ("temperature:hot", "BEST..WORST"),
        ] {
            assert!(read(bad).unwrap_err().contains(why), "{bad}: {:?}", read(bad));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_guardrail_or_refused(text in ".{0,20}|(error-rate|failures|memory|metric:a):?.{0,4}(\\.\\.)?.{0,4}=?.{0,5}%?") {
            let _ = text.parse::<GuardrailWord>();
        }
    }
}
