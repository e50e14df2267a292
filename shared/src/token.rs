//! The enrolment token: one string that lets one device find, trust and join its controller.
//!
//! `muster1.` and the base64url form of a JSON object. The CA fingerprint in it is what makes the first
//! connection safe, the root digest what makes the first trust anchor safe; both come by the operator's hand and not from the network.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::ids::Digest;

const PREFIX: &str = "muster1.";
const MAX_TOKEN_BYTES: usize = 2_048;

/// What an enrolment token holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentToken {
    /// Base URL of the controller's API, `https://host:port`.
    pub url: String,
    /// SHA-256 of the controller's CA certificate in DER form.
    pub ca_sha256: Digest,
    /// SHA-256 of the payload of the root document a device starts from.
    pub root_sha256: Digest,
    /// What proves the right to enrol; the controller keeps only its digest. None for devices that prove it by a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolmentToken")
            .field("url", &self.url)
            .field("ca_sha256", &self.ca_sha256)
            .finish_non_exhaustive()
    }
}

/// Why a text is not an enrolment token. The text itself is a secret and never repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Another prefix.
    #[error("an enrolment token starts with 'muster1.': paste the whole string that `muster token create` printed")]
    Prefix,
    /// The rest is damaged.
    #[error("the enrolment token is damaged: paste the whole string that `muster token create` printed")]
    Damaged,
    /// The URL is not HTTPS.
    #[error("the enrolment token names a URL that is not https://")]
    Url,
}

impl EnrolmentToken {
    /// The token as the one string operators pass around.
    #[must_use]
    pub fn to_token_string(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for EnrolmentToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if body.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Damaged);
        }
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let token: Self = serde_json::from_slice(&json).map_err(|_| TokenError::Damaged)?;
        if !token.url.starts_with("https://") {
            return Err(TokenError::Url);
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::damage;

    fn token() -> EnrolmentToken {
        EnrolmentToken {
            url: "https://muster.example:8443".into(),
            ca_sha256: Digest::of(b"ca"),
            root_sha256: Digest::of(b"root"),
            secret: Some("hunter2".into()),
        }
    }

    /// `text`, if it is a token, must be one that can be passed on.
    fn check(text: &str) -> Result<(), TestCaseError> {
        if let Ok(token) = text.parse::<EnrolmentToken>() {
            prop_assert!(token.url.starts_with("https://"));
            prop_assert_eq!(token.to_token_string().parse::<EnrolmentToken>(), Ok(token));
        }
        Ok(())
    }

    fn wrapped(json: impl AsRef<[u8]>) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    #[test]
    fn a_token_survives_its_string_and_hides_its_secret() {
        let token = token();
        let text = token.to_token_string();
        assert_eq!(format!(" {text}\n").parse::<EnrolmentToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains("hunter2"));
        assert_eq!(text[1..].parse::<EnrolmentToken>(), Err(TokenError::Prefix));
        assert_eq!(text[..text.len() - 3].parse::<EnrolmentToken>(), Err(TokenError::Damaged));
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_refused(text in "(muster1\\.)?.{0,100}") {
            check(&text)?;
        }

        #[test]
        fn any_text_in_base64_is_a_token_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            check(&wrapped(bytes))?;
        }

        #[test]
        fn any_fields_are_a_token_or_refused(fields in damage::json(serde_json::to_value(token()).unwrap())) {
            check(&wrapped(fields.to_string()))?;
        }

        #[test]
        fn a_damaged_token_is_refused_or_whole(
            json in damage::bytes(serde_json::to_vec(&token()).unwrap()),
            text in damage::bytes(token().to_token_string().into_bytes()),
        ) {
            check(&wrapped(json))?;
            check(&String::from_utf8_lossy(&text))?;
        }
    }
}
