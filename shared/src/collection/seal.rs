//! Sealing samples: HPKE (RFC 9180) in base mode, one message a context, with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and
//! ChaCha20-Poly1305.
//!
//! A sealed sample is the encapsulated key (32 bytes) and the ciphertext with its tag (16). `info` is [`INFO`], the collection and the device,
//! each behind a zero byte, so that a sample of one cannot be passed off as one of another; there are no associated data. Every sample has an ephemeral key of its own:
//! nothing on the device opens what it has sealed a moment before. Who sealed a sample is not proven by it: that rests on the device's
//! certificate at the upload. Random bytes are the caller's to bring.

use ring::{aead, hkdf, hmac};
use zeroize::Zeroizing;

use super::recipient::{RecipientKey, RecipientSecret};
use crate::ids::{CollectionId, DeviceId};

/// What a sealed sample has more than what is sealed, in bytes.
pub const OVERHEAD_BYTES: usize = KEY_BYTES + 16;
/// What HPKE's `info` of every sample begins with.
pub const INFO: &[u8] = b"muster/sample/v1";

const KEY_BYTES: usize = 32;
const KEM: &[u8] = &[b'K', b'E', b'M', 0x00, 0x20];
const HPKE: &[u8] = &[b'H', b'P', b'K', b'E', 0x00, 0x20, 0x00, 0x01, 0x00, 0x03];
const BASE: u8 = 0;

/// Why something cannot be sealed or opened. It says no more: whatever was wrong, nothing of it is known to be genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Sealing failed: the recipient's key is of no use, or the sample is far too long.
    #[error("the sample cannot be sealed to this key")]
    Seal,
    /// It was sealed to another key, for another collection or device, or is damaged.
    #[error(
        "the sample does not open: it is sealed to another key, comes from another collection or device, or is damaged"
    )]
    Open,
}

fn info_of(collection: &CollectionId, device: &DeviceId) -> Vec<u8> {
    // Neither may hold the byte between them.
    [INFO, &[0], collection.as_str().as_bytes(), &[0], device.as_str().as_bytes()].concat()
}

fn labeled_extract(salt: &[u8], suite: &[u8], label: &[u8], input: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut extract = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, salt));
    for part in [&b"HPKE-v1"[..], suite, label, input] {
        extract.update(part);
    }
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(extract.sign().as_ref());
    out
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn labeled_expand<const N: usize>(
    key: &[u8; 32],
    suite: &[u8],
    label: &[u8],
    info: &[u8],
) -> Option<Zeroizing<[u8; N]>> {
    let length = u16::try_from(N).ok()?.to_be_bytes();
    let info = [&length[..], b"HPKE-v1", suite, label, info];
    let mut out = Zeroizing::new([0; N]);
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, key).expand(&info, Length(N)).ok()?.fill(out.as_mut_slice()).ok()?;
    Some(out)
}

/// The key and nonce of the one message between an ephemeral key and a recipient.
fn schedule(
    agreed: &[u8; 32],
    encapsulated: &[u8; 32],
    recipient: &RecipientKey,
    info: &[u8],
) -> Option<(aead::LessSafeKey, aead::Nonce)> {
    if *agreed == [0; 32] {
        return None;
    }
    let pair = [&encapsulated[..], recipient.as_bytes()].concat();
    let extracted = labeled_extract(b"", KEM, b"eae_prk", agreed);
    let shared = labeled_expand::<32>(&extracted, KEM, b"shared_secret", &pair)?;
    let id = labeled_extract(b"", HPKE, b"psk_id_hash", b"");
    let info = labeled_extract(b"", HPKE, b"info_hash", info);
    let context = [&[BASE][..], id.as_slice(), info.as_slice()].concat();
    let secret = labeled_extract(shared.as_slice(), HPKE, b"secret", b"");
    let key = labeled_expand::<32>(&secret, HPKE, b"key", &context)?;
    let nonce = labeled_expand::<12>(&secret, HPKE, b"base_nonce", &context)?;
    let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, key.as_slice()).ok()?;
    Some((aead::LessSafeKey::new(key), aead::Nonce::assume_unique_for_key(*nonce)))
}

fn seal_with(
    recipient: &RecipientKey,
    ephemeral: &RecipientSecret,
    info: &[u8],
    associated: &[u8],
    mut content: Vec<u8>,
) -> Option<Vec<u8>> {
    let encapsulated = ephemeral.public();
    let agreed = ephemeral.agree(recipient.as_bytes());
    let (key, nonce) = schedule(&agreed, encapsulated.as_bytes(), recipient, info)?;
    key.seal_in_place_append_tag(nonce, aead::Aad::from(associated), &mut content).ok()?;
    Some([encapsulated.as_bytes(), content.as_slice()].concat())
}

