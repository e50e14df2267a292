//! What each of those who act shows: certificates that the controller gave its devices, and such as only an attacker or an administrator
//! with the CA's key could make.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use muster_tests::device::DeviceSetup;
use muster_tests::fleet::Fleet;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::cases::Who;

/// The papers of everybody in the table.
pub(super) struct Papers {
    dev1: Arc<ClientConfig>,
    dev10: Arc<ClientConfig>,
    nobody: Arc<ClientConfig>,
    /// There are none where `openssl` is missing.
    others: Option<[Arc<ClientConfig>; 2]>,
}

impl Papers {
    /// Has `dev1` and `dev10` enrol, and their agents stop: they would fight for the client id.
    ///
    /// # Errors
    /// When that fails.
    pub(super) async fn of(fleet: &mut Fleet) -> anyhow::Result<Self> {
        let token = fleet.enrolment_token(2).await?;
        for id in ["dev1", "dev10"] {
            let setup = DeviceSetup { id, token: &token, window_ms: 60_000, settings: "" };
            fleet.add_device(&setup, false).await?;
        }
        fleet.wait_online(2).await?;
        for id in ["dev1", "dev10"] {
            fleet.device(id)?.process_mut().stop().await?;
        }
        fleet.wait_online(0).await?;
        let ca = &fleet.controller.endpoints.ca_file;
        let device = |id: &str| {
            let folder = fleet.folder.join(id).join("data/identity");
            client_config(ca, &folder.join("device.pem"), &folder.join("device.key"))
        };
        let (dev1, dev10) = (device("dev1")?, device("dev10")?);
        let others = if Command::new("openssl").arg("version").output().is_ok() {
            let folder = fleet.folder.join("papers");
            std::fs::create_dir_all(&folder)?;
            controllers(&folder, ca)?;
            strangers(&folder)?;
            let of = |name: &str| {
                client_config(ca, &folder.join(name).with_extension("pem"), &folder.join(name).with_extension("key"))
            };
            Some([of("controller")?, of("stranger")?])
        } else {
            eprintln!("SKIPPED what the controller and a stranger do: openssl is not installed");
            None
        };
        let nobody = Arc::new(ClientConfig::builder().with_root_certificates(trusting(ca)?).with_no_client_auth());
        Ok(Self { dev1, dev10, nobody, others })
    }

    /// Those of `who`, if there are any.
    pub(super) fn shown_by(&self, who: Who) -> Option<&Arc<ClientConfig>> {
        match who {
            Who::Dev1 => Some(&self.dev1),
            Who::Dev10 => Some(&self.dev10),
            Who::Nobody => Some(&self.nobody),
            Who::Controller => self.others.as_ref().map(|[controller, _]| controller),
            Who::Stranger => self.others.as_ref().map(|[_, stranger]| stranger),
        }
    }
}

fn trusting(ca: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    Ok(roots)
}

fn client_config(ca: &Path, certificate: &Path, key: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(trusting(ca)?).with_client_auth_cert(chain, key)?))
}

fn openssl(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let done = Command::new("openssl").args(arguments).current_dir(folder).output()?;
    ensure!(done.status.success(), "openssl {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr));
    Ok(())
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// Makes the controller's certificate for an outside broker with the CA's own key.
fn controllers(folder: &Path, ca: &Path) -> anyhow::Result<()> {
    signed(folder, "controller", Who::Controller.certificate().common_name, ca).context("the controller's certificate")
}

/// Makes a certificate that bears a device's name, of an authority that bears the name of ours.
fn strangers(folder: &Path) -> anyhow::Result<()> {
    let own =
        ["req", "-x509", "-days", "1", "-subj", "/CN=Muster CA", "-keyout", "other-ca.key", "-out", "other-ca.pem"];
    openssl(folder, &[&own[..], &NEW_KEY].concat())?;
    signed(folder, "stranger", Who::Stranger.certificate().common_name, &folder.join("other-ca.pem"))
}

/// Makes `name.key`, and `name.pem` signed by the authority whose certificate is `ca`.
fn signed(folder: &Path, name: &str, common_name: &str, ca: &Path) -> anyhow::Result<()> {
    let (subject, key, request) = (format!("/CN={common_name}"), format!("{name}.key"), format!("{name}.csr"));
    let ask = ["req", "-new", "-subj", &subject, "-keyout", &key, "-out", &request];
    openssl(folder, &[&ask[..], &NEW_KEY].concat())?;
    std::fs::write(folder.join("usage"), "extendedKeyUsage=clientAuth\n")?;
    let (ca, ca_key) = (ca.display().to_string(), ca.with_extension("key").display().to_string());
    let sign = ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-set_serial", "2", "-days", "1"];
    openssl(folder, &[&sign[..], &["-extfile", "usage", "-out", &format!("{name}.pem")]].concat())
}
