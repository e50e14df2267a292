//! What people should know of a model before they use it, as its makers declare it.
//!
//! Part of the signed manifest. Fields mean what they mean in model cards (Mitchell et al., Model Cards for Model Reporting, FAT* 2019) and on
//! Hugging Face; nothing acts upon them.

use serde::{Deserialize, Serialize};

/// Longest text of a card, in bytes.
pub const MAX_CARD_TEXT_BYTES: usize = 4_096;
/// Owners a card may name.
pub const MAX_OWNERS: usize = 32;

/// What the makers say of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Card {
    /// Who answers for it: people or teams.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<String>,
    /// Where questions go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    /// Its licence, as an SPDX identifier where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// The model it was derived from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// What it is meant for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intended_use: Option<String>,
    /// Whom it is meant for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intended_users: Option<String>,
    /// What it is not meant for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_of_scope_use: Option<String>,
    /// Where it is known to fail, and what to mind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limitations: Option<String>,
    /// Whom it may harm, and what was done about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ethical_considerations: Option<String>,
    /// How to cite it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub citation: Option<String>,
}

/// Why a card is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("card, {field}: {reason}")]
pub struct CardError {
    /// The field at fault.
    pub field: &'static str,
    /// What is expected.
    pub reason: &'static str,
}

impl Card {
    /// Texts by the names people know them under, in the order in which they are shown; those that were left out are not there.
    pub fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("contact", &self.contact),
            ("license", &self.license),
            ("base model", &self.base_model),
            ("intended use", &self.intended_use),
            ("intended users", &self.intended_users),
            ("out-of-scope use", &self.out_of_scope_use),
            ("limitations", &self.limitations),
            ("ethical considerations", &self.ethical_considerations),
            ("citation", &self.citation),
        ]
        .into_iter()
        .filter_map(|(name, text)| text.as_deref().map(|text| (name, text)))
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`CardError`] with the first field that breaks one.
    pub fn validate(&self) -> Result<(), CardError> {
        if self.owners.len() > MAX_OWNERS {
            return Err(CardError { field: "owners", reason: "at most 32 are expected" });
        }
        let owners = self.owners.iter().map(|owner| ("owners", owner.as_str()));
        for (field, text) in owners.chain(self.texts()) {
            if text.trim().is_empty() {
                return Err(CardError { field, reason: "it is empty: say something, or leave it out" });
            }
            if text.len() > MAX_CARD_TEXT_BYTES {
                return Err(CardError { field, reason: "at most 4096 bytes are expected" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_by_field() {
        let card = Card { owners: vec!["vision".into()], limitations: Some("night".into()), ..Card::default() };
        assert_eq!((card.validate(), Card::default().validate()), (Ok(()), Ok(())));
        assert_eq!(card.texts().collect::<Vec<_>>(), [("limitations", "night")]);
        assert_eq!(serde_json::to_string(&card).unwrap(), r#"{"owners":["vision"],"limitations":"night"}"#);
        for (spoilt, field) in [
            (Card { owners: vec!["x".into(); 33], ..Card::default() }, "owners"),
            (Card { owners: vec![" ".into()], ..Card::default() }, "owners"),
            (Card { license: Some(String::new()), ..Card::default() }, "license"),
            (Card { citation: Some("x".repeat(4_097)), ..Card::default() }, "citation"),
        ] {
            assert_eq!(spoilt.validate().unwrap_err().field, field);
        }
        assert!(serde_json::from_str::<Card>(r#"{"licence":"MIT"}"#).is_err());
    }
}
