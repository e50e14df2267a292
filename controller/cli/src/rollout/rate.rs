//! How fast devices come in, as flags have it. A file has the words of the API.

use clap::Args;
use muster_shared::rollout::{ExponentialRate, MAX_PER_MINUTE, Rate, RateIncreaseCriteria};

/// How many devices a minute come in.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct RateOptions {
    /// Tell at most so many devices in any minute to go forward, 1 to 1000 [default: as many as a wave has room for].
    #[arg(long, value_name = "N")]
    maximum_per_minute: Option<u32>,
    /// Begin with so many a minute, and let the rate grow up to the most.
    #[arg(long, value_name = "N", requires = "increment_factor")]
    base_rate_per_minute: Option<u32>,
    /// By how much the rate is multiplied at each increase, 1.1 to 5.
    #[arg(long, value_name = "FACTOR", requires = "base_rate_per_minute")]
    increment_factor: Option<f64>,
    /// Increase it each time that so many more devices have committed.
    #[arg(long, value_name = "N", requires = "base_rate_per_minute", conflicts_with = "increase_after_notified")]
    increase_after_succeeded: Option<u32>,
    /// Increase it each time that so many more devices have been told, a minute ago or longer.
    #[arg(long, value_name = "N", requires = "base_rate_per_minute")]
    increase_after_notified: Option<u32>,
}

impl RateOptions {
    /// What flags ask for; none where none was given.
    pub(super) fn asked(self) -> Option<Rate> {
        let rate_increase_criteria = RateIncreaseCriteria {
            number_of_notified_things: self.increase_after_notified,
            number_of_succeeded_things: self.increase_after_succeeded,
        };
        let growing = self.base_rate_per_minute.zip(self.increment_factor);
        let exponential_rate = growing.map(|(base_rate_per_minute, increment_factor)| ExponentialRate {
            base_rate_per_minute,
            increment_factor,
            rate_increase_criteria,
        });
        let maximum_per_minute = self.maximum_per_minute.unwrap_or(MAX_PER_MINUTE);
        (self.maximum_per_minute.is_some() || exponential_rate.is_some())
            .then_some(Rate { maximum_per_minute, exponential_rate })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        rate: RateOptions,
    }

    #[test]
    fn flags_and_the_words_of_a_file_mean_the_same() {
        let asked = |flags: &[&str]| {
            let flags = Flags::try_parse_from([&["x"], flags].concat()).map_err(|error| error.to_string())?;
            Ok::<_, String>(flags.rate.asked())
        };
        assert_eq!(asked(&[]), Ok(None));
        let constant = Rate { maximum_per_minute: 20, exponential_rate: None };
        assert_eq!(asked(&["--maximum-per-minute", "20"]), Ok(Some(constant)));
        let growing = ["--base-rate-per-minute", "10", "--increment-factor", "2", "--increase-after-succeeded", "50"];
        let file = r#"{"exponential_rate": {"base_rate_per_minute": 10, "increment_factor": 2,
            "rate_increase_criteria": {"number_of_succeeded_things": 50}}}"#;
        assert_eq!(asked(&growing), Ok(Some(serde_json::from_str(file).unwrap())));
        assert!(asked(&growing[..2]).unwrap_err().contains("--increment-factor"));
        assert!(asked(&growing[2..]).unwrap_err().contains("--base-rate-per-minute"));
    }
}
