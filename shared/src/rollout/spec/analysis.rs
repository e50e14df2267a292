//! Which analyses the waves of a rollout must stand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_ANALYSES, MAX_ANALYSIS_ARGS, MAX_MEASUREMENTS};
use crate::rollout::TemplateRef;

/// An analysis that waves must stand before they pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct AnalysisUse {
    /// Which template. Without a version, the newest there is when the rollout is created; it stays with that one.
    pub template: TemplateRef,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// The waves it is for, counted from 1; all of them where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<u32>,
}

/// Why analyses as asked for are not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnalysisUseError {
    /// Too many of them.
    #[error("at most {MAX_ANALYSES} are expected")]
    TooMany,
    /// Too many arguments.
    #[error("{0}: it has at most {MAX_ANALYSIS_ARGS} arguments")]
    Args(TemplateRef),
    /// What the template says is not there.
    #[error("{0}: its metrics are not known")]
    Missing(TemplateRef),
    /// Too many measurements.
    #[error("they ask for {0} measurements, at most {MAX_MEASUREMENTS} are kept: ask for fewer with count")]
    Measurements(u32),
    /// A wave that the rollout does not have.
    #[error("{template}: there is no wave {wave}: the rollout has {waves}, counted from 1, each to be named once")]
    Wave {
        /// The template.
        template: TemplateRef,
        /// The wave named.
        wave: u32,
        /// Waves there are.
        waves: usize,
    },
}

/// Checks what the types alone do not express, for a rollout of `waves` waves.
///
/// # Errors
/// [`AnalysisUseError`] with the first fault found.
pub(super) fn validate(uses: &[AnalysisUse], waves: usize) -> Result<(), AnalysisUseError> {
    if uses.len() > MAX_ANALYSES {
        return Err(AnalysisUseError::TooMany);
    }
    for AnalysisUse { template, args, waves: named } in uses {
        if args.len() > MAX_ANALYSIS_ARGS {
            return Err(AnalysisUseError::Args(template.clone()));
        }
        let is_wrong = |at: usize, wave: u32| wave == 0 || wave as usize > waves || named[..at].contains(&wave);
        if let Some((_, wave)) = named.iter().enumerate().find(|(at, wave)| is_wrong(*at, **wave)) {
            return Err(AnalysisUseError::Wave { template: template.clone(), wave: *wave, waves });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn analyses_are_of_waves_that_there_are() {
        let used = |waves: &[u32]| AnalysisUse {
            template: "errors@2".parse().unwrap(),
            args: BTreeMap::new(),
            waves: waves.to_vec(),
        };
        assert_eq!(validate(&[used(&[]), used(&[1, 3])], 3), Ok(()));
        for bad in [&[0][..], &[4], &[2, 2]] {
            let error = validate(&[used(bad)], 3).unwrap_err().to_string();
            assert!(error.contains("errors@2") && error.contains("has 3"), "{error}");
        }
        assert_eq!(validate(&vec![used(&[]); MAX_ANALYSES + 1], 3), Err(AnalysisUseError::TooMany));
    }
}
