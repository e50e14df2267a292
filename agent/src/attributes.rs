//! What the device reports about itself: found facts, and what its configuration adds.

use std::collections::BTreeMap;
use std::fs;

use muster_shared::limits::MAX_LABEL_BYTES;

use crate::resources;

/// The architecture, by the names bundles use.
pub(crate) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "arm" => "armv7",
        other => other,
    }
}

/// This agent's version.
pub(crate) const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Every attribute. What is configured stands over what is found, except for facts that bundles are chosen by.
pub(crate) fn all(configured: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut attributes: BTreeMap<String, String> = [
        ("os", Some(std::env::consts::OS.to_owned())),
        ("kernel", first_line("/proc/sys/kernel/osrelease")),
        ("hostname", first_line("/proc/sys/kernel/hostname")),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
    .collect();
    attributes.extend(configured.clone());
    attributes.extend([
        ("arch".to_owned(), arch().to_owned()),
        ("agent-version".to_owned(), AGENT_VERSION.to_owned()),
        ("memory-bytes".to_owned(), resources::memory_bytes().to_string()),
    ]);
    attributes
}

fn first_line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty() && line.len() <= MAX_LABEL_BYTES).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_that_bundles_are_chosen_by_cannot_be_configured_away() {
        let configured =
            [("arch", "toaster"), ("hostname", "press-7"), ("line", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let attributes = all(&configured.into());
        assert_eq!(attributes["arch"], arch());
        assert_eq!((attributes["hostname"].as_str(), attributes["line"].as_str()), ("press-7", "3"));
        assert!(attributes["memory-bytes"].parse::<u64>().unwrap() > 0);
        assert!(attributes["agent-version"].parse::<semver::Version>().is_ok());
    }
}
