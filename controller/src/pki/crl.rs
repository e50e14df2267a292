//! The list of certificates that are accepted no more (RFC 5280, 5), for brokers that cannot ask the store.

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use super::ca::Authority;
use super::{BACKDATED_MS, DAY_MS, PkiError, date};

/// A broker whose list is out of date lets nobody in: long enough for a controller that is away and for whoever has to notice.
const VALID_FOR_MS: u64 = 30 * DAY_MS;

/// A certificate that is accepted no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RevokedCertificate {
    /// Its serial number, as [`crate::broker::serial_text`] writes it.
    pub(crate) serial: String,
    /// In milliseconds since the Unix epoch.
    pub(crate) since_ms: u64,
}

/// The list in PEM.
pub(super) fn make(ca: &Authority, revoked: &[RevokedCertificate], now_ms: u64) -> Result<String, PkiError> {
    let failed = |reason: String| PkiError::RevocationList { reason };
    let revoked_certs = revoked
        .iter()
        .map(|RevokedCertificate { serial, since_ms }| {
            // The text has no leading zeros, bytes come in pairs of digits.
            let digits = if serial.len() % 2 == 0 { serial.clone() } else { format!("0{serial}") };
            let bytes = hex::decode(digits).map_err(|error| failed(format!("serial number {serial}: {error}")))?;
            let revocation_time = date(*since_ms);
            let serial_number = SerialNumber::from(bytes);
            Ok(RevokedCertParams { serial_number, revocation_time, reason_code: None, invalidity_date: None })
        })
        .collect::<Result<_, PkiError>>()?;
    let params = CertificateRevocationListParams {
        this_update: date(now_ms.saturating_sub(BACKDATED_MS)),
        next_update: date(now_ms.saturating_add(VALID_FOR_MS)),
        // Later lists have higher numbers, without a counter that could be lost.
        crl_number: SerialNumber::from(now_ms),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = params.signed_by(ca.issuer()).map_err(|error| failed(error.to_string()))?;
    list.pem().map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use x509_parser::pem::parse_x509_pem;
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    use x509_parser::revocation_list::CertificateRevocationList;

    use super::*;
    use crate::broker::serial_text;

    const NOW_MS: u64 = 1_790_000_000_000;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_list_is_the_authoritys_and_names_these_and_no_others(
            serials in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..17), 0..20),
            late_ms in 0_u64..10 * DAY_MS,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let ca = Authority::open(folder.path(), 1, NOW_MS).unwrap();
            let serials: BTreeSet<String> = serials.iter().map(|serial| serial_text(serial)).collect();
            let revoked: Vec<_> =
                serials.iter().map(|serial| RevokedCertificate { serial: serial.clone(), since_ms: NOW_MS }).collect();
            let now_ms = NOW_MS + late_ms;
            let pem = make(&ca, &revoked, now_ms).unwrap();
            let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
            prop_assert_eq!(&pem.label, "X509 CRL");
            let (rest, list) = CertificateRevocationList::from_der(&pem.contents).unwrap();
            prop_assert!(rest.is_empty());
            let (_, authority) = X509Certificate::from_der(ca.der()).unwrap();
            list.verify_signature(authority.public_key()).unwrap();
            prop_assert_eq!(list.issuer(), authority.subject());
            let named: BTreeSet<String> =
                list.iter_revoked_certificates().map(|entry| serial_text(entry.raw_serial())).collect();
            prop_assert_eq!(named, serials);
            let seconds = |at: x509_parser::time::ASN1Time| at.timestamp().cast_unsigned();
            prop_assert_eq!(seconds(list.last_update()), now_ms / 1_000 - 3_600);
            prop_assert_eq!(seconds(list.next_update().unwrap()), now_ms / 1_000 + 30 * 86_400);
        }
    }

    #[test]
    fn a_serial_number_that_is_none_makes_no_list() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Authority::open(folder.path(), 1, NOW_MS).unwrap();
        let odd = RevokedCertificate { serial: "no number".into(), since_ms: NOW_MS };
        let said = make(&ca, &[odd], NOW_MS).unwrap_err().to_string();
        assert!(said.contains("no number"), "{said}");
    }
}
