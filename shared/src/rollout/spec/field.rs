//! Which field of a wish a fault is about, for those that show its place in a file.

use super::{EmergencyError, ReachError, ShadowFirstError, SpecError, WindowError};

impl SpecError {
    /// The field at fault, waves counted from 0: `limits.max_error_rate`, `waves[1].max_duration_ms`. Where fields
    /// contradict each other, the one to begin with.
    #[must_use]
    pub fn field(&self) -> String {
        let fixed = match self {
            Self::Waves(_) | Self::LastWave => "waves",
            Self::Duration(number) => return of_wave(*number, "max_duration_ms"),
            Self::Stage(_) => "stage",
            Self::Emergency(error) => of_emergency(*error),
            Self::Reach(ReachError::Holdback) => "holdback",
            Self::Reach(ReachError::Emergency) => "emergency",
            Self::Gate(error) => return format!("gate.{}", error.field()),
            Self::Experiment(_) => "gate.guardrails",
            Self::Analyses(_) => "analyses",
            Self::Approval(_) => "approval",
            Self::BlueGreen(_) => "blue_green",
            Self::Program(_) => "bundle",
            Self::Rate(_) => "rate",
            Self::ShadowFirst(ShadowFirstError::NoShadow) => "limits.max_disagreement",
            Self::ShadowFirst(
                ShadowFirstError::Both(number)
                | ShadowFirstError::Split(number)
                | ShadowFirstError::Share(number, _)
                | ShadowFirstError::Late(number)
                | ShadowFirstError::Last(number),
            ) => return of_wave(*number, "stage"),
            Self::Deadlines(_) => "deadlines",
            Self::AbortCriteria(_) => "abort_criteria",
            Self::Windows(WindowError::Zone(_) | WindowError::NoWindows) => "timezone",
            Self::Windows(_) => "windows",
            Self::Limit { field, .. } if *field == "priority" || field.contains('.') => field,
            Self::Limit { field, .. } => return format!("limits.{field}"),
        };
        fixed.to_owned()
    }
}

fn of_wave(number: usize, field: &str) -> String {
    format!("waves[{}].{field}", number.saturating_sub(1))
}

fn of_emergency(error: EmergencyError) -> &'static str {
    match error {
        EmergencyError::Waves => "waves",
        EmergencyError::Gate => "gate",
        EmergencyError::Analyses => "analyses",
        EmergencyError::Limits => "limits",
        EmergencyError::Stage => "stage",
        EmergencyError::People => "approval",
        EmergencyError::Rate => "rate",
        EmergencyError::Delivery => "delivery",
    }
}

#[cfg(test)]
mod tests {
    use crate::rollout::{Deadlines, GateSpec, RolloutSpec, WaveSpec};
    use crate::selector::Selector;
    use crate::trust::Stage;

    /// Every field named is one that documents have.
    #[test]
    fn the_field_at_fault_is_named_as_documents_name_it() {
        let wave = |size: &str| WaveSpec::of(size.parse().unwrap(), 1_000, 60_000);
        let good = RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), vec![wave("1"), wave("100%")]);
        let at = |change: &dyn Fn(&mut RolloutSpec)| {
            let mut spec = good.clone();
            change(&mut spec);
            spec.validate().unwrap_err().field()
        };
        assert_eq!(at(&|s| s.waves.truncate(1)), "waves");
        assert_eq!(at(&|s| s.waves[1].max_duration_ms = 1), "waves[1].max_duration_ms");
        assert_eq!(at(&|s| s.waves[1].stage = Some(Stage::Shadow { share_bp: 1 })), "waves[1].stage");
        assert_eq!(at(&|s| s.limits.min_reports = 0), "limits.min_reports");
        assert_eq!(at(&|s| s.watch.max_error_rate = 2.0), "watch.max_error_rate");
        assert_eq!(at(&|s| s.priority = 200), "priority");
        assert_eq!(at(&|s| s.timezone = Some("Europe/Paris".to_owned())), "timezone");
        assert_eq!(at(&|s| s.gate = Some(GateSpec::of(Vec::new()))), "gate.guardrails");
        assert_eq!(at(&|s| s.deadlines = Some(Deadlines { in_progress_ms: None, offline_ms: None })), "deadlines");
        assert_eq!(at(&|s| (s.emergency, s.gate) = (true, Some(GateSpec::of(Vec::new())))), "waves");
    }
}
