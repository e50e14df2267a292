//! Keys in PEM, as OpenSSL reads and writes them: PKCS#8 (RFC 5958), encrypted with a passphrase (PBES2, RFC 8018) or in the
//! clear, and public keys (SubjectPublicKeyInfo, RFC 8410).

use muster_shared::trust::{PublicKey, SigningKey};
use pkcs8::der::asn1::OctetStringRef;
use pkcs8::der::{Decode as _, pem};
use pkcs8::pkcs5::pbes2::{self, Kdf};
use pkcs8::pkcs5::{EncryptionScheme, scrypt};
use pkcs8::{
    AlgorithmIdentifierRef, EncryptedPrivateKeyInfoRef, LineEnding, ObjectIdentifier, PrivateKeyInfoRef,
    SubjectPublicKeyInfoRef,
};
use zeroize::Zeroizing;

use crate::passphrase::Passphrase;

const BEGIN: &str = "-----BEGIN ";
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const ENCRYPTED_LABEL: &str = "ENCRYPTED PRIVATE KEY";
const PLAIN_LABEL: &str = "PRIVATE KEY";
const PUBLIC_LABEL: &str = "PUBLIC KEY";
/// An ed25519 private key in PKCS#8 is an OCTET STRING of these 32 bytes within another.
const SEED_HEADER: [u8; 2] = [0x04, 0x20];
const UNKNOWN_SCHEME: &str =
    "encrypted in a way that is not known here; `openssl pkcs8 -topk8 -scrypt` writes one that is";

/// What scrypt costs for a key made here: 16 MiB, five times over. As slow to guess as OWASP asks, and within the 32 MiB that
/// OpenSSL allows itself.
const SCRYPT_LOG_N: u8 = 14;
const SCRYPT_R: u32 = 8;
const SCRYPT_P: u32 = 5;
/// The most a key file may ask for: a minute or so, and memory that any machine has. A file made to exhaust is refused.
const MAX_SCRYPT_BYTES: u64 = 256 * 1024 * 1024;
const MAX_SCRYPT_WORK_BYTES: u64 = 8 * MAX_SCRYPT_BYTES;
const MAX_PBKDF2_ROUNDS: u32 = 10_000_000;

/// A key in PEM, by its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A private key with a passphrase.
    Encrypted,
    /// A private key in the clear.
    Plain,
    /// A public key.
    Public,
    /// Something else.
    Other,
}

/// The key in PEM that `text` holds, if it holds one.
pub(super) fn find(text: &str) -> Option<(Kind, &str)> {
    let at = text.find(BEGIN)?;
    let block = text.get(at..)?;
    let kind = match pem::decode_label(block.as_bytes()) {
        Ok(ENCRYPTED_LABEL) => Kind::Encrypted,
        Ok(PLAIN_LABEL) => Kind::Plain,
        Ok(PUBLIC_LABEL) => Kind::Public,
        Ok(_) | Err(_) => Kind::Other,
    };
    Some((kind, block))
}

fn decode(block: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    // The decoder's own buffer would grow, and leave a key in the clear where it was.
    let mut buffer = Zeroizing::new(vec![0; block.len()]);
    let length = match pem::decode(block.as_bytes(), &mut buffer) {
        Ok((_, decoded)) => decoded.len(),
        Err(error) => return Err(format!("the PEM is damaged ({error})")),
    };
    buffer.truncate(length);
    Ok(buffer)
}

/// The key encrypted with `passphrase`, in PEM.
pub(super) fn encrypt(key: &SigningKey, passphrase: &Passphrase) -> Result<String, String> {
    let random = |bytes: &mut [u8]| getrandom::fill(bytes).map_err(|error| format!("no random numbers: {error}"));
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    random(&mut salt)?;
    random(&mut iv)?;
    let cost = scrypt::Params::new(SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P).map_err(|error| error.to_string())?;
    let scheme = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).map_err(|error| error.to_string())?;
    let mut content = Zeroizing::new([0; 34]);
    content[..2].copy_from_slice(&SEED_HEADER);
    content[2..].copy_from_slice(key.seed().as_slice());
    let content = OctetStringRef::new(content.as_slice()).map_err(|error| error.to_string())?;
    PrivateKeyInfoRef::new(AlgorithmIdentifierRef { oid: ED25519, parameters: None }, content)
        .encrypt_with_params(scheme, passphrase.as_bytes())
        .and_then(|document| Ok(document.to_pem(ENCRYPTED_LABEL, LineEnding::LF)?.as_str().to_owned()))
        .map_err(|error| error.to_string())
}

