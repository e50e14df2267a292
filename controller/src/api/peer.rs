//! Devices that show their certificate to the API, as they do to the broker.
//!
//! A certificate is asked for and not insisted on: people and new devices have none. One that is shown must be of our authorities or of an
//! outside one and in date, or the TLS handshake fails.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::{Extension, Router};
use axum_server::accept::Accept;
use axum_server::tls_rustls::RustlsAcceptor;
use muster_shared::ids::DeviceId;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::broker::serial_text;
use crate::clock;
use crate::pki::Pki;
use crate::problem::ApiError;
use crate::state::App;

/// The certificate that the other end, and what it sent along, of a connection has shown.
#[derive(Debug, Clone)]
pub(super) struct Shown(pub(super) Vec<CertificateDer<'static>>);

/// Accepts TLS connections, and tells handlers what certificate was shown.
#[derive(Clone)]
pub(crate) struct AcceptDevices(pub(crate) RustlsAcceptor);

type Tls = <RustlsAcceptor as Accept<TcpStream, Router>>::Stream;

impl Accept<TcpStream, Router> for AcceptDevices {
    type Stream = Tls;
    type Service = Router;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Tls, Router)>> + Send>>;

    fn accept(&self, stream: TcpStream, service: Router) -> Self::Future {
        let accepting = self.0.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            let shown = stream.get_ref().1.peer_certificates().filter(|chain| !chain.is_empty());
            let service = match shown {
                Some(chain) => {
                    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
                    service.layer(Extension(Shown(chain)))
                }
                None => service,
            };
            Ok((stream, service))
        })
    }
}

/// Who a certificate of our authority was given to. Whether it is still accepted is [`crate::admission`]'s matter.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) device: DeviceId,
    pub(super) serial: String,
}

impl Holder {
    fn of(pki: &Pki, certificate: &CertificateDer<'_>, now_ms: u64) -> Result<Self, &'static str> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| "it does not parse")?;
        // TLS lets those of outside authorities pass as well.
        if !pki.is_ours(&certificate) {
            return Err("another authority signed it");
        }
        let mut names = certificate.subject().iter_common_name();
        let (Some(name), None) = (names.next(), names.next()) else { return Err("it has not one common name") };
        let device = name.as_str().ok().and_then(|name| DeviceId::new(name).ok()).ok_or("it names no device")?;
        // A connection that resumes an earlier one is not held against the clock again.
        let ends_ms = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0).saturating_mul(1_000);
        if ends_ms < now_ms {
            return Err("it has expired");
        }
        Ok(Self { device, serial: serial_text(certificate.raw_serial()) })
    }
}

impl FromRequestParts<Arc<App>> for Holder {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let refuse = |detail: String| ApiError::new(StatusCode::UNAUTHORIZED, "no-client-certificate", detail);
        let Some(certificate) = parts.extensions.get::<Shown>().and_then(|shown| shown.0.first()) else {
            return Err(refuse("a device must show the certificate it has".into()));
        };
        Self::of(&app.pki, certificate, clock::now_ms())
            .map_err(|why| refuse(format!("the certificate shown is of no use: {why}")))
    }
}
