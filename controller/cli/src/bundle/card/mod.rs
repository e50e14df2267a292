//! `muster bundle card`: what a bundle is and how it does in the field, in Markdown for people.

mod declared;
mod live;

use std::path::Path;

use muster_shared::api::ModelCard;
use muster_shared::ids::BundleRef;

use super::folder::Folder;
use crate::command::{Context, block_on};
use crate::duration::{Millis, since_query};
use crate::failure::Failure;
use crate::output;

/// `text` as prose: nothing in it is HTML or the border of a cell.
fn prose(text: &str) -> String {
    output::clean(text).replace('\\', "\\\\").replace('<', "\\<").replace('|', "\\|")
}

/// `text` as a name that stands for itself.
fn code(text: &str) -> String {
    let plain = output::clean(text).replace('\n', " ").replace('`', "'").replace('|', "\\|");
    format!("`{plain}`")
}

/// A table. Cells are Markdown already.
fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('\n', " ")).collect();
        format!("| {} |", cells.join(" | "))
    };
    let titles = header.iter().map(|title| (*title).to_owned()).collect();
    let rule = header.iter().map(|_| "---".to_owned()).collect();
    [titles, rule].into_iter().chain(rows).map(line).collect::<Vec<_>>().join("\n")
}

/// Names and values, those without a value left out; empty where none has one.
fn facts(pairs: impl IntoIterator<Item = (&'static str, Option<String>)>) -> String {
    let line = |(name, value): (&str, Option<String>)| value.map(|value| format!("- **{name}**: {value}"));
    pairs.into_iter().filter_map(line).collect::<Vec<_>>().join("\n")
}

/// A heading with what stands below it; nothing where nothing does.
fn section(heading: &str, parts: impl IntoIterator<Item = String>) -> Option<String> {
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| format!("{heading}\n\n{}", parts.join("\n\n")))
}

fn markdown(card: &ModelCard) -> String {
    let sections = declared::sections(card).into_iter().chain(live::sections(card));
    sections.collect::<Vec<_>>().join("\n\n")
}

fn of_folder(dir: &Path) -> Result<ModelCard, Failure> {
    let local = Folder::open(dir)?.manifest()?;
    Ok(ModelCard {
        bundle: local.manifest.bundle(),
        manifest_digest: local.digest,
        signed_by: local.envelope.signatures.into_iter().map(|signature| signature.keyid).collect(),
        pushed_at_ms: None,
        manifest: local.manifest,
        live: None,
    })
}

/// Does what was asked: a folder if there is one of that name, a bundle of the controller otherwise.
///
/// # Errors
/// [`Failure`] when there is no such bundle.
pub(super) fn run(context: &Context, bundle: &str, since: Option<Millis>) -> Result<(), Failure> {
    let card = if Path::new(bundle).is_dir() {
        of_folder(Path::new(bundle))?
    } else {
        let bundle: BundleRef = bundle.parse().map_err(|error| {
            Failure::input(format!("{bundle:?} is neither a folder nor a bundle's name")).because(error)
        })?;
        let query: Vec<_> = since_query(since).into_iter().collect();
        let version = bundle.version.to_string();
        block_on(context.client()?.get(&["bundles", bundle.name.as_str(), &version, "card"], &query))?
    };
    context.output.show(&card, markdown)
}

#[cfg(test)]
mod tests;
