//! `muster alerts rules`: rules from files. A TOML file has durations as people write them; a JSON file holds what the API takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use muster_shared::alert::{AlertRule, ApplyRules, BundleFilter, RuleView, Severity, Signal};
use muster_shared::api::Page;
use muster_shared::ids::RuleName;
use muster_shared::selector::Selector;
use serde::Deserialize;

use super::words;
use crate::command::{Context, block_on};
use crate::disk;
use crate::duration::Millis;
use crate::failure::Failure;

const MAX_FILE_BYTES: u64 = 1024 * 1024;
const DEFAULT_OVER: Millis = Millis(3 * 3_600_000);

#[derive(Debug, Subcommand)]
pub(crate) enum RulesCommand {
    /// List the rules in force, built-in ones and those that are not enabled included.
    List,
    /// Bring rules: each is new or takes the place of the one of its name. All are taken or none.
    Apply {
        /// The rules, in TOML (.toml) or JSON (.json).
        #[arg(short = 'f', long = "file", value_name = "FILE")]
        file: PathBuf,
        /// Only check the file; nothing is sent.
        #[arg(long)]
        check: bool,
    },
    /// Take an own rule away; a built-in one of that name is in force again.
    Delete {
        /// Its name.
        name: RuleName,
    },
}

fn yes() -> bool {
    true
}

fn over() -> Millis {
    DEFAULT_OVER
}

fn at_once() -> Millis {
    Millis(0)
}

/// A file of rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    rules: Vec<RuleInFile>,
}

/// A rule as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RuleInFile {
    name: RuleName,
    #[serde(default = "yes")]
    enabled: bool,
    signal: Signal,
    bundle: Option<BundleFilter>,
    #[serde(default = "Selector::all")]
    selector: Selector,
    group_by: Option<String>,
    #[serde(default)]
    by_slice: bool,
    #[serde(default)]
    columns: Vec<String>,
    fire_at: f64,
    clear_at: Option<f64>,
    #[serde(default = "at_once", rename = "for")]
    pending_for: Millis,
    #[serde(default = "at_once")]
    keep_firing_for: Millis,
    #[serde(default = "over")]
    over: Millis,
    #[serde(default)]
    min_count: u64,
    latency_above_us: Option<u64>,
    severity: Severity,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    retrain: bool,
}

impl From<RuleInFile> for AlertRule {
    fn from(rule: RuleInFile) -> Self {
        Self {
            name: rule.name,
            enabled: rule.enabled,
            signal: rule.signal,
            bundle: rule.bundle,
            selector: rule.selector,
            group_by: rule.group_by,
            by_slice: rule.by_slice,
            columns: rule.columns,
            fire_at: rule.fire_at,
            clear_at: rule.clear_at,
            for_ms: rule.pending_for.0,
            keep_firing_for_ms: rule.keep_firing_for.0,
            over_ms: rule.over.0,
            min_count: rule.min_count,
            latency_above_us: rule.latency_above_us,
            severity: rule.severity,
            labels: rule.labels,
            annotations: rule.annotations,
            retrain: rule.retrain,
        }
    }
}

/// The rules in `path`, checked.
fn read(path: &Path) -> Result<ApplyRules, Failure> {
    let text = disk::read_text(path, MAX_FILE_BYTES)?;
    let wrong = |error: String| Failure::input(format!("{} is no file of alert rules: {error}", path.display()));
    let wish = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => serde_json::from_str::<ApplyRules>(&text).map_err(|error| wrong(error.to_string()))?,
        Some("toml") => {
            let file: RulesFile = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
            ApplyRules { rules: file.rules.into_iter().map(AlertRule::from).collect() }
        }
        _ => {
            return Err(Failure::input(format!(
                "{}: a name that ends with .toml or .json is expected",
                path.display()
            )));
        }
    };
    for rule in &wish.rules {
        rule.validate().map_err(|error| wrong(error.to_string()))?;
    }
    if wish.rules.is_empty() {
        return Err(wrong("it holds no rule".to_owned()));
    }
    Ok(wish)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when a file is wrong or the controller refuses.
pub(super) fn run(context: &Context, command: RulesCommand) -> Result<(), Failure> {
    let path = ["alerts", "rules"];
    let rules: Vec<RuleView> = match command {
        RulesCommand::List => block_on(context.client()?.list(&path, &[]))?,
        RulesCommand::Apply { file, check } => {
            let wish = read(&file)?;
            if check {
                return context.output.show(&wish, |wish| format!("{} rule(s) are valid", wish.rules.len()));
            }
            let page: Page<RuleView> = block_on(context.client()?.post(&path, &wish))?;
            page.items
        }
        RulesCommand::Delete { name } => {
            let page: Page<RuleView> = block_on(context.client()?.delete(&["alerts", "rules", name.as_str()]))?;
            page.items
        }
    };
    context.output.show(&rules, |rules| words::rules_text(rules))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = r#"
[[rules]]
name = "press-temperature"
signal = "input-drift"
bundle = "digits"
group-by = "site"
columns = ["pixel_12"]
fire-at = 0.25
clear-at = 0.1
for = "30m"
keep-firing-for = "2h"
severity = "critical"
annotations = { summary = "{column} in {group}: {value}" }
retrain = true
"#;

    fn read_text(name: &str, text: &str) -> Result<ApplyRules, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn both_forms_of_a_file_say_the_same() {
        let from_toml = read_text("rules.toml", FILE).unwrap();
        let rule = &from_toml.rules[0];
        assert_eq!((rule.for_ms, rule.keep_firing_for_ms, rule.over_ms), (1_800_000, 7_200_000, 10_800_000));
        assert!(rule.retrain && rule.enabled && rule.selector == Selector::all());
        let json = serde_json::to_string(&from_toml).unwrap();
        assert_eq!(read_text("rules.json", &json).unwrap(), from_toml);
    }

    #[test]
    fn mistakes_are_named() {
        for (spoilt, named) in [
            (FILE.replace("for = \"30m\"", "for = 30"), "line 10"),
            (FILE.replace("fire-at", "fire_at"), "fire_at"),
            (FILE.replace("input-drift", "drift"), "unknown variant"),
            (FILE.replace("0.1", "0.3"), "clear_at"),
            (FILE.replace("{value}", "{valu}"), "is no field of input-drift"),
            ("rules = []".to_owned(), "no rule"),
        ] {
            let failure = read_text("rules.toml", &spoilt).unwrap_err();
            assert!(failure.exit_code() == 2 && failure.chain().contains(named), "{named}: {}", failure.chain());
        }
        assert!(read_text("rules.ini", FILE).unwrap_err().chain().contains(".toml"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_file_of_rules_or_refused(text in ".{0,80}|\\[\\[rules\\]\\]\nname = \"[a-z ]{0,4}\"\n.{0,20}", json: bool) {
            if let Err(failure) = read_text(if json { "r.json" } else { "r.toml" }, &text) {
                prop_assert_eq!(failure.exit_code(), 2);
            }
        }
    }
}
