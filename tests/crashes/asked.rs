//! What is asked for on the command line, in the words that libtest takes and two of our own.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

const SCENARIOS: [&str; 5] = ["kills", "beside", "torn-writes", "full-disk", "read-only-disk"];
/// Kills where none are asked for: enough for every named step, few enough for every day.
const KILLS: u64 = 150;

/// What to do.
pub(crate) struct Asked {
    pub(crate) seed: u64,
    pub(crate) kills: u64,
    pub(crate) list: bool,
    words: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    /// Only what is left out otherwise is asked for: there is no such scenario.
    ignored: bool,
}

impl Asked {
    /// # Errors
    /// When a number is none.
    pub(crate) fn by(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut asked = Self {
            seed: u64::from(clock.subsec_nanos()),
            kills: KILLS,
            list: false,
            words: Vec::new(),
            skipped: Vec::new(),
            exact: false,
            ignored: false,
        };
        while let Some(argument) = arguments.next() {
            let mut number = || -> anyhow::Result<u64> {
                let text = arguments.next().with_context(|| format!("{argument} needs a number"))?;
                text.parse().with_context(|| format!("{argument} {text}"))
            };
            match argument.as_str() {
                "--seed" => asked.seed = number()?,
                "--kills" => asked.kills = number()?,
                "--list" => asked.list = true,
                "--exact" => asked.exact = true,
                "--ignored" => asked.ignored = true,
                "--skip" => asked.skipped.extend(arguments.next()),
                // How to run is decided here, and their values are no names.
                "--test-threads" | "--format" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => {
                    drop(arguments.next());
                }
                other if other.starts_with('-') => {}
                _ => asked.words.push(argument),
            }
        }
        Ok(asked)
    }

    /// The scenarios that are asked for.
    pub(crate) fn scenarios(&self) -> Vec<&'static str> {
        let has = |name: &str, word: &String| if self.exact { name == word } else { name.contains(word.as_str()) };
        let wanted = |name: &&str| {
            !self.ignored
                && !self.skipped.iter().any(|word| has(name, word))
                && (self.words.is_empty() || self.words.iter().any(|word| has(name, word)))
        };
        SCENARIOS.into_iter().filter(wanted).collect()
    }
}
