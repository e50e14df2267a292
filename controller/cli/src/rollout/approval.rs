//! Who must approve a rollout before it begins, from flags or from a file in the same words; and what people said of one.

use clap::Args;
use muster_shared::rollout::{ApprovalRecord, ApprovalSpec};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::duration::Millis;
use crate::output;

/// Who must approve.
#[derive(Debug, Clone, Default, Args, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ApprovalOptions {
    /// How many people must approve before it begins; whoever creates it does not suffice alone [default: as many as the
    /// controller demands].
    #[arg(long, value_name = "N")]
    approvals: Option<u32>,
    /// Somebody whose approval counts, by the name of the access token; nobody else's does then. Once for each.
    #[arg(long = "approver", value_name = "NAME", requires = "approvals")]
    approvers: Vec<String>,
    /// End it if they have not approved within this [default: wait for ever].
    #[arg(long, value_name = "DURATION", requires = "approvals")]
    approve_within: Option<Millis>,
}

impl ApprovalOptions {
    /// What was asked for. Approvers without a number are as many as there are, as in files.
    pub(super) fn approval(&self) -> Option<ApprovalSpec> {
        let Self { approvals, approvers, approve_within } = self;
        let all = u32::try_from(approvers.len()).unwrap_or(u32::MAX);
        let needed = approvals.or((!approvers.is_empty() || approve_within.is_some()).then_some(all))?;
        Some(ApprovalSpec { needed, approvers: approvers.clone(), within_ms: approve_within.map(|within| within.0) })
    }
}

/// Who has approved and who has rejected, a line each.
pub(super) fn text(record: &ApprovalRecord) -> String {
    let line = |verb: &str, said: &muster_shared::rollout::Approval| {
        let why = said.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        format!("{verb} by {} at {}{why}", said.by, output::time(said.at_ms))
    };
    let outcome = output::word(&record.outcome).replace('_', " ");
    let mut lines = vec![format!("{outcome}, {} of {}", record.given.len(), record.needed)];
    lines.extend(record.given.iter().map(|said| line("approved", said)));
    lines.extend(record.rejected.iter().map(|said| line("rejected", said)));
    lines.join("\n")
}
