//! The mosquitto broker, where it is installed.

use std::path::PathBuf;

use crate::programs;

/// Where the program is.
#[must_use]
pub fn program() -> Option<PathBuf> {
    programs::find(&["mosquitto"])
}
