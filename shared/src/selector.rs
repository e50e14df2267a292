//! Selectors: which devices are meant, by label or reported attribute.
//!
//! Grammar: requirements joined by `,`, all of which must hold: `key=value`, `key!=value` (also true
//! where the key is absent), `key` (present) and `!key` (absent). `id` names the device itself. Labels,
//! which operators set, win over attributes, which devices report. `*` selects every device; the empty text is
//! refused, so that a forgotten value never means the whole fleet.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_LABEL_BYTES, MAX_LABELS};

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// Nothing was given.
    #[error("the selector is empty: write '*' to select every device")]
    Empty,
    /// Too many requirements.
    #[error("the selector has more than {MAX_LABELS} requirements")]
    TooLong,
    /// One requirement does not parse.
    #[error("requirement {index} of the selector, {text:?}, is not valid: write key=value, key!=value, key or !key")]
    Requirement {
        /// Position, counted from 1.
        index: usize,
        /// The requirement as given, shortened.
        text: String,
    },
}

/// Whether `text` can be a label's key or value: 1 to 128 visible ASCII characters without `,=!*`.
#[must_use]
pub fn is_label_text(text: &str) -> bool {
    (1..=MAX_LABEL_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b'=' | b'!' | b'*'))
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Requirement {
    Equals(String, String),
    Differs(String, String),
    Present(String),
    Absent(String),
}

/// A set of devices, described by what must hold for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// The selector of the whole fleet, `*`.
    #[must_use]
    pub fn all() -> Self {
        Self(Vec::new())
    }

    /// Whether the device `id` with these labels and attributes is selected.
    #[must_use]
    pub fn matches(&self, id: &str, labels: &BTreeMap<String, String>, attributes: &BTreeMap<String, String>) -> bool {
        let value = |key: &str| match key {
            "id" => Some(id),
            _ => labels.get(key).or_else(|| attributes.get(key)).map(String::as_str),
        };
        self.0.iter().all(|requirement| match requirement {
            Requirement::Equals(key, wanted) => value(key) == Some(wanted),
            Requirement::Differs(key, unwanted) => value(key) != Some(unwanted),
            Requirement::Present(key) => value(key).is_some(),
            Requirement::Absent(key) => value(key).is_none(),
        })
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(SelectorError::Empty);
        }
        if text == "*" {
            return Ok(Self::all());
        }
        if text.split(',').count() > MAX_LABELS {
            return Err(SelectorError::TooLong);
        }
        let parse = |part: &str| {
            let part = part.trim();
            let (requirement, key, value) = if let Some((key, value)) = part.split_once("!=") {
                (Requirement::Differs(key.into(), value.into()), key, Some(value))
            } else if let Some((key, value)) = part.split_once('=') {
                (Requirement::Equals(key.into(), value.into()), key, Some(value))
            } else if let Some(key) = part.strip_prefix('!') {
                (Requirement::Absent(key.into()), key, None)
            } else {
                (Requirement::Present(part.into()), part, None)
            };
            (is_label_text(key) && value.is_none_or(is_label_text)).then_some(requirement)
        };
        text.split(',')
            .enumerate()
            .map(|(index, part)| {
                parse(part).ok_or_else(|| SelectorError::Requirement {
                    index: index + 1,
                    text: part.chars().take(80).collect(),
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;
    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.to_string()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("*");
        }
        for (index, requirement) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::Equals(key, value) => write!(f, "{key}={value}")?,
                Requirement::Differs(key, value) => write!(f, "{key}!={value}")?,
                Requirement::Present(key) => f.write_str(key)?,
                Requirement::Absent(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// Whether a device may carry these labels.
///
/// # Errors
/// What is wrong with them, in words.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    if labels.len() > MAX_LABELS {
        return Err(format!("a device has at most {MAX_LABELS} labels"));
    }
    if labels.contains_key("id") {
        return Err("the label \"id\" is reserved: in selectors it names the device itself".into());
    }
    match labels.iter().flat_map(|(key, value)| [key, value]).find(|text| !is_label_text(text)) {
        None => Ok(()),
        Some(text) => {
            let text: String = text.chars().take(80).collect();
            Err(format!(
                "{text:?} cannot be a label's key or value: use 1 to 128 visible ASCII characters without ,=!*"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn requirements_are_joined_by_and() {
        let labels = map(&[("site", "lyon")]);
        let attributes = map(&[("arch", "aarch64"), ("site", "reported-elsewhere")]);
        for (text, selected) in [
            ("*", true),
            ("site=lyon", true),
            ("site=lyon,arch!=armv7", true),
            ("site=lyon,arch!=aarch64", false),
            ("site=reported-elsewhere", false),
            ("site", true),
            ("!site", false),
            ("!ring", true),
            ("ring!=canary", true),
            ("id=dev-1", true),
            ("id=dev-2", false),
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().matches("dev-1", &labels, &attributes), selected, "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!("  ".parse::<Selector>().unwrap_err(), SelectorError::Empty);
        let error = "site=lyon,=x".parse::<Selector>().unwrap_err();
        assert_eq!(error, SelectorError::Requirement { index: 2, text: "=x".into() });
        for bad in ["site=", "a=b=c", "a==b", ",", "a,", "!", "a b", "**"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_and_round_trips_or_is_refused(text in "[a-z=!,* ]{0,24}|.*") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
            }
        }
    }
}
