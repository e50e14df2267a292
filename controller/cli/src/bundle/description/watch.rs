//! What the description says of how a bundle is watched on devices.

use muster_shared::limits::WIDE_ELEMENTS;
use muster_shared::profile::Objectives;
use serde::Deserialize;

/// Which inferences are flagged as unlike the reference.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct OutliersTable {
    /// Whether values outside the reference's range, unknown categories and missing values are.
    pub(crate) flag: bool,
    /// Whether rows far from the reference are, each value of which may be ordinary.
    pub(crate) distance: bool,
    /// The share of the reference that is not too far.
    pub(crate) quantile: f64,
}

impl Default for OutliersTable {
    fn default() -> Self {
        Self { flag: true, distance: false, quantile: 0.99 }
    }
}

/// What requests are expected to keep to.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct ObjectivesTable {
    /// Latencies, in milliseconds: requests that take longer are counted.
    latency_ms: Vec<f64>,
}

impl ObjectivesTable {
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.latency_ms.iter().any(|ms| !(0.001..=3_600_000.0).contains(ms)) {
            return Err("objectives.latency-ms: milliseconds from 0.001 to 3600000 are expected");
        }
        Ok(())
    }

    /// The same as devices have it.
    pub(crate) fn objectives(&self) -> Objectives {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "up to an hour, as was checked")]
        let us = |ms: &f64| (ms * 1_000.0).round() as u64;
        Objectives { latency_us: self.latency_ms.iter().map(us).collect() }
    }
}

/// Which columns of a tensor quantiles are kept of.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "true, false or a list of features is expected")]
pub(crate) enum Quantiles {
    /// All that are numbers, or none.
    All(bool),
    /// Those of these names.
    Of(Vec<String>),
}

impl Default for Quantiles {
    fn default() -> Self {
        Self::All(false)
    }
}

impl Quantiles {
    /// Whether they are asked of `column`.
    pub(crate) fn are_of(&self, column: &str) -> bool {
        match self {
            Self::All(all) => *all,
            Self::Of(names) => names.iter().any(|name| name == column),
        }
    }

    pub(super) fn names(&self) -> &[String] {
        match self {
            Self::All(_) => &[],
            Self::Of(names) => names,
        }
    }
}

/// How a tensor is monitored on devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Monitor {
    /// By its elements, or by probes where there are many.
    #[default]
    Automatic,
    /// Each element by itself.
    Elements,
    /// By figures over all elements, and random projections.
    Probes,
    /// Not at all.
    Nothing,
}

impl<'de> Deserialize<'de> for Monitor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Word;
        impl serde::de::Visitor<'_> for Word {
            type Value = Monitor;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"elements\", \"probes\", true or false")
            }

            fn visit_bool<E: serde::de::Error>(self, flag: bool) -> Result<Monitor, E> {
                Ok(if flag { Monitor::Automatic } else { Monitor::Nothing })
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Monitor, E> {
                match word {
                    "elements" => Ok(Monitor::Elements),
                    "probes" => Ok(Monitor::Probes),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(Word)
    }
}

impl Monitor {
    /// Whether a tensor with rows of `width` elements is watched by probes.
    pub(crate) fn by_probes(self, width: usize) -> bool {
        match self {
            Self::Automatic => width >= WIDE_ELEMENTS,
            Self::Probes => true,
            Self::Elements | Self::Nothing => false,
        }
    }
}
