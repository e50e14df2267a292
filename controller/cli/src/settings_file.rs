//! A file that says what is wanted, in YAML or TOML by its name.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// Whether the file is said to be of that kind.
pub(crate) fn is_named(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|own| extensions.iter().any(|extension| own.eq_ignore_ascii_case(extension)))
}

/// Reads YAML where the name ends in `.yaml` or `.yml`, and TOML otherwise.
///
/// # Errors
/// [`Failure`] with file, line and field.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, Failure> {
    let fault = |reason: String| Failure::input(format!("{}: {}", path.display(), reason.trim_end()));
    if is_named(path, &["yaml", "yml"]) {
        serde_saphyr::from_str(text).map_err(|error| fault(error.to_string()))
    } else {
        toml::from_str(text).map_err(|error| fault(error.to_string()))
    }
}
