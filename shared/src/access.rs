//! Access tokens for people and programs: who may use the API as what.

use serde::{Deserialize, Serialize};

use crate::api::AccessRole;
use crate::limits::MAX_ACCESS_NAME_BYTES;

/// Whether `name` can be an access token's: 1 to 64 letters, digits, `-`, `_`, `.` and `@`.
#[must_use]
pub fn is_access_name(name: &str) -> bool {
    (1..=MAX_ACCESS_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@'))
}

/// A wish for an access token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateAccess {
    /// Whose it is: the name under which the records show what is done with it. No two tokens share one.
    pub name: String,
    /// What its bearer may do; there is one administrator, whose token the controller's configuration names.
    pub role: AccessRole,
}

/// A new access token, shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedAccess {
    /// Whose it is.
    pub name: String,
    /// What its bearer may do.
    pub role: AccessRole,
    /// The bearer token.
    pub token: String,
}

/// An access token as the controller keeps it: without what lets anybody use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AccessView {
    /// Whose it is.
    pub name: String,
    /// What its bearer may do.
    pub role: AccessRole,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words() {
        for good in ["ann", "ann.lee@plant-7", "CI_2", &"a".repeat(64)] {
            assert!(is_access_name(good), "{good}");
        }
        for bad in ["", "ann lee", "ann/lee", "änn", "a\n", &"a".repeat(65)] {
            assert!(!is_access_name(bad), "{bad}");
        }
    }
}
