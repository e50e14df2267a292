//! A file that says what is wanted, in YAML or TOML by its name.

mod outline;

use std::fmt;
use std::path::Path;

use outline::Outline;
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

/// The line, from 1, on which the field at `path` stands, as `waves[0].soak_ms`, or the nearest around it that the file has; none where
/// the file has nothing of it. JSON is read as the YAML it is.
pub(crate) fn line_of(text: &str, file: &Path, field: &str) -> Option<usize> {
    let offset = if is_named(file, &["yaml", "yml", "json"]) {
        serde_saphyr::from_str::<Outline<serde_saphyr::Spanned<String>>>(text).ok()?.offset(field)
    } else {
        toml::from_str::<Outline<toml::Spanned<String>>>(text).ok()?.offset(field)
    };
    offset.and_then(|offset| text.get(..offset)).map(|before| before.matches('\n').count() + 1)
}

/// What is wrong with a file as a whole, with the line of the first of `fields` that it has.
pub(crate) fn fault(text: &str, file: &Path, fields: &[&str], reason: &dyn fmt::Display) -> Failure {
    let line = fields.iter().find_map(|field| line_of(text, file, field));
    let line = line.map(|line| format!(" line {line}:")).unwrap_or_default();
    Failure::input(format!("{}:{line} {reason}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_every_form() {
        let yaml = "# a rollout\nbundle: digits@1.1.0\nwaves:\n  - size: 1\n    soak: 5s\n  - size: 100%\nblue-green: {lead: 2d}\n";
        let toml = "bundle = 'digits@1.1.0'\n\n[blue-green]\nlead = '2d'\n\n[[waves]]\nsize = 1\nsoak = '5s'\n[[waves]]\nsize = '100%'\n";
        let json = "{\n  \"waves\": [\n    {\"size\": 1,\n     \"soak_ms\": 5},\n    {\"size\": \"100%\"}],\n  \"blue_green\": {\"lead_ms\": 2}}\n";
        let expected = [
            ("waves", [3, 6, 2]),
            ("waves[0]", [4, 7, 3]),
            ("waves[0].soak_ms", [5, 8, 4]),
            ("waves[1].soak_ms", [6, 10, 5]),
            ("waves[7]", [3, 6, 2]),
            ("blue_green.lead_ms", [7, 4, 6]),
        ];
        for (field, lines) in expected {
            let found = [("r.yaml", yaml), ("r.toml", toml), ("r.json", json)]
                .map(|(name, text)| line_of(text, Path::new(name), field));
            assert_eq!(found, lines.map(Some), "{field}");
        }
        assert_eq!(line_of(yaml, Path::new("r.yaml"), "gate.alpha"), None);
        assert_eq!(line_of("waves: [", Path::new("r.yaml"), "waves"), None);
    }
}
