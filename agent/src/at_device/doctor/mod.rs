//! `muster-agent doctor`: everything that has to be right on a device, looked at one by one, with what to do where it is not.
//!
//! [`gather`] finds the facts, [`findings`] and [`program`] decide what they mean.

mod findings;
mod gather;
mod program;

use serde::Serialize;

use super::{DeviceArgs, Outcome, block_on, formed};
use crate::config::Config;

/// How something was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Health {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// It keeps the device from its work.
    Fault,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What.
    pub(crate) check: &'static str,
    /// How it is.
    pub(crate) health: Health,
    /// What was found.
    pub(crate) found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Examination {
    /// The worst that was found.
    pub(crate) health: Health,
    /// One by one.
    pub(crate) findings: Vec<Finding>,
}

impl Examination {
    /// One line for each finding, and one for what to do.
    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        for Finding { check, health, found, hint } in &self.findings {
            let mark = match health {
                Health::Ok => "ok",
                Health::Warning => "WARNING",
                Health::Fault => "FAULT",
            };
            lines.push(format!("{mark:<8} {check}: {found}"));
            lines.extend(hint.as_ref().map(|hint| format!("         -> {hint}")));
        }
        let count = |health| self.findings.iter().filter(|finding| finding.health == health).count();
        lines.push(format!("{} faults, {} warnings", count(Health::Fault), count(Health::Warning)));
        lines.join("\n")
    }
}

/// Looks at everything. All is well while there is no fault.
///
/// # Errors
/// When no runtime can be started.
pub(crate) fn run(args: &DeviceArgs) -> anyhow::Result<Outcome> {
    let loaded = args.load();
    let examination = block_on(async {
        let (config, fault) = match loaded {
            Ok(config) => (config, None),
            Err(error) => (Config::default(), Some(crate::causes::with_source(&error))),
        };
        examine(&config, fault).await
    })?;
    let is_well = examination.health < Health::Fault;
    Ok(Outcome { text: formed(args.output, &examination, Examination::text), is_well })
}

/// Looks at everything with `config`, which stands in for one that has `fault`.
pub(super) async fn examine(config: &Config, fault: Option<String>) -> Examination {
    let findings = findings::findings(&gather::gather(config, fault).await);
    let health = findings.iter().map(|finding| finding.health).max().unwrap_or(Health::Ok);
    Examination { health, findings }
}
