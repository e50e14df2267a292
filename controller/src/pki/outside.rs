//! Authorities of others, whose certificates devices were given before they ever met this controller (IEEE 802.1AR calls such an identity
//! the initial one). Showing one stands for an enrolment token; what a device gets for it is a certificate of our own, which is all that
//! the broker and the rest of the API know.
//!
//! Which device a certificate is for is decided by a rule of the configuration.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use muster_shared::ids::DeviceId;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::PkiError;
use crate::config::{DeviceIdFrom, OutsideConfig};
use crate::durable;

/// Who a certificate of an outside authority was given to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Provisioned {
    /// The authority, as the configuration calls it.
    pub(crate) authority: String,
    /// The device.
    pub(crate) device: DeviceId,
    /// Labels that devices of this authority get.
    pub(crate) labels: BTreeMap<String, String>,
}

/// Why a certificate stands for no device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutsideError {
    /// No authority of the configuration signed it, or not for this, or it is not in date, or it is revoked.
    #[error("it is not accepted: {0}")]
    Certificate(String),
    /// The rule finds no device in it.
    #[error("the rule of the authority {authority:?} finds no device in it: {reason}")]
    Rule {
        /// The authority.
        authority: String,
        /// What is missing.
        reason: String,
    },
    /// The list of revoked certificates cannot be used.
    #[error("the list of what {authority:?} revoked cannot be used: {reason}")]
    Revoked {
        /// The authority.
        authority: String,
        /// What is wrong.
        reason: String,
    },
}

/// One authority.
pub(super) struct Outside {
    config: OutsideConfig,
    roots: Arc<RootCertStore>,
}

type Lists = Vec<CertificateRevocationListDer<'static>>;

