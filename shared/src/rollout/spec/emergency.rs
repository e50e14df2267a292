//! What an emergency leaves out.

use super::{DEFAULT_PRIORITY, Limits, RolloutSpec};

/// What an emergency cannot be asked for: it would be a promise that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EmergencyError {
    /// More than one wave, or one that is watched.
    #[error("leave out waves, selectors of waves and the soak, or let it be no emergency")]
    Waves,
    /// A comparison.
    #[error("leave out the gate, or let it be no emergency")]
    Gate,
    /// Analyses.
    #[error("leave out the analyses, or let it be no emergency")]
    Analyses,
    /// Limits.
    #[error("leave out the limits, or let it be no emergency")]
    Limits,
    /// A bundle that serves nobody.
    #[error("it takes the incumbent's place; leave out the stage, or let it be no emergency")]
    Stage,
    /// People and times that it waits for.
    #[error(
        "it waits for nobody: leave out approvals, its beginning, windows, what becomes of conflicts and priority, or let it be no emergency"
    )]
    People,
    /// Devices that come in one after the other.
    #[error("it goes to everybody at once: leave out the rate, or let it be no emergency")]
    Rate,
    /// Restrictions of the delivery.
    #[error("leave out how fast, when and on which links devices fetch, or let it be no emergency")]
    Delivery,
}

/// Whether an emergency asks for nothing that it leaves out; anything else may.
pub(super) fn validate(spec: &RolloutSpec) -> Result<(), EmergencyError> {
    let expect = |holds: bool, error| if holds { Ok(()) } else { Err(error) };
    if !spec.emergency {
        return Ok(());
    }
    let at_once = spec.waves.len() == 1 && spec.waves.iter().all(|wave| wave.soak_ms == 0);
    expect(at_once, EmergencyError::Waves)?;
    expect(spec.gate.is_none(), EmergencyError::Gate)?;
    expect(spec.analyses.is_empty(), EmergencyError::Analyses)?;
    expect(spec.limits == Limits::default(), EmergencyError::Limits)?;
    expect(spec.stages().iter().all(|stage| stage.is_serve()), EmergencyError::Stage)?;
    let waits_for_nobody = spec.approval.is_none()
        && spec.start_at_ms.is_none()
        && spec.windows.is_empty()
        && spec.conflict.is_skip()
        && spec.priority == DEFAULT_PRIORITY;
    expect(waits_for_nobody, EmergencyError::People)?;
    expect(spec.rate.is_none(), EmergencyError::Rate)?;
    expect(spec.delivery.is_default(), EmergencyError::Delivery)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{AnalysisUse, ApprovalSpec, Conflict, Rate, SpecError, WaveSpec};
    use crate::selector::Selector;
    use crate::trust::{DeliveryPolicy, Stage};

    fn emergency() -> RolloutSpec {
        let waves = vec![WaveSpec::of("100%".parse().unwrap(), 0, 60_000)];
        RolloutSpec { emergency: true, ..RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), waves) }
    }

    #[test]
    fn an_emergency_takes_no_care() {
        let with = |change: &dyn Fn(&mut RolloutSpec)| {
            let mut spec = emergency();
            change(&mut spec);
            spec.validate()
        };
        assert_eq!(with(&|_| {}), Ok(()));
        let refused = |error| Err(SpecError::Emergency(error));
        assert_eq!(with(&|s| s.waves[0].soak_ms = 1), refused(EmergencyError::Waves));
        assert_eq!(with(&|s| s.waves.push(s.waves[0].clone())), refused(EmergencyError::Waves));
        assert_eq!(with(&|s| s.limits.max_failures = 1), refused(EmergencyError::Limits));
        let asked = AnalysisUse { template: "errors".parse().unwrap(), args: Default::default(), waves: vec![] };
        assert_eq!(with(&|s| s.analyses.push(asked.clone())), refused(EmergencyError::Analyses));
        assert_eq!(with(&|s| s.stage = Stage::Shadow { share_bp: 1 }), refused(EmergencyError::Stage));
        assert_eq!(with(&|s| s.delivery = DeliveryPolicy::at_once()), refused(EmergencyError::Delivery));
        let approval = Some(ApprovalSpec { needed: 1, approvers: Vec::new(), within_ms: None });
        assert_eq!(with(&|s| s.approval = approval.clone()), refused(EmergencyError::People));
        assert_eq!(with(&|s| s.start_at_ms = Some(1)), refused(EmergencyError::People));
        assert_eq!(with(&|s| s.conflict = Conflict::Queue), refused(EmergencyError::People));
        let rate = Some(Rate { maximum_per_minute: 1_000, exponential_rate: None });
        assert_eq!(with(&|s| s.rate = rate), refused(EmergencyError::Rate));
        let words = with(&|s| s.limits.max_failures = 1).unwrap_err().to_string();
        assert!(words.contains("leave out the limits"), "{words}");
    }

    #[test]
    fn a_wish_that_is_none_keeps_its_bytes() {
        let spec = RolloutSpec { emergency: false, ..emergency() };
        assert!(!serde_json::to_string(&spec).unwrap().contains("emergency"));
    }
}
