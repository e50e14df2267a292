//! The controller's own certificate, for the API and the broker. It is made anew whenever the stored one would not do:
//! near its end, for other names, of another authority, or damaged.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, PublicKeyData as _,
    SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::authorities::Authorities;
use super::ca::{make_key, read_key};
use super::outside::Outside;
use super::{BACKDATED_MS, DAY_MS, PkiError, date, random_serial};
use crate::config::{Config, host_of_url};
use crate::durable::{self, Access};

const SUBJECT: &str = "Muster controller";
const VALID_FOR_MS: u64 = 2 * 365 * DAY_MS;
/// A certificate that ends sooner than this is replaced at the next start.
const RENEWED_BEFORE_MS: u64 = 180 * DAY_MS;

/// The names a client may know the controller by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerNames {
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl ServerNames {
    /// Those the configuration lists, and the hosts it hands out.
    pub(crate) fn of(config: &Config) -> Self {
        let mut this = Self {
            names: config.pki.names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            addresses: config.pki.addresses.iter().copied().collect(),
        };
        let api_host = config.api.public_url.as_deref().and_then(host_of_url);
        for host in api_host.into_iter().chain([config.broker.public_host.as_str()]) {
            match host.parse() {
                Ok(address) => _ = this.addresses.insert(address),
                Err(_) => _ = this.names.insert(host.to_ascii_lowercase()),
            }
        }
        for address in [config.api.listen.ip(), config.broker.listen.ip()] {
            if !address.is_unspecified() {
                this.addresses.insert(address);
            }
        }
        this
    }
}

/// The certificate and its key on the disk.
pub(super) struct ServerFiles {
    certificate: PathBuf,
    key: PathBuf,
}

impl ServerFiles {
    pub(super) fn open(folder: &Path, ca: &Authorities, names: &ServerNames, now_ms: u64) -> Result<Self, PkiError> {
        let this = Self { certificate: folder.join("server.pem"), key: folder.join("server.key") };
        if let Some(reason) = this.fault(ca, names, now_ms)? {
            tracing::info!(reason, "making the server's certificate");
            this.make(ca, names, now_ms)?;
        }
        Ok(this)
    }

    pub(super) fn certificate_file(&self) -> &Path {
        &self.certificate
    }

    pub(super) fn key_file(&self) -> &Path {
        &self.key
    }