#[derive(Debug, thiserror::Error)]
enum VerifyError {
    #[error("there is none")]
    NoCertificate,
    #[error(transparent)]
    Unusable(#[from] VerifierBuilderError),
    #[error(transparent)]
    Refused(#[from] rustls::Error),
}

/// The lists in PEM at `path`, at least one.
fn lists(path: &Path) -> Result<Lists, String> {
    let text = durable::read(path).map_err(|error| error.cause().to_string())?.ok_or("there is no such file")?;
    let lists = CertificateRevocationListDer::pem_slice_iter(&text).collect::<Result<Lists, _>>();
    let lists = lists.map_err(|error| error.to_string())?;
    if lists.is_empty() { Err("it holds no list in PEM".into()) } else { Ok(lists) }
}

/// The text that `from` takes out of a certificate.
fn text_of(from: DeviceIdFrom, certificate: &X509Certificate<'_>) -> Result<String, String> {
    let only = |mut found: Vec<String>, what: &str| match (found.pop(), found.is_empty()) {
        (Some(text), true) => Ok(text),
        (Some(_), false) => Err(format!("it has more than one {what}")),
        (None, _) => Err(format!("it has no {what}")),
    };
    let subject = certificate.subject();
    match from {
        DeviceIdFrom::CommonName => {
            only(subject.iter_common_name().filter_map(|n| n.as_str().ok()).map(str::to_owned).collect(), "common name")
        }
        DeviceIdFrom::SerialNumber => {
            let numbers = subject.iter_by_oid(&x509_parser::oid_registry::OID_X509_SERIALNUMBER);
            only(numbers.filter_map(|n| n.as_str().ok()).map(str::to_owned).collect(), "serial number in its subject")
        }
        DeviceIdFrom::DnsName => {
            let names = certificate.subject_alternative_name().ok().flatten().map(|names| &names.value.general_names);
            let names = names
                .into_iter()
                .flatten()
                .filter_map(|name| if let GeneralName::DNSName(name) = name { Some((*name).to_owned()) } else { None });
            only(names.collect(), "DNS name")
        }
    }
}

/// The device a certificate is for.
fn device_of(config: &OutsideConfig, certificate: &X509Certificate<'_>) -> Result<DeviceId, String> {
    let text = text_of(config.device_id, certificate)?;
    // Names of devices are in lower case; those on type plates often are not.
    let name = format!("{}{}", config.prefix, text.to_ascii_lowercase());
    DeviceId::new(&name).map_err(|error| format!("{name:?} is no device's name: {error}"))
}

impl Outside {
    /// Reads the authority's certificates.
    ///
    /// # Errors
    /// [`PkiError`] naming the file.
    pub(super) fn open(config: &OutsideConfig) -> Result<Self, PkiError> {
        let damaged = |reason: String| PkiError::Damaged { path: config.file.clone(), reason };
        let text = durable::read(&config.file)?.ok_or_else(|| damaged("there is no such file".into()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| damaged(error.to_string()))?;
            roots.add(certificate).map_err(|error| damaged(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(damaged("it holds no certificate in PEM".into()));
        }
        Ok(Self { config: config.clone(), roots: Arc::new(roots) })
    }

    pub(super) fn roots(&self) -> &RootCertStore {
        &self.roots
    }

    fn verify(&self, chain: &[CertificateDer<'_>], lists: Lists, now_ms: u64) -> Result<(), VerifyError> {
        let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider)
            .with_crls(lists)
            // Those above the device's own are the authority's matter.
            .only_check_end_entity_revocation()
            .enforce_revocation_expiration()
            .build()?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
        verifier.verify_client_cert(leaf, intermediates, now)?;
        Ok(())
    }

    /// Whether the authority stands behind `chain`, whatever it revoked since.
    fn check_signed(&self, chain: &[CertificateDer<'_>], now_ms: u64) -> Result<(), OutsideError> {
        self.verify(chain, Lists::new(), now_ms).map_err(|error| OutsideError::Certificate(error.to_string()))
    }

    /// Whether the authority, which signed `chain`, has not revoked it. Its lists are read each time: others write them.
    fn check_not_revoked(&self, chain: &[CertificateDer<'_>], now_ms: u64) -> Result<(), OutsideError> {
        let Some(path) = &self.config.revoked_file else { return Ok(()) };
        let unusable = |reason: String| OutsideError::Revoked {
            authority: self.config.name.clone(),
            reason: format!("{}: {reason}", path.display()),
        };
        let lists = lists(path).map_err(unusable)?;
        let error = match self.verify(chain, lists, now_ms) {
            Ok(()) => return Ok(()),
            Err(VerifyError::Refused(rustls::Error::InvalidCertificate(error))) => error,
            Err(error) => return Err(unusable(error.to_string())),
        };
        if error == CertificateError::Revoked {
            return Err(OutsideError::Certificate(format!("the authority {:?} has revoked it", self.config.name)));
        }
        let reason = if error == CertificateError::UnknownRevocationStatus {
            "it holds no list of the authority that signed the certificate shown: add the one of each that signs devices".into()
        } else if matches!(
            error,
            CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. }
        ) {
            "the date of the next update of its list has passed: put the newest one there".into()
        } else {
            rustls::Error::from(error).to_string()
        };
        Err(unusable(reason))
    }

    /// Who the certificate at the head of `chain` was given to.
    fn device(&self, chain: &[CertificateDer<'_>]) -> Result<Provisioned, OutsideError> {
        let rule = |reason: String| OutsideError::Rule { authority: self.config.name.clone(), reason };
        let leaf = chain.first().ok_or_else(|| rule(VerifyError::NoCertificate.to_string()))?;
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| rule(error.to_string()))?;
        let device = device_of(&self.config, &certificate).map_err(rule)?;
        Ok(Provisioned { authority: self.config.name.clone(), device, labels: self.config.labels.clone() })
    }
}

/// Who the certificate at the head of `chain` was given to, by the first authority that accepts it. What any of those that signed it
/// has revoked, or may have, no other one accepts: the same authority may stand in the configuration twice, with two rules.
///
/// # Errors
/// [`OutsideError`] of the authority that comes closest to accepting it.
pub(super) fn identify(
    authorities: &[Outside],
    chain: &[CertificateDer<'_>],
    now_ms: u64,
) -> Result<Provisioned, OutsideError> {
    let mut why = OutsideError::Certificate("no outside authority is configured ([[pki.outside]])".into());
    let mut accepting = None;
    for authority in authorities {
        if let Err(error) = authority.check_signed(chain, now_ms) {
            why = error;
            continue;
        }
        authority.check_not_revoked(chain, now_ms)?;
        accepting = accepting.or(Some(authority));
    }
    accepting.ok_or(why)?.device(chain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
        KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    };

    use super::*;
    use crate::clock;

    fn factory(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn device(
        ca: &CertifiedIssuer<'static, KeyPair>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Press-7");
        change(&mut params);
        params.signed_by(&KeyPair::generate().unwrap(), ca).unwrap().der().clone()
    }

    fn config(folder: &Path, ca: &CertifiedIssuer<'static, KeyPair>) -> OutsideConfig {
        let file = folder.join(format!("{}.pem", muster_shared::ids::Digest::of(ca.pem().as_bytes())));
        std::fs::write(&file, ca.pem()).unwrap();
        OutsideConfig {
            name: "factory".into(),
            file,
            revoked_file: None,
            device_id: DeviceIdFrom::CommonName,
            prefix: String::new(),
            labels: [("maker".to_owned(), "acme".to_owned())].into(),
        }
    }

    /// What `ca` says it revoked, until a year.
    fn list(ca: &CertifiedIssuer<'static, KeyPair>, number: u64, next_update_year: i32) -> String {
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(next_update_year, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(number),
                revocation_time: rcgen::date_time_ymd(2020, 2, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(ca).unwrap().pem().unwrap()
    }

    #[test]
    fn the_rule_says_which_device_a_certificate_is_for() {
        let folder = tempfile::tempdir().unwrap();
        let ca = factory("factory");
        let with = |change: &dyn Fn(&mut OutsideConfig)| {
            let mut config = config(folder.path(), &ca);
            change(&mut config);
            Outside::open(&config).unwrap()
        };
        let found = |outside: &Outside, certificate: CertificateDer<'static>| {
            identify(std::slice::from_ref(outside), &[certificate], clock::now_ms()).map_err(|error| error.to_string())
        };
        let by_name = found(&with(&|_| {}), device(&ca, |_| {})).unwrap();
        assert_eq!((by_name.device.as_str(), by_name.authority.as_str()), ("press-7", "factory"));
        assert_eq!(by_name.labels["maker"], "acme");
        let by_number = with(&|c| {
            c.device_id = DeviceIdFrom::SerialNumber;
            c.prefix = "acme-".into();
        });
        let numbered = device(&ca, |params| {
            params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), "0042AB");
        });
        assert_eq!(found(&by_number, numbered).unwrap().device.as_str(), "acme-0042ab");
        assert!(found(&by_number, device(&ca, |_| {})).unwrap_err().contains("no serial number"));
        let by_dns = with(&|c| c.device_id = DeviceIdFrom::DnsName);
        let dns = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())).collect();
            device(&ca, |params| params.subject_alt_names = names)
        };
        assert_eq!(found(&by_dns, dns(&["press-9.plant"])).unwrap().device.as_str(), "press-9.plant");
        assert!(found(&by_dns, dns(&["a", "b"])).unwrap_err().contains("more than one"));
        let odd = device(&ca, |params| params.distinguished_name.push(DnType::CommonName, "../press"));
        assert!(found(&with(&|_| {}), odd).unwrap_err().contains("finds no device"));
    }

    #[test]
    fn others_revoked_and_ended_certificates_stand_for_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, other) = (factory("factory"), factory("factory"));
        let mut settings = config(folder.path(), &ca);
        let identify = |settings: &OutsideConfig, certificate: CertificateDer<'static>, now_ms: u64| {
            identify(&[Outside::open(settings).unwrap()], &[certificate], now_ms)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        let now_ms = clock::now_ms();
        assert!(identify(&settings, device(&other, |_| {}), now_ms).is_err());
        let ended = device(&ca, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        assert!(identify(&settings, ended, now_ms).unwrap_err().contains("expired"));
        assert!(
            super::identify(&[], &[device(&ca, |_| {})], now_ms).unwrap_err().to_string().contains("[[pki.outside]]")
        );

        let numbered = |number: u64| device(&ca, move |params| params.serial_number = Some(SerialNumber::from(number)));
        let path = folder.path().join("revoked.pem");
        settings.revoked_file = Some(path.clone());
        assert!(identify(&settings, numbered(65), now_ms).unwrap_err().contains("no such file"));
        std::fs::write(&path, "noise").unwrap();
        assert!(identify(&settings, numbered(65), now_ms).unwrap_err().contains("no list in PEM"));
        std::fs::write(&path, list(&ca, 66, 2100)).unwrap();
        identify(&settings, numbered(65), now_ms).unwrap();
        assert!(identify(&settings, numbered(66), now_ms).unwrap_err().contains("has revoked it"));
    }

    #[test]
    fn a_list_that_cannot_know_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, stranger, namesake) = (factory("factory"), factory("stranger"), factory("factory"));
        let path = folder.path().join("revoked.pem");
        let settings = OutsideConfig { revoked_file: Some(path.clone()), ..config(folder.path(), &ca) };
        let outside = [Outside::open(&settings).unwrap()];
        let said = |lists: String| {
            std::fs::write(&path, lists).unwrap();
            identify(&outside, &[device(&ca, |_| {})], clock::now_ms()).map(drop).map_err(|error| error.to_string())
        };
        said(list(&stranger, 66, 2100) + &list(&ca, 66, 2100)).unwrap();
        for (lists, reason) in [
            (list(&stranger, 66, 2100), "no list of the authority that signed"),
            (list(&ca, 66, 2021), "next update of its list has passed"),
            (list(&namesake, 66, 2100), "BadSignature"),
            ("-----BEGIN X509 CRL-----\nbm9pc2U=\n-----END X509 CRL-----\n".into(), "could not be parsed"),
        ] {
            let said = said(lists).unwrap_err();
            assert!(said.contains(reason) && said.contains("revoked.pem") && said.contains("factory"), "{said}");
        }
        // It says nothing about certificates of others.
        let other = [OutsideConfig { name: "other".into(), ..config(folder.path(), &stranger) }, settings];
        let all: Vec<Outside> = other.iter().map(|settings| Outside::open(settings).unwrap()).collect();
        assert_eq!(identify(&all, &[device(&stranger, |_| {})], clock::now_ms()).unwrap().authority, "other");
    }

