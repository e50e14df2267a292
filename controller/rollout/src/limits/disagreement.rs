//! How often a shadow may name another class than the bundle in service.

use muster_shared::rollout::{Check, ComparedRows, LimitsInputs, Outcome, Rule};

use super::{outcome, too_few};
use crate::wording::{comparison, count, counted};

/// The check, and the rows there are and the rows needed where these are more; none where nobody asks for it, or the wave runs no shadow.
pub(super) fn hold(inputs: &LimitsInputs) -> Option<(Check, Option<(u64, u64)>)> {
    let ComparedRows { agreed, disagreed } = inputs.compared?;
    let limits = &inputs.limits;
    let limit = limits.max_disagreement?;
    let (rows, need) = (agreed.saturating_add(disagreed), limits.min_requests);
    let share = (rows > 0).then(|| disagreed as f64 / rows as f64);
    let judged = share.filter(|_| rows >= need);
    let sentence = match judged {
        Some(share) => format!(
            "disagreement with the incumbent {} ({} of {})",
            comparison(share * 100.0, limit * 100.0, " %"),
            count(disagreed),
            counted(rows, "row"),
        ),
        None => format!("disagreement with the incumbent not judged: {} compared", too_few(rows, need, "rows")),
    };
    let check = Check {
        rule: Rule::Disagreement,
        outcome: judged.map_or(Outcome::Inconclusive, |share| outcome(share, limit)),
        measured: share,
        limit,
        canary_samples: rows,
        control_samples: rows,
        sentence,
    };
    Some((check, (rows < need).then_some((rows, need))))
}
