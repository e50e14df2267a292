//! Who must approve a rollout before it begins, as asked for.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::access::is_access_name;
use crate::limits::MAX_APPROVERS;

/// How many people must approve a rollout, and who of them. Whoever asked for it never suffices alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApprovalSpec {
    /// How many approvals it takes.
    pub needed: u32,
    /// The names of the access tokens whose approvals count; everybody's who may approve, where none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<String>,
    /// How long approvals are waited for, in milliseconds; then the rollout ends. For ever, where that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_ms: Option<u64>,
}

/// Why approvals as asked for cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    /// None, or more than there can be.
    #[error("{0} approvals: 1 to {MAX_APPROVERS} can be asked for")]
    Needed(u32),
    /// So many cannot be listed.
    #[error("{0} approvers: at most {MAX_APPROVERS} can be named")]
    TooMany(usize),
    /// A name that no access token has.
    #[error(
        "{0:?} is not the name of an access token: 1 to 64 letters, digits, '-', '_', '.' and '@' are, as muster access list shows them"
    )]
    Name(String),
    /// A name is there twice.
    #[error("{0:?} is named twice, and counts once")]
    Twice(String),
    /// Those who are named are too few.
    #[error(
        "{needed} approvals are needed, and {named} approvers are named: name more, or none for everybody who may approve"
    )]
    TooFew {
        /// Approvals needed.
        needed: u32,
        /// Approvers named.
        named: usize,
    },
    /// Nobody could ever approve it.
    #[error("{0:?} asks for the rollout and is the only approver named: somebody else must approve, too")]
    Alone(String),
    /// Nobody could approve in time.
    #[error("approvals are waited for 0 ms: nobody could approve in time")]
    NoTime,
}

impl ApprovalSpec {
    /// Checks what the types alone do not express.
    ///
    /// # Errors
    /// [`ApprovalError`] with the first fault found.
    pub fn validate(&self) -> Result<(), ApprovalError> {
        let Self { needed, approvers, within_ms } = self;
        if *needed == 0 || *needed as usize > MAX_APPROVERS {
            return Err(ApprovalError::Needed(*needed));
        }
        if approvers.len() > MAX_APPROVERS {
            return Err(ApprovalError::TooMany(approvers.len()));
        }
        let mut seen = BTreeSet::new();
        for name in approvers {
            if !is_access_name(name) {
                return Err(ApprovalError::Name(name.chars().take(40).collect()));
            }
            if !seen.insert(name) {
                return Err(ApprovalError::Twice(name.clone()));
            }
        }
        self.suffices_for(*needed)?;
        if *within_ms == Some(0) { Err(ApprovalError::NoTime) } else { Ok(()) }
    }

    /// Checks that those who are named can give `needed` approvals.
    ///
    /// # Errors
    /// [`ApprovalError::TooFew`].
    pub fn suffices_for(&self, needed: u32) -> Result<(), ApprovalError> {
        let named = self.approvers.len();
        if named > 0 && named < needed as usize { Err(ApprovalError::TooFew { needed, named }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approvals_must_be_possible() {
        let of = |needed, approvers: &[&str], within_ms| ApprovalSpec {
            needed,
            approvers: approvers.iter().map(ToString::to_string).collect(),
            within_ms,
        };
        for good in [of(1, &[], None), of(2, &["ann", "bob"], Some(1)), of(32, &[], None)] {
            assert_eq!(good.validate(), Ok(()));
            assert_eq!(serde_json::from_str::<ApprovalSpec>(&serde_json::to_string(&good).unwrap()).unwrap(), good);
        }
        for (bad, fault) in [
            (of(0, &[], None), ApprovalError::Needed(0)),
            (of(33, &[], None), ApprovalError::Needed(33)),
            (of(1, &["a b"], None), ApprovalError::Name("a b".into())),
            (of(2, &["ann", "ann"], None), ApprovalError::Twice("ann".into())),
            (of(3, &["ann", "bob"], None), ApprovalError::TooFew { needed: 3, named: 2 }),
            (of(1, &[], Some(0)), ApprovalError::NoTime),
        ] {
            assert_eq!(bad.validate(), Err(fault));
        }
        assert_eq!(of(1, &["x"; 40], None).validate(), Err(ApprovalError::TooMany(40)));
    }
}
