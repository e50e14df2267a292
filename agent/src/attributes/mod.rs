//! What the device reports about itself: found facts, and what its configuration adds.
//!
//! Facts that stay as they are while the agent runs are read once; the device's condition ([`of_condition`]) is added as it is at each report.
//! Free space and what the agent takes travel with telemetry. What is not found is left out. Values are written so that a selector can name them: visible ASCII, with `-` for everything else.

mod board;
mod cpu;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use muster_shared::bundle::{CPU_FEATURE_PREFIX, CPU_FEATURES, cpu_feature_attribute};
use muster_shared::limits::MAX_LABEL_BYTES;
use muster_shared::messages::{PressureLevel, Throttling};
use muster_shared::selector::is_label_text;

use self::cpu::Cpu;
use crate::pressure::Pressed;
use crate::resources;
use crate::system::System;

const PRESSURE: &str = "pressure";
const TEMPERATURE: &str = "temperature-c";
const THROTTLING: &str = "throttling";

/// The architecture, by the names bundles use.
pub(crate) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "arm" => "armv7",
        other => other,
    }
}

/// This agent's version.
pub(crate) const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Every attribute of the device that keeps its data in `data_dir`. What is configured stands over what is found, except for facts that
/// bundles are chosen by.
pub(crate) fn all(system: &System, data_dir: &Path, configured: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let cpu = Cpu::of(system);
    let release = os_release(system);
    let mut attributes: BTreeMap<String, String> = [
        ("os", Some(std::env::consts::OS.to_owned())),
        ("os-id", release.get("ID").cloned()),
        ("os-version", release.get("VERSION_ID").cloned()),
        ("kernel", system.line("/proc/sys/kernel/osrelease")),
        ("hostname", system.line("/proc/sys/kernel/hostname")),
        ("board", board::model(system)),
        ("soc", board::soc(system)),
        ("cpu", cpu.model()),
        ("cpu-count", cpu::count(system).map(|count| count.to_string())),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), label_text(&value?)?)))
    .collect();
    attributes.extend(configured.iter().filter(|(key, _)| !is_chosen_by(key)).map(|(k, v)| (k.clone(), v.clone())));
    attributes.extend([("arch".to_owned(), arch().to_owned()), ("agent-version".to_owned(), AGENT_VERSION.to_owned())]);
    let sizes = [("memory-bytes", resources::memory_bytes(system)), ("disk-bytes", resources::disk_bytes(data_dir))];
    attributes
        .extend(sizes.into_iter().filter(|(_, bytes)| *bytes > 0).map(|(k, bytes)| (k.to_owned(), bytes.to_string())));
    attributes.extend(cpu.features().map(|feature| (cpu_feature_attribute(feature), "yes".to_owned())));
    attributes
}

/// The device's condition when it was looked at last: what presses on it, how hot it is in whole degrees Celsius, and what holds its
/// processor back.
pub(crate) fn of_condition(pressed: &Pressed) -> impl Iterator<Item = (String, String)> {
    let signs = pressed.signs();
    let pressure = match pressed.level() {
        PressureLevel::None => "none",
        PressureLevel::Some => "some",
        PressureLevel::High | PressureLevel::Other => "high",
    };
    let throttling = signs.throttling.map(|throttling| match throttling {
        Throttling::None => "none",
        Throttling::Heat => "heat",
        Throttling::UnderVoltage => "under-voltage",
    });
    let temperature_c = signs.temperature_mc.map(|mc| mc.saturating_add(500).div_euclid(1_000).to_string());
    let found = [
        (PRESSURE, Some(pressure.to_owned())),
        (THROTTLING, throttling.map(str::to_owned)),
        (TEMPERATURE, temperature_c),
    ];
    found.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)))
}

/// Those of [`muster_shared::bundle::CPU_FEATURES`] that the device has.
pub(crate) fn cpu_features(system: &System) -> BTreeSet<&'static str> {
    Cpu::of(system).features().collect()
}

/// Whether bundles are chosen by the attribute `key`, so that it may only be found and not configured, even where it is not found.
fn is_chosen_by(key: &str) -> bool {
    let is_cpu_feature = || key.strip_prefix(CPU_FEATURE_PREFIX).is_some_and(|feature| CPU_FEATURES.contains(&feature));
    ["memory-bytes", "disk-bytes", PRESSURE, TEMPERATURE, THROTTLING].contains(&key) || is_cpu_feature()
}

/// `found` in the form in which a selector can name it.
fn label_text(found: &str) -> Option<String> {
    let mut text = String::new();
    for c in found.chars().map(|c| if is_label_text(c.encode_utf8(&mut [0; 4])) { c } else { '-' }) {
        if text.len() < MAX_LABEL_BYTES && !(c == '-' && (text.is_empty() || text.ends_with('-'))) {
            text.push(c);
        }
    }
    let text = text.trim_end_matches('-');
    (!text.is_empty()).then(|| text.to_owned())
}

/// What the distribution says of itself (os-release(5)): keys with their values, out of quotes.
fn os_release(system: &System) -> BTreeMap<String, String> {
    let text = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| system.text(path));
    let text = text.unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.trim().split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.trim_matches(['"', '\'']).to_owned())).collect()
}

#[cfg(test)]
mod tests;
