//! `muster device`: devices, their labels, and whether they may take part.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use comfy_table::Cell;
use muster_shared::api::{ActionReason, DesiredView, DeviceView, LabelPatch, Revocation};
use muster_shared::ids::DeviceId;
use muster_shared::messages::{Pressure, StateReport, UpdateState};
use muster_shared::rollout::{Pin, Quarantine};
use muster_shared::selector::Selector;

use crate::command::{Context, block_on};
use crate::failure::Failure;
use crate::output::{self, Tone, cell, number, toned};
use crate::pairs::LabelChange;

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// List devices.
    List {
        /// Which, as site=lyon,arch!=armv7.
        #[arg(long, short = 'l', value_name = "SELECTOR")]
        selector: Option<Selector>,
    },
    /// Show one device.
    Show {
        /// Its id.
        id: DeviceId,
    },
    /// Set and remove labels of a device.
    Label {
        /// Its id.
        id: DeviceId,
        /// key=value sets a label, key- removes it.
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        changes: Vec<LabelChange>,
    },
    /// Shut a device out: its connection ends, its certificate is refused, and rollouts pass it over. What it runs goes on
    /// answering its applications.
    Revoke {
        /// Its id.
        id: DeviceId,
        /// Why, for the records.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Let a revoked device in again, with the certificate it had.
    Reinstate {
        /// Its id.
        id: DeviceId,
    },
    /// Keep a device from rollouts: none takes it in from now on. Those it takes part in go on.
    Pin(StandingArgs),
    /// Let rollouts take a pinned device in again.
    Unpin(StandingArgs),
    /// Release a device from its quarantine: what failed on it before counts no more, and rollouts take it in again.
    Release(StandingArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StandingArgs {
    /// Its id.
    id: DeviceId,
    /// Why, for the records.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

fn joined(pairs: &BTreeMap<String, String>, separator: &str) -> String {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(separator)
}

fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

fn update_text(report: &StateReport) -> String {
    let update = &report.update;
    let state = output::word(&update.state);
    if update.state == UpdateState::Fetching {
        let held = if update.held_back.is_some() { ", held back" } else { "" };
        format!("{state} {}/{}{held}", update.chunks_done, update.chunks_total)
    } else {
        state
    }
}

fn update_cell(report: Option<&StateReport>) -> Cell {
    report.map_or_else(
        || cell("-"),
        |report| {
            let tone = match report.update.state {
                UpdateState::Idle | UpdateState::Other => return cell(update_text(report)),
                UpdateState::Beside | UpdateState::Committed => Tone::Good,
                UpdateState::Fetching | UpdateState::Verified | UpdateState::Trial => Tone::Busy,
                UpdateState::Reverted | UpdateState::Failed => Tone::Bad,
            };
            toned(update_text(report), tone)
        },
    )
}

fn running(device: &DeviceView) -> Option<String> {
    device.reported.as_ref()?.running.as_ref().map(|installed| installed.bundle.to_string())
}

fn desired(device: &DeviceView) -> Option<String> {
    let desired = device.desired.as_ref()?;
    let bundle = match (&desired.bundle, &desired.manifest) {
        (Some(bundle), _) => bundle.to_string(),
        (None, Some(manifest)) => manifest.short(),
        (None, None) => "nothing".to_owned(),
    };
    Some(if desired.stage.is_serve() { bundle } else { format!("{bundle} ({})", desired.stage) })
}

fn online_cell(device: &DeviceView) -> Cell {
    let online = if device.online { "yes" } else { "no" };
    if device.revoked.is_some() {
        toned("revoked", Tone::Bad)
    } else if device.quarantined.is_some() {
        toned(format!("{online}, quarantined"), Tone::Bad)
    } else if device.pinned.is_some() {
        toned(format!("{online}, pinned"), Tone::Busy)
    } else {
        toned(online, if device.online { Tone::Good } else { Tone::Bad })
    }
}

fn pinned_text(pin: &Pin) -> String {
    let reason = pin.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    format!("since {}, by {}{reason}", output::time(pin.since_ms), pin.by)
}

fn quarantined_text(quarantine: &Quarantine) -> String {
    format!("since {} {}", output::time(quarantine.since_ms), quarantine.why)
}

fn aside_text(device: &DeviceView) -> String {
    let pinned = device.pinned.as_ref().map(|pin| format!("pinned {}", pinned_text(pin)));
    let quarantined = device.quarantined.as_ref().map(|q| format!("quarantined {}", quarantined_text(q)));
    let said: Vec<String> = [pinned, quarantined].into_iter().flatten().collect();
    if said.is_empty() {
        format!("{} is taken in by rollouts", device.id)
    } else {
        format!("{} is {}", device.id, said.join(", and "))
    }
}

fn revoked_text(revocation: &Revocation) -> String {
    let by = format!("since {}, by {}", output::time(revocation.since_ms), revocation.by);
    match &revocation.reason {
        Some(reason) => format!("{by}: {reason}"),
        None => by,
    }
}

fn standing_text(device: &DeviceView) -> String {
    match &device.revoked {
        Some(revocation) => format!("{} is revoked {}", device.id, revoked_text(revocation)),
        None => format!("{} is not revoked", device.id),
    }
}

/// The version of its agent, as it says.
fn agent(report: Option<&StateReport>) -> Option<String> {
    report?.attributes.get("agent-version").cloned()
}

fn list_text(devices: &[DeviceView]) -> String {
    output::table(
        &["id", "online", "agent", "running", "desired", "update", "gen", "labels", "last seen"],
        devices.iter().map(|device| {
            vec![
                cell(device.id.as_str()),
                online_cell(device),
                cell(or_dash(agent(device.reported.as_ref()))),
                cell(or_dash(running(device))),
                cell(or_dash(desired(device))),
                update_cell(device.reported.as_ref()),
                number(or_dash(device.reported.as_ref().map(|report| report.generation.to_string()))),
                cell(or_dash(Some(joined(&device.labels, ",")))),
                cell(output::time_or_dash(device.last_seen_ms)),
            ]
        }),
    )
}

fn show_text(device: &DeviceView) -> String {
    let mut pairs = vec![
        ("id", device.id.to_string()),
        ("online", if device.online { "yes" } else { "no" }.to_owned()),
        ("last seen", output::time_or_dash(device.last_seen_ms)),
        ("enrolled", output::time(device.enrolled_at_ms)),
        ("labels", or_dash(Some(joined(&device.labels, "\n")))),
    ];
    pairs.extend(device.revoked.as_ref().map(|revocation| ("revoked", revoked_text(revocation))));
    pairs.extend(device.quarantined.as_ref().map(|quarantine| ("quarantined", quarantined_text(quarantine))));
    pairs.extend(device.pinned.as_ref().map(|pin| ("pinned", pinned_text(pin))));
    if let Some(wanted) = &device.desired {
        let text =
            format!("{} (generation {}, rollout {})", or_dash(desired(device)), wanted.generation, wanted.rollout);
        pairs.push(("desired", text));
    }
    match &device.reported {
        None => pairs.push(("reported", "nothing yet".to_owned())),
        Some(report) => {
            let committed = report.committed.as_ref().map(|installed| installed.bundle.to_string());
            pairs.extend([
                ("reported at", output::time(report.reported_at_ms)),
                ("running", or_dash(running(device))),
                ("committed", or_dash(committed)),
                ("update", update_text(report)),
                ("generation", report.generation.to_string()),
            ]);
            pairs.extend(report.update.reason.clone().map(|reason| ("reason", reason)));
            pairs.push(("agent", format!("{} (protocol {})", or_dash(agent(Some(report))), device.protocol)));
            pairs.extend(program_pairs(device.desired_program.as_ref(), report));
            pairs.extend([
                ("security floor", report.security_floor.to_string()),
                ("freeze protection", output::word(&report.freeze_protection)),
                ("assignment", assignment_text(report)),
                ("root document", or_dash((report.root_version > 0).then(|| report.root_version.to_string()))),
                ("pressure", pressure_text(&report.pressure)),
                ("starts", report.starts.to_string()),
                ("dropped messages", report.dropped_messages.to_string()),
                ("attributes", or_dash(Some(joined(&report.attributes, "\n")))),
            ]);
        }
    }
    output::properties(&pairs)
}

/// How the device stands with its own program; nothing where its agent cannot exchange it.
fn program_pairs(desired: Option<&DesiredView>, report: &StateReport) -> Vec<(&'static str, String)> {
    let Some(program) = &report.program else { return Vec::new() };
    let package = || format!("of the package, {}", program.package_version);
    let running = program.running.as_ref().map_or_else(package, |installed| installed.bundle.to_string());
    let mut pairs = vec![("program", running)];
    if let Some(desired) = desired {
        let bundle = match (&desired.bundle, &desired.manifest) {
            (Some(bundle), _) => bundle.to_string(),
            (None, Some(manifest)) => manifest.short(),
            (None, None) => "of the package".to_owned(),
        };
        pairs.push((
            "program desired",
            format!("{bundle} (generation {}, rollout {})", desired.generation, desired.rollout),
        ));
        let why = program.update.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        pairs.push(("program update", format!("{}{why}", output::word(&program.update.state))));
    }
    pairs
}

fn pressure_text(pressure: &Pressure) -> String {
    let level = output::word(&pressure.level);
    if pressure.is_none() { level } else { format!("{level}: {}", pressure.reason) }
}

fn assignment_text(report: &StateReport) -> String {
    match report.stale_since_ms {
        _ if report.awaits_director => "waits to hear from the controller's new key".into(),
        Some(at) => format!("ended {}", output::time(at)),
        None => "in date".into(),
    }
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(crate) fn run(context: &Context, command: DeviceCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        DeviceCommand::List { selector } => {
            let query: Vec<_> = selector.map(|selector| ("selector", selector.to_string())).into_iter().collect();
            let devices: Vec<DeviceView> = block_on(client.list(&["devices"], &query))?;
            if devices.is_empty() {
                output::note("no device");
            }
            context.output.show(&devices, |devices| list_text(devices))
        }
        DeviceCommand::Show { id } => {
            let device: DeviceView = block_on(client.get(&["devices", id.as_str()], &[]))?;
            context.output.show(&device, show_text)
        }
        DeviceCommand::Label { id, changes } => {
            let labels: BTreeMap<String, Option<String>> =
                changes.iter().map(|change| (change.key.clone(), change.value.clone())).collect();
            if labels.len() < changes.len() {
                return Err(Failure::input("a label is named twice"));
            }
            let device: DeviceView =
                block_on(client.patch(&["devices", id.as_str(), "labels"], &LabelPatch { labels }))?;
            context
                .output
                .show(&device, |device| format!("{} {}", device.id, or_dash(Some(joined(&device.labels, ",")))))
        }
        DeviceCommand::Revoke { id, reason } => {
            let device: DeviceView =
                block_on(client.post(&["devices", id.as_str(), "revoke"], &ActionReason { reason }))?;
            context.output.show(&device, standing_text)
        }
        DeviceCommand::Reinstate { id } => {
            let device: DeviceView =
                block_on(client.post(&["devices", id.as_str(), "reinstate"], &ActionReason::default()))?;
            context.output.show(&device, standing_text)
        }
        DeviceCommand::Pin(args) => set_aside(context, "pin", args),
        DeviceCommand::Unpin(args) => set_aside(context, "unpin", args),
        DeviceCommand::Release(args) => set_aside(context, "release", args),
    }
}

fn set_aside(context: &Context, action: &str, args: StandingArgs) -> Result<(), Failure> {
    let body = ActionReason { reason: args.reason };
    let device: DeviceView = block_on(context.client()?.post(&["devices", args.id.as_str(), action], &body))?;
    context.output.show(&device, aside_text)
}
