//! A certificate the device was given before it met its controller, by somebody else's authority. It is read when the device enrols, and
//! serves for nothing else: the controller's own certificate takes over from there.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::MAX_FILE_BYTES;
use crate::config::ProvisionedConfig;
use crate::files;

/// The certificate with those above it, and its key.
pub(super) type Provisioned = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}, which provisioned.{setting} names, {problem}")]
pub(crate) struct ProvisionedError {
    setting: &'static str,
    path: PathBuf,
    problem: String,
}

/// Reads both files.
pub(super) fn read(config: &ProvisionedConfig) -> Result<Provisioned, ProvisionedError> {
    let failed = |setting, path: &Path, problem: String| ProvisionedError { setting, path: path.to_owned(), problem };
    let text = |setting, path: &Path| match files::read_start(path, MAX_FILE_BYTES) {
        Ok(Some(bytes)) => Ok(Zeroizing::new(bytes)),
        Ok(None) => Err(failed(setting, path, "is missing".to_owned())),
        Err(error) => Err(failed(setting, path, format!("cannot be read: {}", crate::causes::with_source(&error)))),
    };
    let bytes = text("certificate", &config.certificate)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .ok()
        .filter(|certificates: &Vec<_>| !certificates.is_empty())
        .ok_or_else(|| failed("certificate", &config.certificate, "holds no certificate in PEM".to_owned()))?;
    let key = PrivateKeyDer::from_pem_slice(&text("key", &config.key)?)
        .map_err(|_| failed("key", &config.key, "holds no private key in PEM".to_owned()))?;
    Ok((certificates, key))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let config =
            ProvisionedConfig { certificate: folder.path().join("own.pem"), key: folder.path().join("own.key") };
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([]).unwrap().self_signed(&key).unwrap();
        let said = || read(&config).map(drop).unwrap_err().to_string();
        assert!(said().contains("own.pem") && said().contains("provisioned.certificate"), "{}", said());
        std::fs::write(&config.certificate, "noise").unwrap();
        assert!(said().contains("holds no certificate"), "{}", said());
        std::fs::write(&config.certificate, certificate.pem() + &certificate.pem()).unwrap();
        assert!(said().contains("own.key") && said().contains("is missing"), "{}", said());
        std::fs::write(&config.key, "noise").unwrap();
        assert!(said().contains("holds no private key"), "{}", said());
        std::fs::write(&config.key, key.serialize_pem()).unwrap();
        assert_eq!(read(&config).unwrap().0.len(), 2);
    }
}
