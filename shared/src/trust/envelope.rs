//! The DSSE envelope: exact bytes, their type, and signatures over both.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};

use super::keys::{KeyId, PublicKey, SigningKey};
use super::{Role, TrustError};
use crate::limits::{MAX_DOCUMENT_BYTES, MAX_SIGNATURES};

/// The kinds of signed documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// [`super::Root`].
    Root,
    /// [`crate::bundle::Manifest`].
    Manifest,
    /// [`super::Assignment`].
    Assignment,
    /// [`super::Authorities`].
    Authorities,
    /// [`crate::collection::Collections`].
    Collections,
}

impl DocumentKind {
    /// The kind in words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Manifest => "manifest",
            Self::Assignment => "assignment",
            Self::Authorities => "authorities",
            Self::Collections => "collections",
        }
    }

    /// The media type in the envelope.
    #[must_use]
    pub fn payload_type(self) -> String {
        format!("application/vnd.muster.{}.v1+json", self.as_str())
    }

    /// The role whose keys sign it.
    #[must_use]
    pub const fn role(self) -> Role {
        match self {
            Self::Root => Role::Root,
            Self::Manifest => Role::Release,
            Self::Assignment | Self::Authorities | Self::Collections => Role::Director,
        }
    }
}

/// One signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Signature {
    /// A hint which key made it. Not signed, so nothing rests on it but the choice of a key to try.
    #[serde(default)]
    pub keyid: String,
    /// 64 bytes in base64.
    pub sig: String,
}

/// A signed document in its DSSE envelope. Unknown fields are ignored, as DSSE asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Envelope {
    /// The document's bytes in base64.
    pub payload: String,
    /// The document's kind, as a media type.
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// Signatures over type and bytes.
    pub signatures: Vec<Signature>,
}

/// DSSE's pre-authentication encoding of `payload`: what is signed.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

fn decode_base64(text: &str) -> Result<Vec<u8>, TrustError> {
    // DSSE lets signers choose either alphabet.
    STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE.decode(text))
        .map_err(|_| TrustError::Envelope("its content is not base64".into()))
}

impl Envelope {
    /// Wraps `payload` without a signature; add them with [`Self::add_signature`].
    #[must_use]
    pub fn unsigned(kind: DocumentKind, payload: &[u8]) -> Self {
        Self { payload: STANDARD.encode(payload), payload_type: kind.payload_type(), signatures: Vec::new() }
    }

    /// Signs the content with `key`; an earlier signature of the same key is replaced.
    ///
    /// # Errors
    /// [`TrustError::Envelope`] when the content is not base64.
    pub fn add_signature(&mut self, key: &SigningKey) -> Result<(), TrustError> {
        let signature = key.sign(&self.signing_input()?);
        self.put_signature(&key.public(), &signature);
        Ok(())
    }

    /// What a signature is made over: type and content in DSSE's pre-authentication encoding. For keys that are kept elsewhere.
    ///
    /// # Errors
    /// [`TrustError`] when the content is too large or not base64.
    pub fn signing_input(&self) -> Result<Vec<u8>, TrustError> {
        Ok(pre_authentication_encoding(&self.payload_type, &self.payload_bytes()?))
    }

    /// Adds a signature that was made elsewhere over [`Self::signing_input`]; an earlier one of the same key is replaced.
    ///
    /// # Errors
    /// [`TrustError::Signature`] when it is not one of `key`'s over this content.
    pub fn insert_signature(&mut self, key: &PublicKey, signature: &[u8; 64]) -> Result<(), TrustError> {
        if !key.verifies(&self.signing_input()?, signature) {
            return Err(TrustError::Signature(key.id()));
        }
        self.put_signature(key, signature);
        Ok(())
    }

    fn put_signature(&mut self, key: &PublicKey, signature: &[u8; 64]) {
        let keyid = key.id().to_string();
        self.signatures.retain(|s| s.keyid != keyid);
        self.signatures.push(Signature { keyid, sig: STANDARD.encode(signature) });
    }

    /// The content, *unverified*: for showing and storing, never for deciding.
    ///
    /// # Errors
    /// [`TrustError`] when it is too large or not base64.
    pub fn payload_bytes(&self) -> Result<Vec<u8>, TrustError> {
        if self.payload.len() > MAX_DOCUMENT_BYTES.div_ceil(3) * 4 {
            return Err(TrustError::TooLarge);
        }
        decode_base64(&self.payload)
    }

    /// Checks what the envelope says of its kind. Nothing rests on that until signatures are checked.
    pub(super) fn check_kind(&self, kind: DocumentKind) -> Result<(), TrustError> {
        if self.payload_type == kind.payload_type() {
            return Ok(());
        }
        Err(TrustError::PayloadType {
            expected: kind.payload_type(),
            found: self.payload_type.chars().take(80).collect(),
        })
    }

