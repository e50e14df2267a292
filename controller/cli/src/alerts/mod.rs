//! `muster alerts`: what fires, who looks after it, what is silenced, and by which rules.

mod rules;
mod words;

use clap::{Args, Subcommand, ValueEnum};
use muster_shared::alert::{Alert, AlertState, CreateSilence, Matcher, ReceiverTest, ReceiverView, Severity, Silence};
use muster_shared::api::ActionReason;
use muster_shared::ids::RuleName;

use crate::api_client::ApiClient;
use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::output;

/// Digits of a fingerprint that are enough to ask for it.
const MIN_PREFIX: usize = 4;

#[derive(Debug, Subcommand)]
pub(crate) enum AlertsCommand {
    /// List alerts; those that are over are shown for a while.
    List(ListArgs),
    /// Show one alert.
    Show {
        /// Its fingerprint, or the beginning of it.
        fingerprint: String,
    },
    /// Say that somebody looks after an alert, until it is over.
    Ack {
        /// Its fingerprint, or the beginning of it.
        fingerprint: String,
        /// Why, for the records.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Keep alerts from receivers for a while. They change their state all the same.
    Silence(SilenceArgs),
    /// End a silence now.
    Unsilence {
        /// Its id, as `muster alerts silences` shows it.
        id: String,
    },
    /// List silences; those that are over are shown for a while.
    Silences,
    /// Show, bring and take away rules.
    #[command(subcommand)]
    Rules(rules::RulesCommand),
    /// List who is told, as the controller's configuration has it.
    Receivers,
    /// Send a receiver a message that says it is a test. Exit code 1 when it was not taken.
    TestReceiver {
        /// Its name in the controller's configuration.
        name: String,
    },
}

/// A state, as a flag has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StateFlag {
    Pending,
    Firing,
    Resolved,
}

/// A severity, as a flag has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SeverityFlag {
    Info,
    Warning,
    Critical,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only those in this state.
    #[arg(long, value_enum)]
    state: Option<StateFlag>,
    /// Only those that fire; the same as --state firing.
    #[arg(long, conflicts_with = "state")]
    firing: bool,
    /// Only those this bad or worse.
    #[arg(long, value_enum)]
    min_severity: Option<SeverityFlag>,
    /// Only those of this rule.
    #[arg(long, value_name = "NAME")]
    rule: Option<RuleName>,
    /// End with exit code 1 when one of those listed fires that is neither silenced nor acknowledged.
    #[arg(long)]
    exit_code: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SilenceArgs {
    /// A label and its value, as rule=input-drift, device=press-7 or site!=lyon; all that are given must hold.
    #[arg(long = "match", value_name = "LABEL=VALUE", required = true, value_parser = matcher)]
    matchers: Vec<Matcher>,
    /// For how long.
    #[arg(long = "for", value_name = "DURATION")]
    duration: Millis,
    /// Why, for whoever finds it.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

fn matcher(text: &str) -> Result<Matcher, String> {
    let (negate, parts) = match text.split_once("!=") {
        Some(parts) => (true, Some(parts)),
        None => (false, text.split_once('=')),
    };
    let (label, value) = parts.ok_or("write LABEL=VALUE or LABEL!=VALUE")?;
    if label.is_empty() {
        return Err("the label is empty: write LABEL=VALUE".to_owned());
    }
    Ok(Matcher { label: label.to_owned(), value: value.to_owned(), negate })
}

impl StateFlag {
    const fn state(self) -> AlertState {
        match self {
            Self::Pending => AlertState::Pending,
            Self::Firing => AlertState::Firing,
            Self::Resolved => AlertState::Resolved,
        }
    }
}

impl SeverityFlag {
    const fn severity(self) -> Severity {
        match self {
            Self::Info => Severity::Info,
            Self::Warning => Severity::Warning,
            Self::Critical => Severity::Critical,
        }
    }
}

/// The one alert whose fingerprint begins like this.
async fn find(client: &ApiClient, prefix: &str) -> Result<Alert, Failure> {
    if prefix.len() < MIN_PREFIX || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Failure::input(format!(
            "{prefix:?} is no fingerprint: give at least {MIN_PREFIX} of its digits, as `muster alerts list` shows them"
        )));
    }
    let mut found: Vec<Alert> = client.list(&["alerts"], &[]).await?;
    found.retain(|alert| alert.fingerprint.starts_with(&prefix.to_ascii_lowercase()));
    match (found.pop(), found.len()) {
        (Some(alert), 0) => Ok(alert),
        (None, _) => {
            Err(Failure::refused(format!("there is no alert {prefix}; `muster alerts list` shows those there are")))
        }
        (Some(_), others) => {
            Err(Failure::input(format!("{} alerts begin with {prefix}: give more digits", others + 1)))
        }
    }
}

