//! How devices and people reach this controller, once the ports are known; and the file that tells others on
//! the machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Config;
use crate::durable::{self, Access, FileError};

/// The addresses to hand out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Endpoints {
    /// Base URL of the API, without a slash at its end.
    pub(crate) api_url: String,
    /// Host of the broker.
    pub(crate) broker_host: String,
    /// Port of the broker.
    pub(crate) broker_port: u16,
    /// The CA's certificate.
    pub(crate) ca_file: PathBuf,
}

impl Endpoints {
    /// What to hand out when the sockets are bound to these addresses.
    pub(crate) fn new(config: &Config, api: SocketAddr, broker: SocketAddr, ca_file: &Path) -> Self {
        let api_url = match &config.api.public_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("https://{api}"),
        };
        Self {
            api_url,
            broker_host: config.broker.public_host.clone(),
            broker_port: config.broker.public_port.unwrap_or_else(|| broker.port()),
            ca_file: ca_file.to_owned(),
        }
    }

    /// The same with another CA.
    pub(crate) fn with_ca(&self, ca_file: PathBuf) -> Self {
        Self { ca_file, ..self.clone() }
    }

    /// Where the file lies.
    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("endpoints.json")
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`FileError`].
    pub(crate) fn write(&self, path: &Path) -> Result<(), FileError> {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        durable::write(path, text.as_bytes(), Access::Public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_win_over_bound_addresses() {
        let mut config = Config::default();
        let (api, broker) = ("127.0.0.1:4443".parse().unwrap(), "127.0.0.1:4883".parse().unwrap());
        let derived = Endpoints::new(&config, api, broker, Path::new("ca.pem"));
        assert_eq!((derived.api_url.as_str(), derived.broker_port), ("https://127.0.0.1:4443", 4883));
        config.api.public_url = Some("https://muster.example/".into());
        config.broker.public_port = Some(8883);
        let set = Endpoints::new(&config, api, broker, Path::new("ca.pem"));
        assert_eq!((set.api_url.as_str(), set.broker_port), ("https://muster.example", 8883));
    }
}
