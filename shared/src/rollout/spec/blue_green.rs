//! Groups of devices that switch together: prepared everywhere first, then switched at one time.

use serde::{Deserialize, Serialize};

use super::{RolloutSpec, WaveSpec};
use crate::limits::MAX_LABEL_BYTES;

const DAY_MS: u64 = 86_400_000;

/// Devices of a group (a site) fetch, check and test the bundle while they serve what they have; once all of them that can be reached are
/// ready, they switch at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BlueGreen {
    /// The label, or else the attribute, whose value says to which group a device belongs.
    pub group_by: String,
    /// How long before the switch devices are told of it, in milliseconds: what the message needs to reach every one of them.
    pub lead_ms: u64,
}

impl Default for BlueGreen {
    fn default() -> Self {
        Self { group_by: "site".to_owned(), lead_ms: 30_000 }
    }
}

/// Whether groups can switch together as the wish has it; says what is wrong, and what to do.
pub(super) fn validate(spec: &RolloutSpec) -> Result<(), &'static str> {
    let Some(BlueGreen { group_by, lead_ms }) = &spec.blue_green else { return Ok(()) };
    let named = (1..=MAX_LABEL_BYTES).contains(&group_by.len()) && !group_by.chars().any(char::is_control);
    let too_short = |wave: &WaveSpec| wave.max_duration_ms <= wave.soak_ms.saturating_add(*lead_ms);
    let faults = [
        (!named, "group_by must name a label or an attribute"),
        (*lead_ms > DAY_MS, "lead_ms must be a day at most"),
        (spec.emergency, "an emergency waits for nobody: leave it out, or let it be no emergency"),
        (
            spec.stages().iter().any(|stage| !stage.is_serve()),
            "what runs beside another switches nothing: leave stage out, of waves too",
        ),
        (
            spec.gate.is_some(),
            "devices of a group switch together, so none like them is left to compare with: leave gate out",
        ),
        (spec.limits.max_failures > 0, "a device that fails takes its group back, so limits.max_failures must be 0"),
        (
            spec.waves.iter().any(too_short),
            "the longest duration of every wave must be longer than lead_ms and its soak time",
        ),
    ];
    faults.iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, why)| Err(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::Selector;
    use crate::trust::Stage;

    #[test]
    fn what_cannot_switch_together_is_refused() {
        let waves = vec![WaveSpec::of("100%".parse().unwrap(), 1_000, 60_000)];
        let plain = RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), waves);
        assert!(!serde_json::to_string(&plain).unwrap().contains("blue"), "a wish that is none keeps its bytes");
        let good = RolloutSpec { blue_green: Some(BlueGreen::default()), ..plain };
        assert_eq!(good.validate(), Ok(()));
        let says = |change: &dyn Fn(&mut RolloutSpec), word: &str| {
            let mut spec = good.clone();
            change(&mut spec);
            let error = spec.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        };
        let asked = |group_by: &str, lead_ms| Some(BlueGreen { group_by: group_by.to_owned(), lead_ms });
        says(&|s| s.blue_green = asked("", 1), "group_by");
        says(&|s| s.blue_green = asked("site", DAY_MS + 1), "a day");
        says(&|s| s.blue_green = asked("site", 59_000), "longest duration");
        says(&|s| s.limits.max_failures = 1, "max_failures");
        says(&|s| s.stage = Stage::Shadow { share_bp: 1 }, "stage");
        let read: BlueGreen = serde_json::from_str("{}").unwrap();
        assert_eq!(read, BlueGreen { group_by: "site".to_owned(), lead_ms: 30_000 });
        assert!(serde_json::from_str::<BlueGreen>(r#"{"group": "site"}"#).is_err());
    }
}
