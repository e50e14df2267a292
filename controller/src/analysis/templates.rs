//! Templates by name, each with its versions. A version never changes; another template under the same name is another version, and
//! numbers are not given twice, even where a template was deleted between.

use muster_shared::ids::TemplateName;
use muster_shared::rollout::{Analysis, AnalysisTemplate, AnalysisUse, TemplateError, TemplateRef, TemplateView};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::events::NewEvent;
use crate::state::App;
use crate::store::{Expect, Records, StoreError, Table};

/// Names there may be, those of deleted templates included, since their numbers go on.
const MAX_TEMPLATES: usize = 500;
/// Versions that are kept of one template; the oldest go first. What a rollout uses it has kept for itself.
const MAX_VERSIONS: usize = 20;
/// Longest template, in bytes of JSON.
const MAX_TEMPLATE_BYTES: usize = 64 * 1024;
/// How often a change is tried when others change the same record.
const ATTEMPTS: usize = 20;

/// Everything that is kept under one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateRecord {
    /// The highest version that was ever given.
    latest: u32,
    /// Versions, oldest first; none where it was deleted.
    versions: Vec<TemplateView>,
}

/// Why a template was not taken or not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplatesError {
    /// No such template or version.
    #[error("there is no analysis template {0}: `muster analysis list` shows those there are")]
    Unknown(TemplateRef),
    /// It makes no sense.
    #[error("the analysis template is not valid: {0}")]
    Template(TemplateError),
    /// What a rollout says of it makes no sense.
    #[error("analysis {template}: {source}")]
    Use {
        /// The template.
        template: TemplateRef,
        /// What is wrong.
        source: TemplateError,
    },
    /// It is too long.
    #[error("an analysis template has at most {MAX_TEMPLATE_BYTES} bytes of JSON, this one has {0}")]
    TooLong(usize),
    /// There are too many.
    #[error("there are {MAX_TEMPLATES} names of analysis templates, deleted ones included, and there can be no more")]
    TooMany,
    /// Others kept changing the record.
    #[error("the template's record is being changed by others all the time: try again")]
    Busy,
    /// The store failed.
    #[error("the template's record cannot be read or written")]
    Store(#[from] StoreError),
}

async fn find(app: &App, name: &TemplateName) -> Result<(Expect, Option<TemplateRecord>), StoreError> {
    let stored = app.records.get::<TemplateRecord>(Table::AnalysisTemplates, name.as_str()).await?;
    Ok(stored.map_or((Expect::Absent, None), |stored| (Expect::Version(stored.version), Some(stored.value))))
}

/// The change of a record with its entry in the history.
async fn store(
    app: &App,
    name: &TemplateName,
    expect: Expect,
    record: &TemplateRecord,
    what: (&str, &str, String),
) -> Result<(), StoreError> {
    let (kind, actor, detail) = what;
    let entry =
        NewEvent { kind: format!("analysis-template.{kind}"), actor: actor.to_owned(), detail, ..NewEvent::default() };
    let (entry, _held) = app.events.prepare(entry)?;
    let change = Records::put(Table::AnalysisTemplates, name.as_str(), expect, record)?;
    app.records.commit(vec![change, entry]).await
}

/// Keeps `template` as the newest version under its name. The same as the newest there is stays that one.
///
/// # Errors
/// [`TemplatesError`] with what is wrong with it.
pub(crate) async fn push(app: &App, template: AnalysisTemplate, actor: &str) -> Result<TemplateView, TemplatesError> {
    template.validate().map_err(TemplatesError::Template)?;
    let bytes = serde_json::to_vec(&template).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_TEMPLATE_BYTES {
        return Err(TemplatesError::TooLong(bytes));
    }
    for _ in 0..ATTEMPTS {
        let (expect, known) = find(app, &template.name).await?;
        if known.is_none() {
            let all = app.records.all::<TemplateRecord>(Table::AnalysisTemplates, "").await?;
            if all.len() >= MAX_TEMPLATES {
                return Err(TemplatesError::TooMany);
            }
        }
        let mut record = known.unwrap_or(TemplateRecord { latest: 0, versions: Vec::new() });
        if let Some(newest) = record.versions.last().filter(|newest| newest.template == template) {
            return Ok(newest.clone());
        }
        record.latest += 1;
        let view = TemplateView {
            version: record.latest,
            pushed_at_ms: clock::now_ms(),
            pushed_by: actor.to_owned(),
            template: template.clone(),
        };
        record.versions.push(view.clone());
        let surplus = record.versions.len().saturating_sub(MAX_VERSIONS);
        record.versions.drain(..surplus);
        let detail = format!("{}@{}", template.name, view.version);
        match store(app, &template.name, expect, &record, ("pushed", actor, detail)).await {
            Ok(()) => return Ok(view),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(TemplatesError::Busy)
}

/// The newest version of every template, by name.
///
/// # Errors
/// [`TemplatesError::Store`].
pub(crate) async fn list(app: &App) -> Result<Vec<TemplateView>, TemplatesError> {
    let all = app.records.all::<TemplateRecord>(Table::AnalysisTemplates, "").await?;
    Ok(all.into_iter().filter_map(|(_, mut record)| record.value.versions.pop()).collect())
}

/// One version of a template; the newest where none is named.
///
/// # Errors
/// [`TemplatesError::Unknown`].
pub(crate) async fn show(app: &App, reference: &TemplateRef) -> Result<TemplateView, TemplatesError> {
    let versions = find(app, &reference.name).await?.1.map(|record| record.versions).unwrap_or_default();
    let wanted = |view: &&TemplateView| reference.version.is_none_or(|version| view.version == version);
    let found = versions.iter().rev().find(wanted).cloned();
    found.ok_or_else(|| TemplatesError::Unknown(reference.clone()))
}

/// Takes every version of a template away. Rollouts that use it go on with what they have.
///
/// # Errors
/// [`TemplatesError::Unknown`].
pub(crate) async fn delete(app: &App, name: &TemplateName, actor: &str) -> Result<TemplateView, TemplatesError> {
    for _ in 0..ATTEMPTS {
        let (expect, record) = find(app, name).await?;
        let unknown = || TemplatesError::Unknown(TemplateRef { name: name.clone(), version: None });
        let mut record = record.ok_or_else(unknown)?;
        let newest = record.versions.pop().ok_or_else(unknown)?;
        record.versions.clear();
        match store(app, name, expect, &record, ("deleted", actor, name.to_string())).await {
            Ok(()) => return Ok(newest),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(TemplatesError::Busy)
}

/// What `uses` measure: the newest version of each template that names none, arguments filled in.
///
/// # Errors
/// [`TemplatesError`] with the template at fault.
pub(crate) async fn resolve(app: &App, uses: &[AnalysisUse]) -> Result<Vec<Analysis>, TemplatesError> {
    let mut analyses = Vec::new();
    for AnalysisUse { template: reference, args, waves } in uses {
        let TemplateView { version, template, .. } = show(app, reference).await?;
        let pinned = TemplateRef { name: reference.name.clone(), version: Some(version) };
        let metrics = template.resolve(args);
        let metrics = metrics.map_err(|source| TemplatesError::Use { template: pinned.clone(), source })?;
        analyses.push(Analysis { template: pinned, waves: waves.clone(), metrics });
    }
    Ok(analyses)
}
