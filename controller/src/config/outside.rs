//! The settings `[[pki.outside]]`: authorities of others, whose certificates stand for an enrolment token.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use muster_shared::selector::{check_labels, is_label_text};
use serde::Deserialize;

/// An authority of somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct OutsideConfig {
    /// What it is called here, in events and records.
    pub(crate) name: String,
    /// Its certificates in PEM.
    pub(crate) file: PathBuf,
    /// What it has revoked, lists in PEM; read whenever a device enrols.
    #[serde(default)]
    pub(crate) revoked_file: Option<PathBuf>,
    /// Where in a certificate the device's name stands.
    #[serde(default)]
    pub(crate) device_id: DeviceIdFrom,
    /// Put before that name.
    #[serde(default)]
    pub(crate) prefix: String,
    /// Labels for devices that enrol with it.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

/// Where in a certificate a device's name stands. It is taken in lower case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DeviceIdFrom {
    /// The subject's common name.
    #[default]
    CommonName,
    /// The subject's attribute serialNumber (IEEE 802.1AR).
    SerialNumber,
    /// The one DNS name among its alternative names.
    DnsName,
}

/// Whether these settings make sense together.
pub(super) fn check(authorities: &[OutsideConfig]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for OutsideConfig { name, labels, .. } in authorities {
        if !is_label_text(name) {
            return Err(format!("{name:?} is no name: use 1 to 128 visible ASCII characters without ,=!*"));
        }
        if !names.insert(name) {
            return Err(format!("two of them are called {name:?}"));
        }
        check_labels(labels)?;
    }
    Ok(())
}