fn list(context: &Context, args: &ListArgs) -> Result<(), Failure> {
    let state = if args.firing { Some(AlertState::Firing) } else { args.state.map(StateFlag::state) };
    let mut query = Vec::new();
    query.extend(state.map(|state| ("state", state.as_str().to_owned())));
    query.extend(args.min_severity.map(|least| ("min_severity", least.severity().as_str().to_owned())));
    query.extend(args.rule.as_ref().map(|rule| ("rule", rule.to_string())));
    let mut alerts: Vec<Alert> = block_on(context.client()?.list(&["alerts"], &query))?;
    // What is worst and newest first.
    alerts.sort_by_key(|alert| {
        let order = match alert.state {
            AlertState::Firing => 0,
            AlertState::Pending => 1,
            AlertState::Resolved => 2,
        };
        (order, std::cmp::Reverse((alert.severity, alert.since_ms)), alert.fingerprint.clone())
    });
    if alerts.is_empty() {
        output::note("no alert");
    }
    context.output.show(&alerts, |alerts| words::list_text(alerts))?;
    let open = |alert: &&Alert| {
        alert.state == AlertState::Firing && alert.silenced_by.is_none() && alert.acknowledged.is_none()
    };
    let open = alerts.iter().filter(open).count();
    if args.exit_code && open > 0 {
        return Err(Failure::unmet(format!("{open} alert(s) fire that nobody looks after")));
    }
    Ok(())
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses, or what was asked for is not so.
pub(crate) fn run(context: &Context, command: AlertsCommand) -> Result<(), Failure> {
    match command {
        AlertsCommand::List(args) => list(context, &args),
        AlertsCommand::Show { fingerprint } => {
            let client = context.client()?;
            let alert = block_on(find(&client, &fingerprint))?;
            context.output.show(&alert, words::alert_text)
        }
        AlertsCommand::Ack { fingerprint, reason } => {
            let client = context.client()?;
            let alert: Alert = block_on(async {
                let alert = find(&client, &fingerprint).await?;
                client.post(&["alerts", &alert.fingerprint, "ack"], &ActionReason { reason }).await
            })?;
            context
                .output
                .show(&alert, |alert| format!("alert {} of {} is acknowledged", words::short(alert), alert.rule))
        }
        AlertsCommand::Silence(args) => {
            let wish = CreateSilence { matchers: args.matchers, for_ms: args.duration.0, reason: args.reason };
            wish.validate().map_err(|error| Failure::input(error.to_string()))?;
            let silence: Silence = block_on(context.client()?.post(&["alerts", "silences"], &wish))?;
            context.output.show(&silence, |silence| {
                format!("silence {} holds until {}", silence.id, output::time(silence.until_ms))
            })
        }
        AlertsCommand::Unsilence { id } => {
            let silence: Silence = block_on(context.client()?.post(&["alerts", "silences", &id, "end"], &()))?;
            context.output.show(&silence, |silence| format!("silence {} is over", silence.id))
        }
        AlertsCommand::Silences => {
            let silences: Vec<Silence> = block_on(context.client()?.list(&["alerts", "silences"], &[]))?;
            if silences.is_empty() {
                output::note("no silence");
            }
            context.output.show(&silences, |silences| words::silences_text(silences))
        }
        AlertsCommand::Rules(command) => rules::run(context, command),
        AlertsCommand::Receivers => {
            let receivers: Vec<ReceiverView> = block_on(context.client()?.list(&["alerts", "receivers"], &[]))?;
            if receivers.is_empty() {
                output::note("no receiver: name some in the controller's configuration, as [[alerts.receivers]]");
            }
            context.output.show(&receivers, |receivers| words::receivers_text(receivers))
        }
        AlertsCommand::TestReceiver { name } => {
            let test: ReceiverTest = block_on(context.client()?.post(&["alerts", "receivers", &name, "test"], &()))?;
            context.output.show(&test, |test| format!("{}: {}", test.name, test.detail))?;
            if test.delivered {
                Ok(())
            } else {
                Err(Failure::unmet(format!("receiver {} did not take the message", test.name)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_are_read_as_written() {
        let read = |text: &str| matcher(text).map(|m| (m.label, m.value, m.negate));
        assert_eq!(read("rule=input-drift"), Ok(("rule".into(), "input-drift".into(), false)));
        assert_eq!(read("site!=lyon"), Ok(("site".into(), "lyon".into(), true)));
        assert_eq!(read("site="), Ok(("site".into(), String::new(), false)));
        assert_eq!(read("column=a=b"), Ok(("column".into(), "a=b".into(), false)));
        assert!(read("site").is_err() && read("=x").is_err());
    }
}
