//! `muster-agent self-test`: the committed bundle's golden examples, run by this program beside the agent, which serves on.

use anyhow::bail;
use serde::Serialize;

use super::{DeviceArgs, Outcome, formed};
use crate::attributes::AGENT_VERSION;
use crate::updater::{SelfTested, self_test_committed};

/// What came of it.
#[derive(Debug, Serialize)]
struct Answer {
    passed: bool,
    agent_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    examples: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    median_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_abs_difference: Option<f64>,
    /// An answer may be off by `tolerance_abs` + `tolerance_rel` · |expected|.
    #[serde(skip_serializing_if = "Option::is_none")]
    tolerance_abs: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tolerance_rel: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Answer {
    fn of(tested: Result<SelfTested, String>) -> Self {
        let nothing = Self {
            passed: false,
            agent_version: AGENT_VERSION,
            bundle: None,
            examples: None,
            median_us: None,
            max_abs_difference: None,
            tolerance_abs: None,
            tolerance_rel: None,
            reason: None,
        };
        match tested {
            Ok(SelfTested { bundle, tolerance, report }) => Self {
                passed: true,
                bundle: Some(bundle.to_string()),
                examples: Some(report.examples),
                median_us: Some(report.median_us),
                max_abs_difference: Some(report.max_abs_difference),
                tolerance_abs: Some(tolerance.abs),
                tolerance_rel: Some(tolerance.rel),
                ..nothing
            },
            Err(reason) => Self { reason: Some(reason), ..nothing },
        }
    }

    fn text(&self) -> String {
        match (&self.bundle, &self.reason) {
            (Some(bundle), _) => format!(
                "{bundle} passes its {} golden examples with this agent ({}): {} us at the median; the largest difference is {}, where {} + {} x |expected| is allowed",
                self.examples.unwrap_or_default(),
                self.agent_version,
                self.median_us.unwrap_or_default(),
                self.max_abs_difference.unwrap_or_default(),
                self.tolerance_abs.unwrap_or_default(),
                self.tolerance_rel.unwrap_or_default(),
            ),
            (None, reason) => format!(
                "the committed bundle FAILS its self-test: {}\nNext: muster-agent doctor looks at its files; the agent fetches damaged ones again when it is started",
                reason.as_deref().unwrap_or_default()
            ),
        }
    }
}

/// Runs it.
///
/// # Errors
/// When the configuration cannot be used, or nothing is committed.
pub(crate) fn run(args: &DeviceArgs) -> anyhow::Result<Outcome> {
    let config = args.load()?;
    let answer = match self_test_committed(&config.data_dir) {
        Ok(Some(tested)) => Answer::of(Ok(tested)),
        Ok(None) => bail!("nothing is committed on this device yet: there is nothing to test"),
        Err(reason) => Answer::of(Err(reason)),
    };
    Ok(Outcome { text: formed(args.output, &answer, Answer::text), is_well: answer.passed })
}