/// The key in `block`, which `passphrase` opens. The words against it hold nothing secret.
pub(super) fn decrypt(block: &str, passphrase: &Passphrase) -> Result<SigningKey, String> {
    let der = decode(block)?;
    let info = EncryptedPrivateKeyInfoRef::try_from(der.as_slice())
        .map_err(|error| format!("it is damaged, or {UNKNOWN_SCHEME} ({error})"))?;
    let EncryptionScheme::Pbes2(scheme) = &info.encryption_algorithm else { return Err(UNKNOWN_SCHEME.into()) };
    check_cost(&scheme.kdf)?;
    let mut buffer = Zeroizing::new(info.encrypted_data.as_bytes().to_vec());
    // CBC cannot tell a wrong passphrase from damage: both end in nonsense.
    let wrong = || "the passphrase is wrong, or the file is damaged".to_owned();
    let plain = match scheme.decrypt_in_place(passphrase.as_bytes(), &mut buffer) {
        Ok(plain) => plain,
        Err(pkcs8::pkcs5::Error::DecryptFailed) => return Err(wrong()),
        Err(error) => return Err(format!("{UNKNOWN_SCHEME} ({error})")),
    };
    let info = PrivateKeyInfoRef::try_from(plain).map_err(|_| wrong())?;
    key_of(&info)
}

/// The key in `block`, which is in the clear.
pub(super) fn plain(block: &str) -> Result<SigningKey, String> {
    let der = decode(block)?;
    let info = PrivateKeyInfoRef::try_from(der.as_slice()).map_err(|_| "it is damaged".to_owned())?;
    key_of(&info)
}

/// The public key in `block`.
pub(super) fn public(block: &str) -> Result<PublicKey, String> {
    let der = decode(block)?;
    let info = SubjectPublicKeyInfoRef::from_der(&der).map_err(|_| "it is damaged".to_owned())?;
    let bytes = match info.subject_public_key.as_bytes() {
        Some(bytes) if info.algorithm.oid == ED25519 && bytes.len() == 32 => bytes,
        _ => return Err("it is no ed25519 key".into()),
    };
    PublicKey::try_from(hex::encode(bytes)).map_err(|error| error.to_string())
}

fn key_of(info: &PrivateKeyInfoRef<'_>) -> Result<SigningKey, String> {
    if info.algorithm.oid != ED25519 {
        return Err("it is no ed25519 key".into());
    }
    let mut seed = Zeroizing::new([0; 32]);
    match info.private_key.as_bytes().strip_prefix(&SEED_HEADER) {
        Some(bytes) if bytes.len() == seed.len() => seed.copy_from_slice(bytes),
        _ => return Err("it holds no ed25519 seed of 32 bytes".into()),
    }
    let key = SigningKey::from_seed(&seed);
    match info.public_key.and_then(|public| public.as_bytes()) {
        Some(public) if public != key.public().as_bytes() => {
            Err("its seed does not belong to its public key; it is damaged".into())
        }
        Some(_) | None => Ok(key),
    }
}

