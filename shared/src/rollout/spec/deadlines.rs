//! How long a device may take before its silence counts.

use serde::{Deserialize, Serialize};

use super::RolloutSpec;

/// Longest deadline, in milliseconds: a year.
const MOST_MS: u64 = 365 * 86_400_000;

/// Deadlines of each device by itself. One that has not committed by then is `timed_out`: it holds the wave up no more, and has not succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deadlines {
    /// Of a device that was reached: since it was first seen, after it was told, to be connected or to have taken the bundle up; in
    /// milliseconds. None to wait as long as the wave does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_progress_ms: Option<u64>,
    /// Of a device that was not reached so far: since it was told, in milliseconds. None to let it be away as long as it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline_ms: Option<u64>,
}

/// Whether the deadlines can be kept; says what is wrong, and what to do.
pub(super) fn validate(spec: &RolloutSpec) -> Result<(), &'static str> {
    let Some(Deadlines { in_progress_ms, offline_ms }) = spec.deadlines else { return Ok(()) };
    let given = [in_progress_ms, offline_ms];
    let faults = [
        (given == [None, None], "give in_progress_ms, offline_ms or both"),
        (given.into_iter().flatten().any(|ms| ms == 0 || ms > MOST_MS), "each is longer than 0 and a year at most"),
        (
            in_progress_ms.is_some_and(|ms| ms <= spec.watch.probation_ms),
            "in_progress_ms must be longer than watch.probation_ms, or no device could commit in time",
        ),
        (spec.emergency, "an emergency is held against nothing: leave them out, or let it be no emergency"),
        (
            spec.blue_green.is_some(),
            "devices of a group wait for each other, so none has a deadline of its own: leave them out, the wave's longest duration pauses it",
        ),
        (
            spec.waves.iter().any(|wave| wave.stage.is_some()),
            "devices that run the bundle as shadow first are told twice, so what they have come to is not final: leave it out, or let no wave have a stage of its own",
        ),
    ];
    faults.iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, why)| Err(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{BlueGreen, WaveSpec};
    use crate::selector::Selector;
    use crate::trust::Stage;

    #[test]
    fn deadlines_that_cannot_be_kept_are_refused() {
        let waves = vec![WaveSpec::of("100%".parse().unwrap(), 0, 60_000)];
        let plain = RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), waves);
        assert!(!serde_json::to_string(&plain).unwrap().contains("deadline"), "a wish that is none keeps its bytes");
        let deadlines = |in_progress_ms, offline_ms| Some(Deadlines { in_progress_ms, offline_ms });
        let good = RolloutSpec { deadlines: deadlines(Some(1_800_000), None), ..plain };
        assert_eq!(good.validate(), Ok(()));
        let says = |change: &dyn Fn(&mut RolloutSpec), word: &str| {
            let mut spec = good.clone();
            change(&mut spec);
            let error = spec.validate().unwrap_err().to_string();
            assert!(error.starts_with("deadlines: ") && error.contains(word), "{error:?} does not say {word:?}");
        };
        says(&|s| s.deadlines = deadlines(None, None), "or both");
        says(&|s| s.deadlines = deadlines(None, Some(0)), "longer than 0");
        says(&|s| s.deadlines = deadlines(None, Some(MOST_MS + 1)), "a year");
        says(&|s| s.deadlines = deadlines(Some(60_000), None), "watch.probation_ms");
        says(&|s| s.emergency = true, "emergency");
        let shadow = WaveSpec { stage: Some(Stage::Shadow { share_bp: 1 }), ..good.waves[0].clone() };
        says(&|s| s.waves.insert(0, shadow.clone()), "shadow");
        says(&|s| s.blue_green = Some(BlueGreen::default()), "group");
        assert!(serde_json::from_str::<Deadlines>(r#"{"in_progress": 5}"#).is_err());
    }
}
