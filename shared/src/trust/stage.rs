//! In which part a device runs what it is assigned: as the model that answers, or beside it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::Digest;
use crate::limits::MAX_LABEL_BYTES;

/// The whole, in basis points.
const WHOLE_BP: u16 = 10_000;

/// In which part a device runs the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "as", rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Stage {
    /// It answers requests: on trial first, then for good.
    #[default]
    Serve,
    /// The incumbent answers; this bundle runs on the same inputs afterwards, and nobody waits for it.
    Shadow {
        /// Share of the requests it runs on, in basis points, from 1 to 10 000.
        share_bp: u16,
    },
    /// It answers some requests and the incumbent the others (an A/B test).
    Split {
        /// Share of the requests it answers, in basis points, from 1 to 9 999.
        share_bp: u16,
        /// What the test is called. Another name deals the keys out anew.
        experiment: String,
    },
}

/// Why a stage is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// A share of nothing, or of more than there is.
    #[error("a share of {share_bp} basis points: from 1 to {most} are allowed")]
    Share {
        /// What was asked for.
        share_bp: u16,
        /// The most there may be.
        most: u16,
    },
    /// A name that is none.
    #[error("the name of an experiment has 1 to {MAX_LABEL_BYTES} bytes, without control characters")]
    Experiment,
}

impl Stage {
    /// Whether the bundle answers requests as the only one. It is left out of documents then, so that agents that know of nothing else
    /// read them.
    #[must_use]
    pub fn is_serve(&self) -> bool {
        *self == Self::Serve
    }

    /// Checks what the types alone do not express.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn validate(&self) -> Result<(), StageError> {
        let within = |share_bp: u16, most: u16| {
            if (1..=most).contains(&share_bp) { Ok(()) } else { Err(StageError::Share { share_bp, most }) }
        };
        match self {
            Self::Serve => Ok(()),
            Self::Shadow { share_bp } => within(*share_bp, WHOLE_BP),
            Self::Split { share_bp, experiment } => {
                within(*share_bp, WHOLE_BP - 1)?;
                let named =
                    (1..=MAX_LABEL_BYTES).contains(&experiment.len()) && !experiment.chars().any(char::is_control);
                if named { Ok(()) } else { Err(StageError::Experiment) }
            }
        }
    }

    /// Whether the request known by `key` is one of the share that falls to the bundle `manifest`.
    ///
    /// The first eight bytes of SHA-256 over a salt, a zero byte and the key, taken modulo 10 000: the same on every device and after
    /// every restart. The salt of a shadow is the manifest, that of a split the experiment's name; so whoever falls to a share falls to
    /// every larger one, too.
    #[must_use]
    pub fn falls_to(&self, manifest: &Digest, key: &str) -> bool {
        let (share_bp, salt) = match self {
            Self::Serve => return false,
            Self::Shadow { share_bp } => (*share_bp, &manifest.as_bytes()[..]),
            Self::Split { share_bp, experiment } => (*share_bp, experiment.as_bytes()),
        };
        if share_bp >= WHOLE_BP {
            return true;
        }
        let digest = Digest::of(&[salt, &[0], key.as_bytes()].concat());
        let first = digest.as_bytes().iter().take(8).fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
        first % u64::from(WHOLE_BP) < u64::from(share_bp)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share_bp: &u16| f64::from(*share_bp) / 100.0;
        match self {
            Self::Serve => f.write_str("serve"),
            Self::Shadow { share_bp } => write!(f, "shadow of {} %", percent(share_bp)),
            Self::Split { share_bp, experiment } => write!(f, "split of {} % ({experiment})", percent(share_bp)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(share_bp: u16, experiment: &str) -> Stage {
        Stage::Split { share_bp, experiment: experiment.to_owned() }
    }

    #[test]
    fn shares_of_nothing_or_more_than_all_are_refused() {
        for (stage, valid) in [
            (Stage::Serve, true),
            (Stage::Shadow { share_bp: 1 }, true),
            (Stage::Shadow { share_bp: 10_000 }, true),
            (Stage::Shadow { share_bp: 0 }, false),
            (Stage::Shadow { share_bp: 10_001 }, false),
            (split(9_999, "x"), true),
            (split(10_000, "x"), false),
            (split(5_000, ""), false),
            (split(5_000, "a\nb"), false),
            (split(5_000, &"x".repeat(129)), false),
        ] {
            assert_eq!(stage.validate().is_ok(), valid, "{stage}");
        }
    }

    #[test]
    fn the_written_form_is_fixed_and_strict() {
        let written = |stage: &Stage| serde_json::to_string(stage).unwrap();
        assert_eq!(written(&Stage::Shadow { share_bp: 2_000 }), r#"{"as":"shadow","share_bp":2000}"#);
        assert_eq!(written(&split(500, "warm")), r#"{"as":"split","share_bp":500,"experiment":"warm"}"#);
        for stage in [Stage::Serve, Stage::Shadow { share_bp: 7 }, split(1, "a")] {
            assert_eq!(serde_json::from_str::<Stage>(&written(&stage)).unwrap(), stage);
        }
        assert!(serde_json::from_str::<Stage>(r#"{"as":"shadow","share_bp":7,"more":1}"#).is_err());
        assert!(serde_json::from_str::<Stage>(r#"{"as":"mirror","share_bp":7}"#).is_err());
    }

    #[test]
    fn a_key_falls_where_an_independent_computation_says() {
        // Python: int.from_bytes(hashlib.sha256(b"warm\0press-7").digest()[:8], "big") % 10000
        let manifest = Digest::of(b"m");
        for (key, number) in [("press-7", 8_746), ("press-8", 6_760)] {
            assert!(!split(number, "warm").falls_to(&manifest, key));
            assert!(split(number + 1, "warm").falls_to(&manifest, key));
        }
        assert!(Stage::Shadow { share_bp: 10_000 }.falls_to(&manifest, ""));
        assert!(!Stage::Serve.falls_to(&manifest, "x"));
    }

    #[test]
    fn about_the_share_asked_for_falls_to_it() {
        let manifest = Digest::of(b"m");
        for share_bp in [100u16, 2_000, 5_000] {
            let n = 20_000u32;
            for stage in [Stage::Shadow { share_bp }, split(share_bp, "e")] {
                let fell = (0..n).filter(|key| stage.falls_to(&manifest, &key.to_string())).count() as f64;
                let p = f64::from(share_bp) / 10_000.0;
                let deviation = (f64::from(n) * p * (1.0 - p)).sqrt();
                assert!((fell - f64::from(n) * p).abs() < 5.0 * deviation, "{stage}: {fell}");
            }
        }
    }

    proptest! {
        #[test]
        fn who_falls_to_a_share_falls_to_every_larger_one(key in ".{0,20}", one in 1u16..10_000, other in 1u16..10_000) {
            let (less, more) = (one.min(other), one.max(other));
            let manifest = Digest::of(b"m");
            prop_assert!(!split(less, "e").falls_to(&manifest, &key) || split(more, "e").falls_to(&manifest, &key));
            let shadow = |share_bp| Stage::Shadow { share_bp };
            prop_assert!(!shadow(less).falls_to(&manifest, &key) || shadow(more).falls_to(&manifest, &key));
        }
    }
}