    /// Why what is stored will not do.
    fn fault(&self, ca: &Authorities, names: &ServerNames, now_ms: u64) -> Result<Option<&'static str>, PkiError> {
        let (Some(pem), Some(key)) = (durable::read(&self.certificate)?, durable::read(&self.key)?) else {
            return Ok(Some("there is none"));
        };
        let Ok(key) = read_key(&self.key, &Zeroizing::new(key)) else {
            return Ok(Some("its key is damaged"));
        };
        let Ok(der) = CertificateDer::from_pem_slice(&pem) else {
            return Ok(Some("it is damaged"));
        };
        let Ok((_, certificate)) = X509Certificate::from_der(&der) else {
            return Ok(Some("it is damaged"));
        };
        if certificate.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Ok(Some("its key is another's"));
        }
        if !ca.current().has_signed(&certificate) {
            return Ok(Some("another authority signed it"));
        }
        let ends_ms = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0).saturating_mul(1_000);
        if ends_ms < now_ms.saturating_add(RENEWED_BEFORE_MS) {
            return Ok(Some("it ends soon"));
        }
        if names_in(&certificate).as_ref() != Some(names) {
            return Ok(Some("it has other names"));
        }
        Ok((!pem.ends_with(ca.chain_pem().as_bytes())).then_some("another authority is to be shown with it"))
    }

    fn make(&self, ca: &Authorities, names: &ServerNames, now_ms: u64) -> Result<(), PkiError> {
        let failed = |error: rcgen::Error| PkiError::Make { subject: SUBJECT.into(), reason: error.to_string() };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, SUBJECT);
        for name in &names.names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(failed)?));
        }
        params.subject_alt_names.extend(names.addresses.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&random_serial(SUBJECT)?));
        params.not_before = date(now_ms.saturating_sub(BACKDATED_MS));
        params.not_after = date(now_ms.saturating_add(VALID_FOR_MS));
        // A crash between the two writes leaves a pair that does not match, which is found at the next start.
        let key = make_key(&self.key, SUBJECT)?;
        let certificate = params.signed_by(&key, ca.current().issuer()).map_err(failed)?;
        // Authorities go along: a device that enrols knows only the fingerprint of one, and looks for it in the chain.
        let chain = certificate.pem() + &ca.chain_pem();
        durable::write(&self.certificate, chain.as_bytes(), Access::Public)?;
        Ok(())
    }

    pub(super) fn api_tls(&self, ca: &Authorities, outside: &[Outside]) -> Result<rustls::ServerConfig, PkiError> {
        let failed = |reason: String| PkiError::Tls { path: self.certificate.clone(), reason };
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| failed(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| failed(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in ca.all() {
            roots.add(authority.der().clone()).map_err(|error| failed(error.to_string()))?;
        }
        for authority in outside {
            roots.roots.extend(authority.roots().roots.iter().cloned());
        }
        // People have tokens, devices that enrol have nothing yet: only those who renew show a certificate.
        let devices = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?
            .with_client_cert_verifier(devices)
            .with_single_cert(chain, key)
            .map_err(|error| failed(error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn names_in(certificate: &X509Certificate<'_>) -> Option<ServerNames> {
    let mut found = ServerNames { names: BTreeSet::new(), addresses: BTreeSet::new() };
    for name in &certificate.subject_alternative_name().ok()??.value.general_names {
        if let GeneralName::DNSName(name) = name {
            found.names.insert((*name).to_owned());
        } else if let GeneralName::IPAddress(bytes) = name {
            let address = <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                .ok()?;
            found.addresses.insert(address);
        } else {
            return None;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NOW_MS: u64 = 1_790_000_000_000;

    fn names(list: &[&str]) -> ServerNames {
        ServerNames {
            names: list.iter().map(|name| (*name).to_owned()).collect(),
            addresses: ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()].into(),
        }
    }

    #[test]
    fn the_certificate_is_kept_until_it_will_not_do() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Authorities::open(folder.path(), NOW_MS).unwrap();
        let current = |names: &ServerNames, now_ms: u64| {
            let files = ServerFiles::open(folder.path(), &ca, names, now_ms).unwrap();
            files.api_tls(&ca, &[]).unwrap();
            fs::read_to_string(files.certificate_file()).unwrap()
        };
        let first = current(&names(&["localhost"]), NOW_MS);
        assert_eq!(current(&names(&["localhost"]), NOW_MS + 30 * DAY_MS), first);
        let renamed = current(&names(&["localhost", "muster.example"]), NOW_MS);
        assert_ne!(renamed, first);
        let later_ms = NOW_MS + VALID_FOR_MS - RENEWED_BEFORE_MS + DAY_MS;
        let renewed = current(&names(&["localhost", "muster.example"]), later_ms);
        assert_ne!(renewed, renamed);
        fs::write(folder.path().join("server.key"), "noise").unwrap();
        assert_ne!(current(&names(&["localhost", "muster.example"]), later_ms), renewed);
        make_key(&folder.path().join("server.key"), "another").unwrap();
        current(&names(&["localhost", "muster.example"]), later_ms);
        fs::write(folder.path().join("server.pem"), "noise").unwrap();
        current(&names(&["localhost", "muster.example"]), later_ms);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
        #[test]
        fn whatever_the_files_hold_there_is_a_certificate_that_serves(
            certificate in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), wrapped: bool, of_key: bool
        ) {
            let folder = tempfile::tempdir().unwrap();
            let ca = Authorities::open(folder.path(), NOW_MS).unwrap();
            ServerFiles::open(folder.path(), &ca, &names(&["localhost"]), NOW_MS).unwrap();
            let noise = match wrapped {
                true => format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", hex::encode(&certificate)).into_bytes(),
                false => certificate,
            };
            fs::write(folder.path().join(if of_key { "server.key" } else { "server.pem" }), noise).unwrap();
            let files = ServerFiles::open(folder.path(), &ca, &names(&["localhost"]), NOW_MS).unwrap();
            files.api_tls(&ca, &[]).unwrap();
        }
    }

    #[test]
    fn another_authority_means_another_certificate() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ca = Authorities::open(one.path(), NOW_MS).unwrap();
        let files = ServerFiles::open(two.path(), &ca, &names(&[]), NOW_MS).unwrap();
        assert_eq!(files.fault(&ca, &names(&[]), NOW_MS).unwrap(), None);
        let other = Authorities::open(two.path(), NOW_MS).unwrap();
        assert_eq!(files.fault(&other, &names(&[]), NOW_MS).unwrap(), Some("another authority signed it"));
    }

    #[test]
    fn the_hosts_handed_out_are_in_the_certificate() {
        let mut config = Config::default();
        config.api.public_url = Some("https://Muster.Example:8443".into());
        config.broker.public_host = "10.1.2.3".into();
        let names = ServerNames::of(&config);
        assert!(names.names.contains("muster.example") && names.names.contains("localhost"));
        assert!(names.addresses.contains(&"10.1.2.3".parse().unwrap()));
    }
}
