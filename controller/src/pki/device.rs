//! Certificates of devices: what a request must prove, and what a certificate says.
//!
//! Nothing in a request is taken over but its key. The name is the one the device was granted.

use muster_shared::ids::{DeviceId, Digest};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::authorities::{Authorities, AuthoritiesVersion};
use super::{BACKDATED_MS, PkiError, date, random_serial};
use crate::broker::serial_text;
use crate::store::records::PendingCertificate;

/// What of a certificate's life may lie before it was given out: devices renew at a part of the whole.
const BACKDATED_PART: u64 = 12;
/// A request with a P-256 key has about 300 bytes; some tools add a page of extensions.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// Why a certificate request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CsrError {
    /// Too many bytes.
    #[error("the certificate request is larger than {MAX_REQUEST_BYTES} bytes")]
    TooLarge,
    /// Not a request in PEM.
    #[error("the certificate request is not a PKCS#10 request in PEM")]
    Malformed,
    /// Signed by another key, or with an algorithm that is not taken.
    #[error("the certificate request is not signed by the key it names")]
    Signature,
    /// A key of another kind.
    #[error("the certificate request's key is not on the curve P-256")]
    Key,
}

/// A device's public key, of which it has proven to hold the private half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceKey {
    key: SubjectPublicKeyInfo,
    sha256: Digest,
}

impl DeviceKey {
    /// Checks a PKCS#10 request in PEM.
    ///
    /// # Errors
    /// [`CsrError`].
    pub(crate) fn from_request(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > MAX_REQUEST_BYTES {
            return Err(CsrError::TooLarge);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrError::Malformed)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let raw = request.certification_request_info.subject_pki.raw;
        let key = SubjectPublicKeyInfo::from_der(raw).map_err(|_| CsrError::Key)?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CsrError::Key);
        }
        request.verify_signature().map_err(|_| CsrError::Signature)?;
        Ok(Self { key, sha256: Digest::of(raw) })
    }

    /// Digest of the SubjectPublicKeyInfo in DER.
    pub(crate) fn sha256(&self) -> Digest {
        self.sha256
    }
}

/// A new certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceCertificate {
    /// In PEM.
    pub(crate) pem: String,
    /// Its serial number, as [`serial_text`] writes it.
    pub(crate) serial: String,
    /// Which authorities there were, the last of which signed it.
    pub(crate) version: AuthoritiesVersion,
    /// When it ends, in milliseconds since the Unix epoch.
    pub(crate) ends_ms: u64,
}

impl DeviceCertificate {
    /// What is kept of it until the device shows it. It was made for `key`.
    pub(crate) fn of(&self, key: &DeviceKey) -> PendingCertificate {
        PendingCertificate {
            serial: self.serial.clone(),
            public_key_sha256: key.sha256(),
            authorities: self.version,
            ends_ms: Some(self.ends_ms),
        }
    }
}

