//! Selectors: which devices are meant, by label or reported attribute.
//!
//! Grammar: requirements joined by `,`, all of which must hold: `key=value`, `key!=value` (also true
//! where the key is absent), `key>=number`, `key<=number`, `key` (present) and `!key` (absent). Numbers are compared part by part, as
//! versions are: 5.10 is above 5.9. `id` names the device itself. Labels,
//! which operators set, win over attributes, which devices report. `*` selects every device; the empty text is
//! refused, so that a forgotten value never means the whole fleet.

mod number;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use self::number::Number;
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
    #[error(
        "requirement {index} of the selector, {text:?}, is not valid: write key=value, key!=value, key>=number, key<=number, key or !key"
    )]
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
    AtLeast(String, Number),
    AtMost(String, Number),
    Present(String),
    Absent(String),
}

impl Requirement {
    fn parse(part: &str) -> Option<Self> {
        // A key with one of these is a comparison that was meant otherwise, and would select nobody.
        let key = |key: &str| (is_label_text(key) && !key.contains(['<', '>'])).then(|| key.to_owned());
        let value = |value: &str| is_label_text(value).then(|| value.to_owned());
        if let Some((name, unwanted)) = part.split_once("!=") {
            Some(Self::Differs(key(name)?, value(unwanted)?))
        } else if let Some((name, least)) = part.split_once(">=") {
            Some(Self::AtLeast(key(name)?, least.parse().ok()?))
        } else if let Some((name, most)) = part.split_once("<=") {
            Some(Self::AtMost(key(name)?, most.parse().ok()?))
        } else if let Some((name, wanted)) = part.split_once('=') {
            Some(Self::Equals(key(name)?, value(wanted)?))
        } else if let Some(name) = part.strip_prefix('!') {
            Some(Self::Absent(key(name)?))
        } else {
            Some(Self::Present(key(part)?))
        }
    }

    fn key(&self) -> &str {
        match self {
            Self::Equals(key, _)
            | Self::Differs(key, _)
            | Self::AtLeast(key, _)
            | Self::AtMost(key, _)
            | Self::Present(key)
            | Self::Absent(key) => key,
        }
    }

    /// Whether it holds where its key's value is `value`.
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::Equals(_, wanted) => value == Some(wanted),
            Self::Differs(_, unwanted) => value != Some(unwanted),
            Self::AtLeast(_, least) => value.and_then(Number::leading).is_some_and(|number| number >= *least),
            Self::AtMost(_, most) => value.and_then(Number::leading).is_some_and(|number| number <= *most),
            Self::Present(_) => value.is_some(),
            Self::Absent(_) => value.is_none(),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equals(key, value) => write!(f, "{key}={value}"),
            Self::Differs(key, value) => write!(f, "{key}!={value}"),
            Self::AtLeast(key, least) => write!(f, "{key}>={least}"),
            Self::AtMost(key, most) => write!(f, "{key}<={most}"),
            Self::Present(key) => f.write_str(key),
            Self::Absent(key) => write!(f, "!{key}"),
        }
    }
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
        self.0.iter().all(|requirement| requirement.holds(value(requirement.key())))
    }

    /// Which of its requirements a device with these attributes does not meet, each with what the device has instead, in words; `id` is
    /// taken for an attribute like any other.
    pub fn unmet(&self, attributes: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|requirement| {
            let value = attributes.get(requirement.key()).map(String::as_str);
            (!requirement.holds(value)).then(|| match value {
                Some(value) => format!("{requirement} (it is {value})"),
                None => format!("{requirement} (it is not known)"),
            })
        })
    }

    /// The keys that it asks for.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Requirement::key)
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
        text.split(',')
            .enumerate()
            .map(|(index, part)| {
                Requirement::parse(part.trim()).ok_or_else(|| SelectorError::Requirement {
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
            requirement.fmt(f)?;
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
mod tests;
