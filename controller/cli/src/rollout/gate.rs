//! How canaries are compared with devices like them, from flags or from a file in the same words.

use std::str::FromStr;

use clap::Args;
use muster_shared::rollout::{GateSpec, Guardrail, Metric};
use serde::Deserialize;

use crate::duration::Millis;

/// A guardrail in a word: `METRIC[:LATENCY][=MARGIN]`, as `error-rate=3%` or `latency-share:50ms=5%`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct GuardrailWord(Guardrail);

impl FromStr for GuardrailWord {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, margin) = match text.split_once('=') {
            Some((name, margin)) => (name, Some(share(margin)?)),
            None => (text, None),
        };
        let (name, above_us) = match name.split_once(':') {
            Some((name, edge)) => {
                let edge: Millis = edge.parse().map_err(|error| format!("{edge:?}: {error}"))?;
                (name, Some(edge.0.saturating_mul(1_000)))
            }
            None => (name, None),
        };
        let metric = Metric::ALL
            .into_iter()
            .find(|metric| metric.as_str() == name)
            .ok_or_else(|| format!("{name:?} is no guardrail: {} are", Metric::ALL.map(Metric::as_str).join(", ")))?;
        Ok(Self(Guardrail { metric, margin, above_us }))
    }
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
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct GateOptions {
    /// What must not become worse against devices like them: error-rate, latency-share (of requests above a latency, as
    /// latency-share:50ms), failures, label-error, disagreement; with the margin that a wave must rule out, as error-rate=3%.
    /// Once for each.
    #[arg(long = "guardrail", value_name = "METRIC[:LATENCY][=MARGIN]")]
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
        let default = GateSpec::of(self.guardrails.iter().map(|word| word.0).collect());
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
        let guardrail = |metric, margin, above_us| Ok(Guardrail { metric, margin, above_us });
        assert_eq!(read("error-rate=3%"), guardrail(Metric::ErrorRate, Some(0.03), None));
        assert_eq!(read("latency-share:50ms=0.05"), guardrail(Metric::LatencyShare, Some(0.05), Some(50_000)));
        assert_eq!(read("failures"), guardrail(Metric::Failures, None, None));
        for (bad, why) in
            [("errors", "error-rate, latency-share"), ("error-rate=much", "0.03"), ("latency-share:soon", "soon")]
        {
            assert!(read(bad).unwrap_err().contains(why), "{bad}: {:?}", read(bad));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_guardrail_or_refused(text in ".{0,20}|(error-rate|failures):?.{0,4}=?.{0,5}%?") {
            let _ = text.parse::<GuardrailWord>();
        }
    }
}