pub(super) fn issue(
    ca: &Authorities,
    device: &DeviceId,
    key: &DeviceKey,
    now_ms: u64,
    valid_for_ms: u64,
) -> Result<DeviceCertificate, PkiError> {
    let serial = random_serial(device.as_str())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, device.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = date(now_ms.saturating_sub(BACKDATED_MS.min(valid_for_ms / BACKDATED_PART)));
    let ends_ms = now_ms.saturating_add(valid_for_ms);
    params.not_after = date(ends_ms);
    let certificate = params
        .signed_by(&key.key, ca.current().issuer())
        .map_err(|error| PkiError::Make { subject: device.to_string(), reason: error.to_string() })?;
    Ok(DeviceCertificate { pem: certificate.pem(), serial: serial_text(&serial), version: ca.version(), ends_ms })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};
    use rustls_pki_types::CertificateDer;
    use x509_parser::prelude::X509Certificate;

    use super::*;
    use crate::pki::DAY_MS;

    const NOW_MS: u64 = 1_790_000_000_000;

    fn request(algorithm: &'static SignatureAlgorithm, name: &str) -> String {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_certificate_bears_the_granted_name_whatever_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Authorities::open(folder.path(), NOW_MS).unwrap();
        let key = DeviceKey::from_request(&request(&PKCS_ECDSA_P256_SHA256, "admin")).unwrap();
        let issue = |days: u64| issue(&ca, &DeviceId::new("dev-1").unwrap(), &key, NOW_MS, days * DAY_MS).unwrap();
        let issued = issue(365);
        let der = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=dev-1");
        assert_eq!(serial_text(certificate.raw_serial()), issued.serial);
        assert!(!certificate.is_ca());
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        let validity = certificate.validity();
        assert_eq!(validity.not_before.timestamp().cast_unsigned(), NOW_MS / 1_000 - 3_600);
        assert_eq!(validity.not_after.timestamp().cast_unsigned(), NOW_MS / 1_000 + 365 * 86_400);
        assert_eq!(issued.ends_ms, NOW_MS + 365 * DAY_MS);
        let (_, ca_certificate) = X509Certificate::from_der(ca.current().der()).unwrap();
        certificate.verify_signature(Some(ca_certificate.public_key())).unwrap();

        // A short life begins hardly before it is given, or it would be over for the most part.
        let short = issue(1);
        let der = CertificateDer::from_pem_slice(short.pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let seconds = |at: x509_parser::time::ASN1Time| at.timestamp().cast_unsigned();
        let validity = certificate.validity();
        assert_eq!(seconds(validity.not_after) - seconds(validity.not_before), 86_400 + 3_600);
        let least = super::issue(&ca, &DeviceId::new("dev-1").unwrap(), &key, NOW_MS, 12_000).unwrap();
        let der = CertificateDer::from_pem_slice(least.pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let validity = certificate.validity();
        assert_eq!(seconds(validity.not_after) - seconds(validity.not_before), 13);
    }

    #[test]
    fn requests_that_prove_nothing_are_refused() {
        for other in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            assert_eq!(DeviceKey::from_request(&request(other, "x")), Err(CsrError::Key));
        }
        let good = request(&PKCS_ECDSA_P256_SHA256, "x");
        let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
        let mut forged = der.to_vec();
        // The last byte belongs to the signature.
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(DeviceKey::from_request(&pem(&forged)), Err(CsrError::Signature));
        assert_eq!(DeviceKey::from_request(&pem(&[&der, [0].as_slice()].concat())), Err(CsrError::Malformed));
        assert_eq!(DeviceKey::from_request(&pem(b"noise")), Err(CsrError::Malformed));
        assert_eq!(DeviceKey::from_request("noise"), Err(CsrError::Malformed));
        assert_eq!(DeviceKey::from_request(&"x".repeat(MAX_REQUEST_BYTES + 1)), Err(CsrError::TooLarge));
        assert!(DeviceKey::from_request(&good).is_ok());
    }

    fn pem(der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
    }

    proptest! {
        #[test]
        fn any_text_and_any_bytes_are_no_request(text in ".{0,200}", der in prop::collection::vec(any::<u8>(), 0..200)) {
            for request in [text, pem(&der), pem(&[&[0x30, 0x82][..], &der].concat())] {
                prop_assert_eq!(DeviceKey::from_request(&request), Err(CsrError::Malformed));
            }
        }

        #[test]
        fn any_damage_to_a_request_is_refused_or_changes_nothing_that_counts(at in 0_usize..300, value: u8) {
            let good = request(&PKCS_ECDSA_P256_SHA256, "x");
            let whole = DeviceKey::from_request(&good).unwrap();
            let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
            let at = at % der.len();
            prop_assume!(der[at] != value);
            der[at] = value;
            // The tag of the signature's algorithm is outside of what is signed, and the parser is lenient about it.
            if let Ok(read) = DeviceKey::from_request(&pem(&der)) {
                prop_assert_eq!(read, whole);
            }
        }
    }
}