/// Refuses what would take all the memory or time there is, and what the arithmetic below it does not bear.
fn check_cost(kdf: &Kdf) -> Result<(), String> {
    let fits = match kdf {
        Kdf::Scrypt(params) => {
            let (n, r, p) = (params.cost_parameter, u64::from(params.block_size), u64::from(params.parallelization));
            let block = n.saturating_mul(r).saturating_mul(128);
            n >= 2
                && n.is_power_of_two()
                && r >= 1
                && p >= 1
                && block <= MAX_SCRYPT_BYTES
                && block.saturating_mul(p) <= MAX_SCRYPT_WORK_BYTES
        }
        Kdf::Pbkdf2(params) => (1..=MAX_PBKDF2_ROUNDS).contains(&params.iteration_count),
        _ => false,
    };
    if fits { Ok(()) } else { Err("opening it would take more time or memory than any sensible key asks for".into()) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::LazyLock;

    use pkcs8::pkcs5::pbes2::{Pbkdf2Params, ScryptParams};
    use proptest::prelude::*;

    use super::*;
    use crate::damage;

    static ENCRYPTED: LazyLock<String> = LazyLock::new(|| cheap(&key()));

    fn key() -> SigningKey {
        SigningKey::from_seed(&Zeroizing::new([7; 32]))
    }

    pub(in super::super) fn passphrase() -> Passphrase {
        Passphrase::of("correct horse")
    }

    /// [`key`] encrypted with as little work as there is: property tests open it often.
    pub(in super::super) fn cheap(key: &SigningKey) -> String {
        let kdf = Pbkdf2Params::hmac_sha256(1, &[1; 16]).unwrap().into();
        with(key, pbes2::Parameters { kdf, encryption: pbes2::EncryptionScheme::Aes256Cbc { iv: [2; 16] } })
    }

    fn with(key: &SigningKey, scheme: pbes2::Parameters) -> String {
        let content = [&SEED_HEADER[..], key.seed().as_slice()].concat();
        PrivateKeyInfoRef::new(
            AlgorithmIdentifierRef { oid: ED25519, parameters: None },
            OctetStringRef::new(&content).unwrap(),
        )
        .encrypt_with_params(scheme, passphrase().as_bytes())
        .unwrap()
        .to_pem(ENCRYPTED_LABEL, LineEnding::LF)
        .unwrap()
        .as_str()
        .to_owned()
    }

    #[test]
    fn a_key_comes_back_with_its_passphrase_and_not_with_another() {
        let text = encrypt(&key(), &passphrase()).unwrap();
        let (kind, block) = find(&text).unwrap();
        assert_eq!(kind, Kind::Encrypted);
        assert_eq!(decrypt(block, &passphrase()).unwrap().public(), key().public());
        assert_ne!(encrypt(&key(), &passphrase()).unwrap(), text, "salt and IV are new each time");
        for other in ["", "correct hors", "Correct horse", "correct horse "] {
            let error = decrypt(block, &Passphrase::of(other)).unwrap_err();
            assert!(error.contains("the passphrase is wrong"), "{error}");
        }
    }

    /// One wrong passphrase in 256 leaves what looks like padding; what is behind it must not be taken for a key either.
    #[test]
    fn no_wrong_passphrase_opens_it() {
        let (_, block) = find(&ENCRYPTED).unwrap();
        for n in 0..2000 {
            let error = decrypt(block, &Passphrase::of(&n.to_string())).unwrap_err();
            assert_eq!(error, "the passphrase is wrong, or the file is damaged");
        }
    }

    #[test]
    fn a_file_made_to_exhaust_is_refused_before_it_can() {
        let scrypt = |cost_parameter, block_size, parallelization| {
            let salt = pbes2::Salt::new([1; 16]).unwrap();
            ScryptParams { salt, cost_parameter, block_size, parallelization, key_length: None }
        };
        for params in [
            scrypt(0, 8, 1),
            scrypt(1, 8, 1),
            scrypt(3, 8, 1),
            scrypt(1 << 63, 8, 1),
            scrypt(u64::MAX, u16::MAX, u16::MAX),
            scrypt(1 << 19, 8, 1),
            scrypt(1 << 14, 8, u16::MAX),
            scrypt(1 << 14, 0, 1),
            scrypt(1 << 14, 8, 0),
        ] {
            assert!(check_cost(&params.into()).unwrap_err().contains("more time or memory"), "{params:?}");
        }
        for params in [scrypt(1 << 14, 8, 1), scrypt(1 << 14, 8, 5), scrypt(1 << 17, 8, 1), scrypt(1 << 20, 1, 1)] {
            assert!(check_cost(&params.into()).is_ok(), "{params:?}");
        }
        for (rounds, taken) in [(0, false), (1, true), (600_000, true), (10_000_001, false), (u32::MAX, false)] {
            let mut params = Pbkdf2Params::hmac_sha256(1, &[1; 16]).unwrap();
            params.iteration_count = rounds;
            assert_eq!(check_cost(&params.into()).is_ok(), taken, "{rounds}");
        }
    }

    #[test]
    fn a_whole_file_that_would_exhaust_is_refused() {
        let salt = pbes2::Salt::new([1; 16]).unwrap();
        let (_, block) = find(&ENCRYPTED).unwrap();
        let der = decode(block).unwrap();
        let info = EncryptedPrivateKeyInfoRef::try_from(der.as_slice()).unwrap();
        for cost_parameter in [0, 1 << 40] {
            let kdf = ScryptParams { salt, cost_parameter, block_size: 8, parallelization: 1, key_length: None }.into();
            let encryption = pbes2::EncryptionScheme::Aes256Cbc { iv: [2; 16] };
            let info = EncryptedPrivateKeyInfoRef {
                encryption_algorithm: EncryptionScheme::Pbes2(pbes2::Parameters { kdf, encryption }),
                encrypted_data: info.encrypted_data,
            };
            let text = pkcs8::SecretDocument::try_from(&info).unwrap().to_pem(ENCRYPTED_LABEL, LineEnding::LF).unwrap();
            assert!(decrypt(&text, &passphrase()).unwrap_err().contains("more time or memory"));
        }
    }

    proptest! {
        #[test]
        fn a_damaged_encrypted_key_is_the_same_or_refused_in_words_that_tell_nothing(
            bytes in damage::bytes(ENCRYPTED.clone().into_bytes()),
            text in damage::text(ENCRYPTED.clone()),
        ) {
            for text in [String::from_utf8_lossy(&bytes).into_owned(), text] {
                let Some((Kind::Encrypted, block)) = find(&text) else { continue };
                match decrypt(block, &passphrase()) {
                    // CBC does not notice a changed IV or salt block: at least the form of what comes out must be right.
                    Ok(read) => {
                        let shown = format!("{read:?}");
                        prop_assert!(!shown.contains("0707"), "{}", shown);
                    }
                    Err(error) => prop_assert!(!error.contains("horse") && !error.contains("07070"), "{}", error),
                }
            }
        }

        #[test]
        fn any_text_is_a_key_or_refused(text in ".{0,100}", label in "[A-Z ]{0,30}", body in "[A-Za-z0-9+/=\n]{0,100}") {
            for text in [text, format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"),
                format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")] {
                if let Some((_, block)) = find(&text) {
                    let _ = (plain(block).is_ok(), public(block).is_ok(), decrypt(block, &passphrase()).is_ok());
                }
            }
        }
    }
}
