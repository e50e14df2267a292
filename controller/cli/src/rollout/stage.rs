//! In which part devices run a rollout's bundle, as flags and files have it.

use std::fmt;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use muster_shared::trust::Stage;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::failure::Failure;

/// The part, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum StageWord {
    /// It takes the place of the bundle in service, as any new version does.
    Serve,
    /// It runs on the same inputs beside it, and nobody gets its answers.
    Shadow,
    /// It answers a share of the requests (an A/B test).
    Split,
}

/// A share of requests, written `20%` or `0.5%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = r"^\s*[0-9]{1,3}(\.[0-9]{0,2})?%\s*$", "examples" = ["20%", "0.5%"]))]
pub(super) struct Share {
    pub(super) basis_points: u16,
}

/// Why a text is not a share of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShareError(String);

impl fmt::Display for ShareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a share of requests: write 20% or 0.25%, from 0.01% to 100%", self.0)
    }
}

impl std::error::Error for ShareError {}

impl FromStr for Share {
    type Err = ShareError;
    fn from_str(text: &str) -> Result<Self, ShareError> {
        let refuse = || ShareError(text.chars().take(40).collect());
        let number = text.trim().strip_suffix('%').ok_or_else(refuse)?;
        let (whole, hundredths) = number.split_once('.').unwrap_or((number, ""));
        let is_number = |digits: &str, most: usize| digits.len() <= most && digits.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !is_number(whole, 3) || !is_number(hundredths, 2) {
            return Err(refuse());
        }
        let part = |digits: &str| digits.parse::<u32>().map_err(|_| refuse());
        let basis_points = part(whole)? * 100 + part(&format!("{hundredths:0<2}"))?;
        match u16::try_from(basis_points) {
            Ok(basis_points @ 1..=10_000) => Ok(Self { basis_points }),
            Ok(_) | Err(_) => Err(refuse()),
        }
    }
}

impl TryFrom<String> for Share {
    type Error = ShareError;
    fn try_from(text: String) -> Result<Self, ShareError> {
        text.parse()
    }
}

/// In which part devices run the bundle.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct StageOptions {
    /// Whether the bundle takes the place of the one in service, shadows it, or shares its requests [default: serve].
    #[arg(long, value_name = "PART")]
    pub(super) stage: Option<StageWord>,
    /// The share of requests it runs on (shadow) or answers (split) [default: 100% of a shadow].
    #[arg(long, value_name = "PERCENT")]
    pub(super) share: Option<Share>,
    /// What a split is called: the same name deals the same keys to the same bundle.
    #[arg(long, value_name = "NAME")]
    pub(super) experiment: Option<String>,
}

impl StageOptions {
    /// The part they describe.
    ///
    /// # Errors
    /// [`Failure`] where they do not go together.
    pub(super) fn stage(&self) -> Result<Stage, Failure> {
        let share_bp = self.share.map(|share| share.basis_points);
        match (self.stage.unwrap_or(StageWord::Serve), share_bp, &self.experiment) {
            (StageWord::Serve, None, None) => Ok(Stage::Serve),
            (StageWord::Serve, _, _) => {
                Err(Failure::input("--share and --experiment go with --stage shadow or --stage split"))
            }
            (StageWord::Shadow, share_bp, None) => Ok(Stage::Shadow { share_bp: share_bp.unwrap_or(10_000) }),
            (StageWord::Shadow, _, Some(_)) => Err(Failure::input("--experiment goes with --stage split")),
            (StageWord::Split, Some(share_bp), Some(experiment)) => {
                Ok(Stage::Split { share_bp, experiment: experiment.clone() })
            }
            (StageWord::Split, _, _) => Err(Failure::input("--stage split needs --share and --experiment")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_are_percentages_of_two_decimals() {
        for (text, basis_points) in [("20%", 2_000), ("0.5%", 50), ("0.01%", 1), ("100%", 10_000), (" 12.34% ", 1_234)]
        {
            assert_eq!(text.parse::<Share>().map(|share| share.basis_points), Ok(basis_points), "{text}");
        }
        for bad in ["", "20", "0%", "0.00%", "100.01%", "101%", "-1%", "1.234%", ".5%", "1e1%", "%"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_split_says_what_it_is_called_and_nothing_else_does() {
        let stage = |stage, share: Option<&str>, experiment: Option<&str>| {
            let share = share.map(|share| share.parse().unwrap());
            StageOptions { stage, share, experiment: experiment.map(str::to_owned) }.stage().ok()
        };
        assert_eq!(stage(None, None, None), Some(Stage::Serve));
        assert_eq!(stage(Some(StageWord::Shadow), None, None), Some(Stage::Shadow { share_bp: 10_000 }));
        assert_eq!(stage(None, Some("5%"), None), None);
        assert_eq!(stage(Some(StageWord::Shadow), Some("5%"), Some("x")), None);
        assert_eq!(stage(Some(StageWord::Split), Some("5%"), None), None);
        let split = Stage::Split { share_bp: 500, experiment: "x".into() };
        assert_eq!(stage(Some(StageWord::Split), Some("5%"), Some("x")), Some(split));
    }

    proptest! {
        #[test]
        fn any_text_is_a_share_or_refused(text in ".{0,10}|[0-9.]{0,8}%") {
            let _ = text.parse::<Share>();
        }
    }
}
