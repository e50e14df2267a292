//! `muster analysis`: templates of what waves must show, and trying them out.

mod run;
mod words;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use muster_shared::rollout::{AnalysisTemplate, TemplateRef, TemplateView};

pub(crate) use words::report_table;

use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::{disk, output, settings_file};

const MAX_FILE_BYTES: u64 = 256 * 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum AnalysisCommand {
    /// Bring a template. It becomes the newest version under its name; the same again stays the version it is.
    Push {
        /// The template, in YAML (.yaml), JSON (.json) or TOML.
        file: PathBuf,
        /// Only check the file; nothing is sent.
        #[arg(long)]
        check: bool,
    },
    /// List the newest version of every template.
    List,
    /// Show a template as it would be pushed again.
    Show {
        /// Its name, or NAME@VERSION for another version than the newest.
        #[arg(value_name = "NAME[@VERSION]")]
        template: TemplateRef,
    },
    /// Take a template away. Rollouts that use it go on with what they have.
    Delete {
        /// Its name.
        name: muster_shared::ids::TemplateName,
    },
    /// Measure each metric of a template once, from here, to try it out. Exits with 0 if all are successful, 1 if one failed, 5 if one shows
    /// neither or could not be measured.
    Run(run::RunArgs),
}

/// The template in `path`, checked.
fn read(path: &Path) -> Result<AnalysisTemplate, Failure> {
    let text = disk::read_text(path, MAX_FILE_BYTES)?;
    let fault = |reason: String| Failure::input(format!("{}: {reason}", path.display()));
    let template: AnalysisTemplate = if settings_file::is_named(path, &["json"]) {
        serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?
    } else {
        settings_file::parse(&text, path)?
    };
    template.validate().map_err(|error| settings_file::fault(&text, path, &[&error.field], &error))?;
    Ok(template)
}

fn named(view: &TemplateView) -> String {
    format!("{}@{}", view.template.name, view.version)
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when that did not succeed.
pub(crate) fn run(context: &Context, command: AnalysisCommand) -> Result<(), Failure> {
    match command {
        AnalysisCommand::Push { file, check } => {
            let template = read(&file)?;
            if check {
                output::note(&format!("{} is a template of {} metrics", template.name, template.metrics.len()));
                return Ok(());
            }
            let client = context.client()?;
            let view: TemplateView = block_on(client.post(&["analysis-templates"], &template))?;
            context.output.show(&view, named)
        }
        AnalysisCommand::List => {
            let client = context.client()?;
            let all: Vec<TemplateView> = block_on(client.list(&["analysis-templates"], &[]))?;
            if all.is_empty() {
                output::note("no analysis template");
            }
            context.output.show(&all, |all| words::list_table(all))
        }
        AnalysisCommand::Show { template } => {
            let client = context.client()?;
            let view: TemplateView = block_on(client.get(&["analysis-templates", &template.to_string()], &[]))?;
            context.output.show(&view, words::template)
        }
        AnalysisCommand::Delete { name } => {
            let client = context.client()?;
            let view: TemplateView = block_on(client.delete(&["analysis-templates", name.as_str()]))?;
            context.output.show(&view, |view| format!("{} is deleted", view.template.name))
        }
        AnalysisCommand::Run(args) => run::run(context, &args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> Result<AnalysisTemplate, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn the_templates_of_the_documentation_are_templates() {
        let page = include_str!("../../../../docs/analysis.md");
        let examples: Vec<&str> = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        let templates: Vec<&str> = examples.into_iter().filter(|text| text.starts_with("name:")).collect();
        assert!(templates.len() >= 2, "{templates:?}");
        for text in templates {
            let template = written("t.yaml", text).unwrap();
            let json = serde_json::to_string(&template).unwrap();
            assert_eq!(written("t.json", &json).unwrap(), template);
        }
    }

    #[test]
    fn mistakes_name_file_line_and_field() {
        let good = "name: a\nmetrics:\n  - name: m\n    successCondition: result > 1\n    provider: {fleet: {}}\n";
        written("t.yaml", good).unwrap();
        for (text, parts) in [
            (good.replace("successCondition", "successcondition"), ["line 4", "successCondition"]),
            (good.replace("result > 1", "result >"), ["line 4: metrics[0].successCondition", "at character 9"]),
            (good.replace("fleet: {}", "datadog: {}"), ["datadog", "prometheus, web, fleet"]),
            (good.replace("name: m", "name: m\n    interval: 5"), ["line 4", "length of time"]),
        ] {
            let error = written("t.yaml", &text).unwrap_err().chain();
            assert!(error.contains("t.yaml") && parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
        }
    }
}