    /// Which of `keys` have signed the content as a `kind` document. A key counts once, however often it signed.
    ///
    /// # Errors
    /// [`TrustError`] when the envelope is of another kind or cannot be read.
    pub fn signers<'k>(
        &self,
        kind: DocumentKind,
        keys: impl IntoIterator<Item = &'k PublicKey>,
    ) -> Result<BTreeSet<KeyId>, TrustError> {
        self.check_kind(kind)?;
        if self.signatures.len() > MAX_SIGNATURES {
            return Err(TrustError::TooManySignatures);
        }
        let message = self.signing_input()?;
        let keys: Vec<(KeyId, String, &PublicKey)> =
            keys.into_iter().map(|k| (k.id(), k.id().to_string(), k)).collect();
        let mut signers: BTreeSet<KeyId> = BTreeSet::new();
        for signature in &self.signatures {
            let Some(bytes) = decode_base64(&signature.sig).ok().and_then(|b| <[u8; 64]>::try_from(b).ok()) else {
                continue;
            };
            // The key id is a hint: other tools name keys their own way, then every key of the role is tried.
            let hinted = keys.iter().any(|(_, text, _)| *text == signature.keyid);
            let signer = keys
                .iter()
                .filter(|(_, text, _)| !hinted || *text == signature.keyid)
                .find(|(_, _, key)| key.verifies(&message, &bytes));
            signers.extend(signer.map(|(id, _, _)| *id));
        }
        Ok(signers)
    }

    /// The content, once at least `threshold` different keys among `keys` have signed it as a `kind` document.
    ///
    /// # Errors
    /// [`TrustError`] with what is wrong.
    pub fn verify<'k>(
        &self,
        kind: DocumentKind,
        keys: impl IntoIterator<Item = &'k PublicKey>,
        threshold: u32,
    ) -> Result<Vec<u8>, TrustError> {
        let signers = self.signers(kind, keys)?;
        let valid = u32::try_from(signers.len()).unwrap_or(u32::MAX);
        if threshold == 0 || valid < threshold {
            return Err(TrustError::Threshold { role: kind.role(), valid, threshold });
        }
        self.payload_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;
    use crate::damage;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&Zeroizing::new([seed; 32]))
    }

    fn signed(kind: DocumentKind, payload: &[u8], seeds: &[u8]) -> Envelope {
        let mut envelope = Envelope::unsigned(kind, payload);
        for seed in seeds {
            envelope.add_signature(&key(*seed)).unwrap();
        }
        envelope
    }

    #[test]
    fn the_encoding_is_the_one_in_the_specification() {
        // github.com/secure-systems-lab/dsse, protocol.md, test vector.
        let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn thresholds_count_different_keys() {
        let keys = [key(1).public(), key(2).public(), key(3).public()];
        let two = signed(DocumentKind::Root, b"x", &[1, 2]);
        assert_eq!(two.verify(DocumentKind::Root, &keys, 2).unwrap(), b"x");
        assert!(matches!(two.verify(DocumentKind::Root, &keys, 3), Err(TrustError::Threshold { valid: 2, .. })));

        let mut twice = signed(DocumentKind::Root, b"x", &[1]);
        let mut copy = twice.signatures[0].clone();
        twice.signatures.push(copy.clone());
        copy.keyid = key(2).public().id().to_string();
        twice.signatures.push(copy.clone());
        copy.keyid = "another name".into();
        twice.signatures.push(copy);
        assert!(matches!(twice.verify(DocumentKind::Root, &keys, 2), Err(TrustError::Threshold { valid: 1, .. })));

        let stranger = signed(DocumentKind::Root, b"x", &[9]);
        assert!(matches!(stranger.verify(DocumentKind::Root, &keys, 1), Err(TrustError::Threshold { valid: 0, .. })));
    }

    #[test]
    fn a_signature_made_elsewhere_is_taken_once_it_verifies() {
        let (one, other) = (key(1), key(2));
        let mut envelope = Envelope::unsigned(DocumentKind::Root, b"x");
        let message = envelope.signing_input().unwrap();
        assert_eq!(message, b"DSSEv1 35 application/vnd.muster.root.v1+json 1 x");
        for wrong in [other.sign(&message), one.sign(b"x"), [0; 64]] {
            let refused = envelope.insert_signature(&one.public(), &wrong);
            assert_eq!(refused, Err(TrustError::Signature(one.public().id())));
        }
        assert!(envelope.signatures.is_empty());
        for _ in 0..2 {
            envelope.insert_signature(&one.public(), &one.sign(&message)).unwrap();
        }
        assert_eq!(envelope, signed(DocumentKind::Root, b"x", &[1]));
    }

    #[test]
    fn content_and_kind_are_both_signed() {
        let keys = [key(1).public()];
        let mut envelope = signed(DocumentKind::Manifest, b"x", &[1]);
        assert!(matches!(envelope.verify(DocumentKind::Root, &keys, 1), Err(TrustError::PayloadType { .. })));
        envelope.payload_type = DocumentKind::Root.payload_type();
        assert!(matches!(envelope.verify(DocumentKind::Root, &keys, 1), Err(TrustError::Threshold { .. })));
        let mut envelope = signed(DocumentKind::Manifest, b"x", &[1]);
        envelope.payload = STANDARD.encode(b"y");
        assert!(matches!(envelope.verify(DocumentKind::Manifest, &keys, 1), Err(TrustError::Threshold { .. })));
        assert!(matches!(envelope.verify(DocumentKind::Manifest, &keys, 0), Err(TrustError::Threshold { .. })));
    }

    #[test]
    fn endless_envelopes_are_refused() {
        let mut envelope = signed(DocumentKind::Root, b"x", &[1]);
        envelope.payload = "A".repeat(MAX_DOCUMENT_BYTES * 2);
        assert_eq!(envelope.verify(DocumentKind::Root, &[key(1).public()], 1), Err(TrustError::TooLarge));
        let mut envelope = signed(DocumentKind::Root, b"x", &[1]);
        envelope.signatures = vec![envelope.signatures[0].clone(); MAX_SIGNATURES + 1];
        assert_eq!(envelope.verify(DocumentKind::Root, &[key(1).public()], 1), Err(TrustError::TooManySignatures));
    }

    proptest! {
        #[test]
        fn any_envelope_is_refused_without_a_panic(payload in ".{0,40}", keyid in ".{0,10}", sig in ".{0,100}") {
            let envelope = Envelope {
                payload,
                payload_type: DocumentKind::Root.payload_type(),
                signatures: vec![Signature { keyid, sig }],
            };
            prop_assert!(envelope.verify(DocumentKind::Root, &[key(1).public()], 1).is_err());
        }

        #[test]
        fn what_was_signed_cannot_be_changed(part in 0..4usize, at: prop::sample::Index, flip in 1..=255u8) {
            let keys = [key(1).public(), key(2).public()];
            let mut envelope = signed(DocumentKind::Root, b"{\"version\":1}", &[1, 2]);
            prop_assert!(envelope.verify(DocumentKind::Root, &keys, 2).is_ok());
            let flipped = |text: &str| {
                let mut bytes = STANDARD.decode(text).unwrap();
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                STANDARD.encode(bytes)
            };
            match part {
                0 => envelope.payload = flipped(&envelope.payload),
                1 => {
                    let mut kind = envelope.payload_type.into_bytes();
                    let at = at.index(kind.len());
                    kind[at] ^= flip;
                    envelope.payload_type = String::from_utf8_lossy(&kind).into_owned();
                }
                signature => envelope.signatures[signature - 2].sig = flipped(&envelope.signatures[signature - 2].sig),
            }
            prop_assert!(envelope.verify(DocumentKind::Root, &keys, 2).is_err());
        }

        #[test]
        fn a_damaged_envelope_says_what_was_signed_or_nothing(
            json in damage::bytes(serde_json::to_vec(&signed(DocumentKind::Root, b"{\"version\":1}", &[1, 2])).unwrap()),
            fields in damage::json(serde_json::to_value(signed(DocumentKind::Root, b"{\"version\":1}", &[1, 2])).unwrap()),
        ) {
            let keys = [key(1).public(), key(2).public(), key(3).public()];
            for envelope in [serde_json::from_slice::<Envelope>(&json), serde_json::from_value(fields)] {
                // Key ids are hints and names unknown are ignored, so that not every damage breaks it.
                if let Ok(payload) = envelope.map(|envelope| envelope.verify(DocumentKind::Root, &keys, 2)).unwrap_or(Err(TrustError::TooLarge)) {
                    prop_assert_eq!(payload, b"{\"version\":1}");
                }
            }
        }

        #[test]
        fn signatures_are_counted_by_the_keys_that_made_them(signers in prop::collection::vec((1..6u8, any::<bool>(), any::<u8>()), 0..8), threshold in 0..5u32) {
            let keys = [key(1).public(), key(2).public(), key(3).public(), key(4).public()];
            let mut envelope = Envelope::unsigned(DocumentKind::Root, b"x");
            let mut good = BTreeSet::new();
            for (seed, renamed, name) in signers {
                let mut one = signed(DocumentKind::Root, b"x", &[seed]).signatures.remove(0);
                if renamed {
                    one.keyid = format!("key {name}");
                }
                envelope.signatures.push(one);
                if seed <= 4 {
                    good.insert(seed);
                }
            }
            let enough = threshold > 0 && good.len() >= threshold as usize;
            prop_assert_eq!(envelope.verify(DocumentKind::Root, &keys, threshold).is_ok(), enough);
        }
    }
}
