//! `muster samples show` and `list`.

use std::time::Duration;

use clap::Args;
use comfy_table::Cell;
use muster_shared::collection::{CollectionDevice, CollectionStage, CollectionStatus, CollectionView};
use muster_shared::ids::CollectionId;

use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::output::{self, Tone, cell, number, toned};

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The collection.
    id: CollectionId,
    /// Follow it until nothing is taken in any more, or every device has uploaded what it had; each change is told.
    #[arg(long)]
    watch: bool,
    /// Time between two looks.
    #[arg(long, default_value = "1s", value_name = "DURATION")]
    interval: Millis,
    /// Stop watching with exit code 1 after this.
    #[arg(long, value_name = "DURATION", requires = "watch")]
    timeout: Option<Millis>,
}

fn status(view: &CollectionView) -> Cell {
    let tone = match view.status {
        CollectionStatus::Open => Tone::Busy,
        CollectionStatus::Uploading => Tone::Busy,
        CollectionStatus::Closed => Tone::Good,
    };
    toned(output::word(&view.status), tone)
}

/// A row for each collection.
pub(super) fn table(items: &[CollectionView]) -> String {
    let row = |view: &CollectionView| {
        vec![
            cell(view.id.as_str()),
            status(view),
            cell(view.spec.selector.to_string()),
            cell(view.spec.rule.to_string()),
            number(view.samples.to_string()),
            number(output::bytes(view.bytes)),
            number(view.held.to_string()),
            cell(output::time(view.opened_at_ms)),
            cell(&view.opened_by),
        ]
    };
    output::table(
        &["id", "status", "devices", "rule", "samples", "size", "held", "opened", "by"],
        items.iter().map(row),
    )
}

fn device_row(device: &CollectionDevice) -> Vec<Cell> {
    let progress = device.progress.as_ref();
    let count = |of: fn(&muster_shared::collection::CollectionProgress) -> u64| {
        number(output::optional(progress, |progress| of(progress).to_string()))
    };
    let stage = progress.map_or_else(
        || cell("has not said"),
        |progress| {
            let tone = match progress.stage {
                CollectionStage::Sampling | CollectionStage::Uploading => Tone::Busy,
                CollectionStage::Uploaded => Tone::Good,
                CollectionStage::Refused | CollectionStage::GivenUp | CollectionStage::Other => Tone::Bad,
            };
            toned(output::word(&progress.stage), tone)
        },
    );
    vec![
        cell(device.device.as_str()),
        cell(if device.online { "yes" } else { "no" }),
        stage,
        count(|progress| progress.matched),
        count(|progress| progress.held),
        count(|progress| progress.dropped + progress.too_large + progress.lost),
        number(device.samples.to_string()),
        cell(progress.and_then(|progress| progress.reason.as_deref()).unwrap_or("-")),
    ]
}

/// One collection in words.
pub(super) fn text(view: &CollectionView) -> String {
    let spec = &view.spec;
    let bundles: Vec<String> = spec.bundles.iter().map(ToString::to_string).collect();
    let mut pairs = vec![
        ("id", view.id.to_string()),
        ("status", output::word(&view.status)),
        ("devices", format!("{} ({})", spec.selector, view.devices_total)),
        ("bundles", bundles.join(", ")),
        ("rule", spec.rule.to_string()),
        (
            "limits",
            format!(
                "{} samples and {} a device, {} and {} altogether",
                spec.per_device.max_count,
                output::bytes(spec.per_device.max_bytes),
                spec.max_total_count,
                output::bytes(spec.max_total_bytes)
            ),
        ),
        ("recipient", spec.recipient.id()),
        ("opened", format!("{} by {}", output::time(view.opened_at_ms), view.opened_by)),
        ("ends", output::time(view.ends_ms)),
        ("upload by", output::time(view.upload_by_ms)),
        ("samples here", format!("{}, {}", view.samples, output::bytes(view.bytes))),
        ("held by devices", view.held.to_string()),
    ];
    if !spec.purpose.is_empty() {
        pairs.push(("purpose", spec.purpose.clone()));
    }
    if let Some(closing) = &view.closing {
        let how = if closing.discard { ", discarding what devices had" } else { "" };
        pairs.push(("closed", format!("{} by {}{how}: {}", output::time(closing.at_ms), closing.by, closing.reason)));
    }
    let head = output::properties(&pairs);
    if view.devices.is_empty() {
        return head;
    }
    let devices = output::table(
        &["device", "online", "stage", "matched", "held", "not kept", "samples here", "reason"],
        view.devices.iter().map(device_row),
    );
    format!("{head}\n\n{devices}")
}

/// Whether nothing more is to be expected.
fn is_over(view: &CollectionView) -> bool {
    let is_done = |device: &CollectionDevice| {
        device.progress.as_ref().is_some_and(|progress| match progress.stage {
            CollectionStage::Refused | CollectionStage::Uploaded | CollectionStage::GivenUp => true,
            CollectionStage::Sampling | CollectionStage::Uploading | CollectionStage::Other => false,
        })
    };
    match view.status {
        CollectionStatus::Open => false,
        CollectionStatus::Uploading => view.devices.iter().all(is_done),
        CollectionStatus::Closed => true,
    }
}

fn line(view: &CollectionView) -> String {
    let count = |stage| {
        let at = |device: &&CollectionDevice| device.progress.as_ref().is_some_and(|progress| progress.stage == stage);
        view.devices.iter().filter(at).count()
    };
    let matched: u64 = view.devices.iter().filter_map(|device| device.progress.as_ref()).map(|p| p.matched).sum();
    format!(
        "{}  {} {}: {} samples here ({}), {} held, {matched} matched; devices: {} sampling, {} uploading, {} uploaded, {} refused, {} gave up",
        output::time(output::now_ms()),
        view.id,
        output::word(&view.status),
        view.samples,
        output::bytes(view.bytes),
        view.held,
        count(CollectionStage::Sampling),
        count(CollectionStage::Uploading),
        count(CollectionStage::Uploaded),
        count(CollectionStage::Refused),
        count(CollectionStage::GivenUp),
    )
}

pub(super) fn run(context: &Context, args: &ShowArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let path = ["collections", args.id.as_str()];
    if !args.watch {
        let view: CollectionView = block_on(client.get(&path, &[]))?;
        return context.output.show(&view, text);
    }
    let interval = Duration::from_millis(args.interval.0.max(100));
    block_on(async {
        let mut before: Option<CollectionView> = None;
        let began = tokio::time::Instant::now();
        loop {
            let view: CollectionView = client.get(&path, &[]).await?;
            if before.as_ref() != Some(&view) {
                context.output.show_line(&view, line)?;
            }
            if is_over(&view) {
                return Ok(());
            }
            if args.timeout.is_some_and(|timeout| began.elapsed() >= Duration::from_millis(timeout.0)) {
                return Err(Failure::unmet(format!("{} is not over yet", view.id)));
            }
            before = Some(view);
            tokio::time::sleep(interval).await;
        }
    })
}
