//! Groups of devices that switch together, from flags or from a file in the same words.

use clap::Args;
use muster_shared::rollout::BlueGreen;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::duration::Millis;

/// Which devices switch together.
#[derive(Debug, Clone, Default, Args, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct BlueGreenOptions {
    /// Prepare the bundle on all devices of a group, then let them switch at one time. KEY is the label or attribute whose value names a
    /// device's group, as site; waves then count groups.
    #[arg(long = "switch-by", value_name = "KEY")]
    group_by: Option<String>,
    /// How long before the switch devices are told of it [default: 30s].
    #[arg(long = "switch-lead", value_name = "DURATION", requires = "group_by")]
    lead: Option<Millis>,
}

impl BlueGreenOptions {
    /// What a section of a file asks for.
    pub(super) fn blue_green(&self) -> BlueGreen {
        let default = BlueGreen::default();
        BlueGreen {
            group_by: self.group_by.clone().unwrap_or(default.group_by),
            lead_ms: self.lead.map_or(default.lead_ms, |lead| lead.0),
        }
    }

    /// What flags ask for; none where none was given.
    pub(super) fn asked(&self) -> Option<BlueGreen> {
        self.group_by.is_some().then(|| self.blue_green())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_without_a_group() {
        assert_eq!(BlueGreenOptions::default().asked(), None);
        let by_site = BlueGreenOptions { group_by: Some("site".to_owned()), lead: None };
        assert_eq!(by_site.asked(), Some(BlueGreen { group_by: "site".to_owned(), lead_ms: 30_000 }));
    }
}
