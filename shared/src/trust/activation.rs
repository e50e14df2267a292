//! When a device switches to what it is assigned: as soon as it can, or only when it is told.

use serde::{Deserialize, Serialize};

/// When a device switches to the bundle it is assigned. Whatever it says, the bundle is fetched, checked and tested without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "when", rename_all = "kebab-case", rename_all_fields = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Activation {
    /// As soon as the bundle has passed its test.
    #[default]
    AtOnce,
    /// Not before another assignment says so.
    Hold,
    /// At a time, or as soon after it as the device can.
    At {
        /// In milliseconds since the Unix epoch, by a clock that the device can believe.
        at_ms: u64,
    },
}

impl Activation {
    /// Whether there is nothing to wait for. It is left out of documents then, so that agents that know of nothing else read them.
    #[must_use]
    pub fn is_at_once(&self) -> bool {
        *self == Self::AtOnce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_form_is_fixed_and_strict() {
        for (activation, text) in [
            (Activation::AtOnce, r#"{"when":"at-once"}"#),
            (Activation::Hold, r#"{"when":"hold"}"#),
            (Activation::At { at_ms: 7 }, r#"{"when":"at","at_ms":7}"#),
        ] {
            assert_eq!(serde_json::to_string(&activation).unwrap(), text);
            assert_eq!(serde_json::from_str::<Activation>(text).unwrap(), activation);
        }
        for bad in [r#"{"when":"at"}"#, r#"{"when":"at","at_ms":7,"more":1}"#, r#"{"when":"soon"}"#] {
            assert!(serde_json::from_str::<Activation>(bad).is_err(), "{bad}");
        }
    }
}
