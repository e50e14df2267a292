//! Labels as people write them: `key=value` to set, `key-` to remove.

use std::str::FromStr;

use muster_shared::selector::is_label_text;

/// Why a text is not a label or a change of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PairError {
    /// Not `key=value`.
    #[error("{0:?} is not a label: write key=value, of visible characters without , = ! *")]
    Label(String),
    /// Neither `key=value` nor `key-`.
    #[error("{0:?} is not a change of a label: write key=value to set it or key- to remove it")]
    Change(String),
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A label to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    /// Its name.
    pub(crate) key: String,
    /// Its value.
    pub(crate) value: String,
}

impl FromStr for Label {
    type Err = PairError;
    fn from_str(text: &str) -> Result<Self, PairError> {
        text.split_once('=')
            .filter(|(key, value)| is_label_text(key) && is_label_text(value))
            .map(|(key, value)| Self { key: key.to_owned(), value: value.to_owned() })
            .ok_or_else(|| PairError::Label(shortened(text)))
    }
}

/// A label to set, or to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelChange {
    /// Its name.
    pub(crate) key: String,
    /// Its new value; none to remove it.
    pub(crate) value: Option<String>,
}

impl FromStr for LabelChange {
    type Err = PairError;
    fn from_str(text: &str) -> Result<Self, PairError> {
        if let Ok(Label { key, value }) = text.parse() {
            return Ok(Self { key, value: Some(value) });
        }
        text.strip_suffix('-')
            .filter(|key| is_label_text(key))
            .map(|key| Self { key: key.to_owned(), value: None })
            .ok_or_else(|| PairError::Change(shortened(text)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        assert_eq!("site=lyon".parse(), Ok(LabelChange { key: "site".into(), value: Some("lyon".into()) }));
        assert_eq!("a=b-".parse(), Ok(LabelChange { key: "a".into(), value: Some("b-".into()) }));
        assert_eq!("site-".parse(), Ok(LabelChange { key: "site".into(), value: None }));
        for bad in ["site", "=x", "site=", "-", "", "a b=c", "a=b=c"] {
            assert!(bad.parse::<LabelChange>().is_err(), "{bad}");
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_change_or_refused(text in ".{0,30}") {
            let _ = text.parse::<LabelChange>();
        }
    }
}
