//! The bridge's settings: strict, with defaults that work beside an agent and a broker on the same device.

use std::path::PathBuf;

use serde::Deserialize;

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// The sensors' broker.
    pub(crate) bus: Bus,
    /// The agent.
    pub(crate) agent: AgentSettings,
}

/// `[bus]`: the sensors' broker.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Bus {
    /// Its host.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// The name of the session that the broker keeps.
    pub(crate) client_id: String,
    /// The filter of inputs.
    pub(crate) inputs: String,
    /// What stands before an input's topic for its answer.
    pub(crate) predictions: String,
    /// What stands before an input's topic for the reason why there is none.
    pub(crate) failed: String,
    /// How long the broker keeps the session, in seconds.
    pub(crate) session_expiry_s: u32,
    /// The largest input, in bytes.
    pub(crate) max_input_bytes: u32,
    /// How often a quiet connection is tried, in seconds.
    pub(crate) keep_alive_s: u16,
}

/// `[agent]`: what is asked, and how.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct AgentSettings {
    /// Its Unix socket.
    pub(crate) socket: PathBuf,
    /// The model.
    pub(crate) model: String,
    /// The model's input.
    pub(crate) input: String,
    /// The shape of one message's numbers.
    pub(crate) shape: Vec<u32>,
    /// How long one request may take, in milliseconds.
    pub(crate) timeout_ms: u32,
    /// Inputs asked about at once, and how many the broker is asked to send at once.
    pub(crate) max_in_flight: u16,
    /// Inputs held in memory, whatever the broker sends.
    pub(crate) max_held: u16,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 1883,
            client_id: "muster-mqtt-bridge".to_owned(),
            inputs: "sensors/+/image".to_owned(),
            predictions: "predictions".to_owned(),
            failed: "failed".to_owned(),
            session_expiry_s: 604_800,
            max_input_bytes: 262_144,
            keep_alive_s: 30,
        }
    }
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            socket: "/run/muster-agent/inference.sock".into(),
            model: "digits".to_owned(),
            input: "image".to_owned(),
            shape: vec![1, 64],
            timeout_ms: 5_000,
            max_in_flight: 4,
            max_held: 128,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It does not parse.
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
    /// A number is out of bounds.
    #[error("{setting} is {got}: {least} to {most} is allowed")]
    Bounds {
        /// The setting.
        setting: &'static str,
        /// What it is.
        got: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// A topic cannot be used.
    #[error("[bus] {setting} is {got:?}: {rule}")]
    Topic {
        /// The setting.
        setting: &'static str,
        /// What it is.
        got: String,
        /// What it has to be.
        rule: &'static str,
    },
}

impl Config {
    /// Reads and checks `text`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        let bus = &config.bus;
        let within = |setting, got: u64, least: u64, most: u64| {
            if (least..=most).contains(&got) { Ok(()) } else { Err(ConfigError::Bounds { setting, got, least, most }) }
        };
        within("[bus] max-input-bytes", bus.max_input_bytes.into(), 64, 16 * 1024 * 1024)?;
        within("[bus] keep-alive-s", bus.keep_alive_s.into(), 5, 3_600)?;
        within("[agent] timeout-ms", config.agent.timeout_ms.into(), 100, 600_000)?;
        within("[agent] max-in-flight", config.agent.max_in_flight.into(), 1, 64)?;
        within("[agent] max-held", config.agent.max_held.into(), config.agent.max_in_flight.into(), 4_096)?;
        within("the number of dimensions in [agent] shape", config.agent.shape.len() as u64, 1, 8)?;
        let refuse = |setting, got: &str, rule| Err(ConfigError::Topic { setting, got: got.to_owned(), rule });
        let first = bus.inputs.split('/').next().unwrap_or_default();
        if !rumqttc::valid_filter(&bus.inputs) || first.is_empty() || first == "+" || first == "#" {
            return refuse("inputs", &bus.inputs, "a filter of MQTT whose first level is no wildcard is needed");
        }
        for (setting, prefix) in [("predictions", &bus.predictions), ("failed", &bus.failed)] {
            let own = prefix.split('/').next().unwrap_or_default();
            if own.is_empty() || own == first || prefix.contains(['+', '#']) {
                return refuse(
                    setting,
                    prefix,
                    "a topic without wildcards that begins with another level than inputs is needed",
                );
            }
        }
        Ok(config)
    }

    /// How many numbers one message holds.
    pub(crate) fn values(&self) -> u64 {
        self.agent.shape.iter().fold(1, |all, length| all.saturating_mul((*length).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_shows_every_default() {
        let text = include_str!("../bridge.example.toml");
        assert_eq!(Config::parse(text).unwrap(), Config::default());
        assert_eq!(text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count(), 16);
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (text, part) in [
            ("[bus]\nprot = 1", "prot"),
            ("[agent]\nmax-in-flight = 0", "max-in-flight is 0: 1 to 64"),
            ("[agent]\nshape = []", "shape is 0: 1 to 8"),
            ("[bus]\ninputs = \"#\"", "first level is no wildcard"),
            ("[bus]\ninputs = \"a/#/b\"", "filter of MQTT"),
            ("[bus]\npredictions = \"sensors/answers\"", "another level"),
            ("[bus]\nfailed = \"+\"", "without wildcards"),
            ("[bus]\nmax-input-bytes = 1", "64 to 16777216"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }
}
