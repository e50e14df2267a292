//! Trust for the first connection: only a server whose chain holds the CA that the enrolment token names.
//!
//! The token came by the operator's hand, so the certificate with its fingerprint is the one trust anchor; the server's own
//! certificate must then verify against it, name or address included, as with any CA.

use std::sync::Arc;

use muster_shared::ids::Digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::provisioned::Provisioned;
use crate::time::EffectiveTime;

/// Accepts servers of the CA with one fingerprint.
#[derive(Debug)]
struct PinnedCa {
    ca_sha256: Digest,
    provider: Arc<CryptoProvider>,
}

/// Why the server was not accepted, where rustls has no words for it.
#[derive(Debug, thiserror::Error)]
#[error(
    "its certificate chain does not hold the CA that the token names, so it is another controller, or its CA was replaced"
)]
struct OtherCa;

/// Why a server's certificate was refused for good; `None` for what may pass, as a clock that is not set yet.
pub(super) fn reason(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(problem) = error else { return None };
    let may_pass = matches!(
        problem,
        CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
    );
    let ours = matches!(problem, CertificateError::Other(_));
    (!may_pass).then(|| if ours { OtherCa.to_string() } else { error.to_string() })
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(ca) = intermediates.iter().find(|c| Digest::of(c) == self.ca_sha256) else {
            return Err(Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(OtherCa)))));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A TLS client that accepts only servers of the CA with this fingerprint, and shows them its `own` certificate where it has one.
///
/// # Errors
/// When rustls refuses the configuration.
pub(super) fn client(ca_sha256: Digest, time: &EffectiveTime, own: Option<Provisioned>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = PinnedCa { ca_sha256, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_details(provider, Arc::new(time.clone()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match own {
        Some((certificates, key)) => builder.with_client_auth_cert(certificates, key),
        None => Ok(builder.with_no_client_auth()),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;
    use crate::time::wall_ms;

    struct Ca(CertifiedIssuer<'static, KeyPair>);

    impl Ca {
        fn new() -> Self {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn der(&self) -> CertificateDer<'static> {
            self.0.der().clone()
        }

        fn server(&self, name: &str) -> CertificateDer<'static> {
            let key = KeyPair::generate().unwrap();
            CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap().der().clone()
        }
    }

    fn verify(
        pinned: &Ca,
        end_entity: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &str,
    ) -> Result<(), Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = PinnedCa { ca_sha256: Digest::of(&pinned.der()), provider };
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(wall_ms()));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(end_entity, chain, &name, &[], now).map(|_| ())
    }

    #[test]
    fn only_a_server_of_the_pinned_ca_with_the_right_name_is_accepted() {
        let (ours, theirs) = (Ca::new(), Ca::new());
        let server = ours.server("127.0.0.1");
        verify(&ours, &server, &[ours.der()], "127.0.0.1").unwrap();
        // Another name.
        assert!(verify(&ours, &server, &[ours.der()], "127.0.0.2").is_err());
        // The CA is not shown, or another is.
        for chain in [vec![], vec![theirs.der()]] {
            let error = verify(&ours, &server, &chain, "127.0.0.1").unwrap_err();
            assert_eq!(reason(&error).unwrap(), OtherCa.to_string());
        }
        // Somebody else's certificate beside the right CA's.
        assert!(verify(&ours, &theirs.server("127.0.0.1"), &[ours.der()], "127.0.0.1").is_err());
        // The CA's own certificate is public: showing it proves nothing.
        assert!(verify(&ours, &ours.der(), &[ours.der()], "127.0.0.1").is_err());
    }
}
