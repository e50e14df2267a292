//! `muster-agent logs`: the agent's log, by `journalctl`, which does the rest.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::bail;
use clap::Args;

use super::Output;

/// Which part of the log.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Goes on with what is logged from now on.
    #[arg(long, short)]
    follow: bool,
    /// Where to begin, as journalctl has it: "1 hour ago", "yesterday", "2026-11-22 08:00".
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// The least that matters: err, warning, info or debug.
    #[arg(long, short, value_name = "LEVEL")]
    priority: Option<String>,
    /// The last so many lines; all of them with --since.
    #[arg(long, short = 'n', value_name = "COUNT")]
    lines: Option<u32>,
    /// The service.
    #[arg(long, value_name = "NAME", default_value = UNIT)]
    unit: String,
    /// Lines for people, or JSON for programs.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// The service's name in packages.
pub(super) const UNIT: &str = "muster-agent";
/// Lines that are shown where nothing else is said.
const LINES: u32 = 200;

impl LogsArgs {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--unit={}", self.unit)];
        arguments.push(format!("--output={}", if self.output == Output::Json { "json" } else { "short-iso" }));
        arguments.extend(self.follow.then(|| "--follow".to_owned()));
        arguments.extend(self.since.as_ref().map(|since| format!("--since={since}")));
        arguments.extend(self.priority.as_ref().map(|level| format!("--priority={level}")));
        let lines = self.lines.or_else(|| self.since.is_none().then_some(LINES));
        arguments.extend(lines.map(|lines| format!("--lines={lines}")));
        arguments
    }
}

/// Becomes `journalctl`.
///
/// # Errors
/// Where the log is, when there is no `journalctl`.
pub(crate) fn run(args: &LogsArgs) -> anyhow::Result<super::Outcome> {
    let error = Command::new("journalctl").args(args.arguments()).exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        bail!(
            "there is no journalctl on this device: the agent writes its log to standard error, so it is where whatever starts the agent puts that; [log] in its configuration says how much of it there is"
        );
    }
    bail!("journalctl cannot be started: {error}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        logs: LogsArgs,
    }

    fn arguments(line: &[&str]) -> Vec<String> {
        Line::try_parse_from([&["logs"], line].concat()).unwrap().logs.arguments()
    }

    #[test]
    fn journalctl_is_asked_for_what_was_meant() {
        assert_eq!(arguments(&[]), ["--unit=muster-agent", "--output=short-iso", "--lines=200"]);
        assert_eq!(
            arguments(&["--since", "-1h", "-p", "err", "-f", "--output", "json"]),
            ["--unit=muster-agent", "--output=json", "--follow", "--since=-1h", "--priority=err"]
        );
        assert_eq!(arguments(&["-n", "5", "--unit", "other"])[..], ["--unit=other", "--output=short-iso", "--lines=5"]);
    }
}