fn open_with(secret: &RecipientSecret, info: &[u8], associated: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (encapsulated, content) = sealed.split_first_chunk::<KEY_BYTES>()?;
    let agreed = secret.agree(encapsulated);
    let (key, nonce) = schedule(&agreed, encapsulated, &secret.public(), info)?;
    let mut content = content.to_vec();
    let length = key.open_in_place(nonce, aead::Aad::from(associated), &mut content).ok()?.len();
    content.truncate(length);
    Some(content)
}

/// Seals `content`, a sample that `device` took for `collection`, to `recipient`. `seed` are 32 random bytes that are used for nothing else.
///
/// # Errors
/// [`SealError::Seal`].
pub fn seal(
    recipient: &RecipientKey,
    collection: &CollectionId,
    device: &DeviceId,
    seed: &Zeroizing<[u8; 32]>,
    content: Vec<u8>,
) -> Result<Vec<u8>, SealError> {
    let ephemeral = RecipientSecret::from_seed(seed);
    seal_with(recipient, &ephemeral, &info_of(collection, device), b"", content).ok_or(SealError::Seal)
}

/// Opens what [`seal`] made.
///
/// # Errors
/// [`SealError::Open`].
pub fn open(
    secret: &RecipientSecret,
    collection: &CollectionId,
    device: &DeviceId,
    sealed: &[u8],
) -> Result<Vec<u8>, SealError> {
    open_with(secret, &info_of(collection, device), b"", sealed).ok_or(SealError::Open)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(digits: &str) -> RecipientSecret {
        RecipientSecret::parse(digits).unwrap()
    }

    #[test]
    fn the_construction_is_the_one_of_the_standard() {
        // RFC 9180, A.2.1: base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, sequence number 0.
        let ephemeral = secret("f4ec9b33b792c372c1d2c2063507b684ef925b8c75a42dbcbf57d63ccd381600");
        let recipient = secret("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb");
        let encapsulated = "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a";
        assert_eq!(ephemeral.public().to_string(), encapsulated);
        assert_eq!(recipient.public().to_string(), "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a");
        let info = b"Ode on a Grecian Urn";
        let content = b"Beauty is truth, truth beauty".to_vec();
        let sealed = seal_with(&recipient.public(), &ephemeral, info, b"Count-0", content.clone()).unwrap();
        let expected = "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28";
        assert_eq!(hex::encode(&sealed), format!("{encapsulated}{expected}"));
        assert_eq!(open_with(&recipient, info, b"Count-0", &sealed).unwrap(), content);
    }

    #[test]
    fn a_key_that_keeps_nothing_secret_is_refused() {
        // RFC 7748, 6.1: points of small order give zero.
        for bytes in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            assert!(RecipientKey::from_bytes(bytes).is_err());
            assert!(hex::encode(bytes).parse::<RecipientKey>().is_err());
            let own = secret(&"11".repeat(32));
            let sealed = [&bytes[..], &[0; 40]].concat();
            assert_eq!(open_with(&own, INFO, b"", &sealed), None);
        }
        for text in ["", "zz", &"a".repeat(63), &"a".repeat(66)] {
            assert!(text.parse::<RecipientKey>().is_err() && RecipientSecret::parse(text).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_for_its_recipient_alone(
            seeds in prop::array::uniform3(prop::array::uniform32(any::<u8>())),
            content in prop::collection::vec(any::<u8>(), 0..300),
            at: prop::sample::Index,
            flip in 1..=255u8,
        ) {
            let [own, other, ephemeral] = seeds.map(Zeroizing::new);
            let (own, other) = (RecipientSecret::from_seed(&own), RecipientSecret::from_seed(&other));
            let (collection, device) = (CollectionId::new("c1").unwrap(), DeviceId::new("dev-1").unwrap());
            let sealed = seal(&own.public(), &collection, &device, &ephemeral, content.clone()).unwrap();
            prop_assert_eq!(sealed.len(), content.len() + OVERHEAD_BYTES);
            prop_assert_eq!(open(&own, &collection, &device, &sealed), Ok(content.clone()));
            if own.public() != other.public() {
                prop_assert_eq!(open(&other, &collection, &device, &sealed), Err(SealError::Open));
            }
            let elsewhere = DeviceId::new("dev-2").unwrap();
            prop_assert_eq!(open(&own, &collection, &elsewhere, &sealed), Err(SealError::Open));
            let another = CollectionId::new("c2").unwrap();
            prop_assert_eq!(open(&own, &another, &device, &sealed), Err(SealError::Open));
            let mut damaged = sealed.clone();
            let at = at.index(damaged.len());
            damaged[at] ^= flip;
            // The highest bit of an X25519 key counts for nothing (RFC 7748, 5), and yet is bound by the key schedule.
            prop_assert_eq!(open(&own, &collection, &device, &damaged), Err(SealError::Open));
            prop_assert_eq!(open(&own, &collection, &device, &sealed[..at]), Err(SealError::Open));
        }
    }
}
