//! `muster drift export`: the counts behind the scores, or sketches of raw values, for notebooks.

mod quantiles;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use muster_shared::api::{QuantileExport, WindowExport};
use muster_shared::ids::BundleRef;

use super::By;
use crate::command::{Context, block_on};
use crate::disk::Existing;
use crate::duration::{Millis, since_query};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The bundle, as digits@1.0.0.
    #[arg(value_name = "NAME@VERSION")]
    bundle: BundleRef,
    /// Group devices by this label.
    #[arg(long, value_name = "LABEL")]
    group_by: Option<String>,
    /// What else to tell apart; windows, unless --quantiles is given.
    #[arg(long, value_enum)]
    by: Option<By>,
    /// Leave out windows older than this.
    #[arg(long, value_name = "DURATION")]
    since: Option<Millis>,
    /// The form: one row a cell, or one document.
    #[arg(long, value_enum, default_value_t = Form::Csv)]
    format: Form,
    /// Write the quantile sketches into this folder instead, one file a column and group. They contain raw values.
    ///
    /// Each file is a kll_floats_sketch of Apache DataSketches, whose libraries read it; index.csv says which is which. Sketches are
    /// there of columns for which the bundle's description says `quantiles`.
    #[arg(long, value_name = "DIR", conflicts_with = "format")]
    quantiles: Option<PathBuf>,
    /// Replace files that are in the folder already.
    #[arg(long, requires = "quantiles")]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// One row for each cell of each column, group and step of time.
    Csv,
    /// One document.
    Json,
}

fn as_csv(export: &WindowExport) -> Result<String, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([
        "group",
        "slice",
        "start_ms",
        "end_ms",
        "devices",
        "column",
        "cell",
        "reference",
        "current",
    ])?;
    for window in &export.windows {
        let cells = export.cells.get(&window.column).map_or(&[][..], Vec::as_slice);
        for ((cell, reference), current) in cells.iter().zip(&window.counts) {
            let [start, end, devices, reference, current] =
                [window.start_ms, window.end_ms, u64::from(window.devices), *reference, *current]
                    .map(|n| n.to_string());
            let slice = window.slice.as_deref().unwrap_or_default();
            let row = [&window.group, slice, &start, &end, &devices, &window.column, cell, &reference, &current];
            writer.write_record(row)?;
        }
    }
    let bytes = writer.into_inner().map_err(csv::IntoInnerError::into_error)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses, or a file cannot be written.
pub(super) fn run(context: &Context, args: &ExportArgs) -> Result<(), Failure> {
    let mut query = vec![("bundle", args.bundle.to_string())];
    query.extend(args.group_by.as_ref().map(|label| ("group-by", label.clone())));
    let by = args.by.or_else(|| args.quantiles.is_none().then_some(By::Window));
    query.extend(by.map(|by| ("by", by.word().to_owned())));
    query.extend(since_query(args.since));
    let client = context.client()?;
    if let Some(folder) = &args.quantiles {
        let export: QuantileExport = block_on(client.get(&["drift", "quantiles"], &query))?;
        return quantiles::write(context, &export, folder, Existing::from_force(args.force));
    }
    let export: WindowExport = block_on(client.get(&["drift", "export"], &query))?;
    if args.format == Form::Json || context.output.is_json() {
        return context.output.show_line(&export, |export| serde_json::to_string(export).unwrap_or_default());
    }
    output::print(&as_csv(&export).map_err(|error| Failure::unmet("the counts have no form in CSV").because(error))?)
}
