//! Which analyses waves must stand, from flags; a file has the same under `analyses`.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::Args;
use muster_shared::ids::TemplateName;
use muster_shared::rollout::{AnalysisUse, TemplateRef};

use crate::failure::Failure;

/// `NAME[@VERSION][:WAVES]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AnalysisFlag {
    template: TemplateRef,
    waves: Vec<u32>,
}

impl FromStr for AnalysisFlag {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (template, waves) = text.split_once(':').map_or((text, None), |(template, waves)| (template, Some(waves)));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number > 0);
        let waves = waves.map(|waves| waves.split(',').map(number).collect::<Option<Vec<u32>>>());
        let waves = match waves {
            None => Vec::new(),
            Some(waves) => waves.ok_or_else(|| format!("{text:?}: waves are numbers from 1 on, as errors:1,2"))?,
        };
        let template = template.parse().map_err(|error: muster_shared::rollout::TemplateRefError| error.to_string())?;
        Ok(Self { template, waves })
    }
}

/// `TEMPLATE.NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArgumentFlag {
    template: TemplateName,
    name: String,
    value: String,
}

impl FromStr for ArgumentFlag {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is no argument of an analysis: write TEMPLATE.NAME=VALUE");
        let (path, value) = text.split_once('=').ok_or_else(refuse)?;
        // Names of templates may have dots, those of arguments have none.
        let (template, name) = path.rsplit_once('.').ok_or_else(refuse)?;
        let template = TemplateName::new(template).map_err(|_| refuse())?;
        Ok(Self { template, name: name.to_owned(), value: value.to_owned() })
    }
}

/// Analyses that waves must stand.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct AnalysisOptions {
    /// An analysis that waves must stand before they pass, as success-rate, success-rate@2 or success-rate:1,2 for waves 1 and 2 alone; once
    /// for each.
    #[arg(long = "analysis", value_name = "NAME[@VERSION][:WAVES]")]
    analyses: Vec<AnalysisFlag>,
    /// An argument of such an analysis, as success-rate.service=press; once for each. Where one template is used twice, use a file.
    #[arg(long, value_name = "TEMPLATE.NAME=VALUE")]
    analysis_arg: Vec<ArgumentFlag>,
}

impl AnalysisOptions {
    /// What is asked for.
    ///
    /// # Errors
    /// [`Failure`] when an argument is of no analysis.
    pub(super) fn uses(&self) -> Result<Vec<AnalysisUse>, Failure> {
        let is_stray = |argument: &&ArgumentFlag| {
            !self.analyses.iter().any(|analysis| analysis.template.name == argument.template)
        };
        if let Some(ArgumentFlag { template, .. }) = self.analysis_arg.iter().find(is_stray) {
            return Err(Failure::input(format!("--analysis-arg {template}.…: there is no --analysis {template}")));
        }
        let uses = self.analyses.iter().map(|AnalysisFlag { template, waves }| {
            let own = self.analysis_arg.iter().filter(|argument| argument.template == template.name);
            let args: BTreeMap<String, String> =
                own.map(|argument| (argument.name.clone(), argument.value.clone())).collect();
            AnalysisUse { template: template.clone(), args, waves: waves.clone() }
        });
        Ok(uses.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_name_templates_waves_and_arguments() {
        let options = |analyses: &[&str], args: &[&str]| AnalysisOptions {
            analyses: analyses.iter().map(|text| text.parse().unwrap()).collect(),
            analysis_arg: args.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let uses =
            options(&["errors@2:1,3", "web.checks"], &["web.checks.query=a=b", "errors.most=0.1"]).uses().unwrap();
        assert_eq!((uses[0].template.to_string(), uses[0].waves.clone()), ("errors@2".into(), vec![1, 3]));
        assert_eq!(uses[0].args, BTreeMap::from([("most".into(), "0.1".into())]));
        assert_eq!(uses[1].args, BTreeMap::from([("query".into(), "a=b".into())]));
        let stray = options(&["errors"], &["error.most=1"]).uses().unwrap_err().to_string();
        assert!(stray.contains("no --analysis error"), "{stray}");
        for bad in ["", "Errors", "errors:0", "errors:a", "errors:"] {
            assert!(bad.parse::<AnalysisFlag>().is_err(), "{bad}");
        }
        for bad in ["", "errors=1", "errors.most", "E.most=1"] {
            assert!(bad.parse::<ArgumentFlag>().is_err(), "{bad}");
        }
    }
}