    #[test]
    fn what_one_rule_of_an_authority_revoked_no_other_accepts() {
        let folder = tempfile::tempdir().unwrap();
        let ca = factory("factory");
        let path = folder.path().join("revoked.pem");
        let open = |name: &str, revoked_file: Option<&Path>| {
            let revoked_file = revoked_file.map(Path::to_owned);
            Outside::open(&OutsideConfig { name: name.into(), revoked_file, ..config(folder.path(), &ca) }).unwrap()
        };
        for authorities in [[open("a", Some(&path)), open("b", None)], [open("b", None), open("a", Some(&path))]] {
            let identify = |number: u64| {
                let certificate = device(&ca, |params| params.serial_number = Some(SerialNumber::from(number)));
                identify(&authorities, &[certificate], clock::now_ms()).map_err(|error| error.to_string())
            };
            std::fs::write(&path, list(&ca, 66, 2100)).unwrap();
            assert_eq!(identify(65).unwrap().authority, authorities[0].config.name);
            assert!(identify(66).unwrap_err().contains("\"a\" has revoked it"));
            std::fs::remove_file(&path).unwrap();
            assert!(identify(65).unwrap_err().contains("no such file"));
        }
    }

    proptest! {
        #[test]
        fn any_file_is_an_authority_or_named(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            let mut settings = config(folder.path(), &factory("f"));
            settings.file = folder.path().join("other.pem");
            std::fs::write(&settings.file, bytes).unwrap();
            let said = Outside::open(&settings).err().unwrap().to_string();
            prop_assert!(said.contains("other.pem"), "{}", said);
        }

        #[test]
        fn any_bytes_stand_for_nobody(chain in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..3)) {
            let folder = tempfile::tempdir().unwrap();
            let outside = Outside::open(&config(folder.path(), &factory("f"))).unwrap();
            let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
            prop_assert!(identify(&[outside], &chain, clock::now_ms()).is_err());
        }
    }
}
