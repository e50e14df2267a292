//! What a message asks of the agent, and what becomes of the agent's verdict. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_example_client::verdict::{Prediction, Verdict};
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// A message's payload: numbers alone, or numbers with a name that the answer bears too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Payload {
    Bare(Vec<f32>),
    Named(Named),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    id: String,
    data: Vec<f32>,
}

/// What an input asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// The sensor's name for it.
    pub(crate) id: Option<String>,
    /// The request.
    pub(crate) body: Bytes,
}

/// What to do with an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Publish the answer; then the input is done with.
    Publish {
        /// Where.
        topic: String,
        /// The answer.
        payload: String,
    },
    /// Keep it, unacknowledged, and ask again later.
    RetryLater {
        /// Why there is no answer yet.
        reason: String,
    },
    /// Publish why there will be no answer; then the input is done with.
    Drop {
        /// Where.
        topic: String,
        /// The reason, as published.
        payload: String,
        /// The reason.
        reason: String,
    },
}

#[derive(Serialize)]
struct Published<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    model: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<usize>,
    outputs: BTreeMap<&'a str, &'a [f64]>,
}

/// Reads the input `payload`.
///
/// # Errors
/// Why it is none.
pub(crate) fn question(config: &Config, payload: &[u8]) -> Result<Question, String> {
    let (id, data) = match serde_json::from_slice(payload) {
        Ok(Payload::Bare(data)) => (None, data),
        Ok(Payload::Named(Named { id, data })) => (Some(id), data),
        Err(error) if error.is_data() => {
            return Err("neither a list of numbers nor {\"id\": ..., \"data\": [...]}".to_owned());
        }
        Err(error) => return Err(format!("no JSON: {error}")),
    };
    if data.len() as u64 != config.values() {
        return Err(format!("{} numbers where the model takes {}", data.len(), config.values()));
    }
    let agent = &config.agent;
    let mut request = serde_json::json!({
        "inputs": [{ "name": agent.input, "datatype": "FP32", "shape": agent.shape, "data": data }]
    });
    if let Some(id) = &id {
        request["id"] = id.as_str().into();
    }
    Ok(Question { id, body: request.to_string().into() })
}

/// What to do with the input of `topic`, which its sensor calls `id`, now that the agent was asked.
pub(crate) fn decide(config: &Config, topic: &str, id: Option<&str>, verdict: Verdict) -> Decision {
    match verdict {
        Verdict::Answered(prediction) => {
            Decision::Publish { topic: format!("{}/{topic}", config.bus.predictions), payload: answer(id, &prediction) }
        }
        Verdict::Later(reason) => Decision::RetryLater { reason },
        Verdict::Never(reason) => refuse(config, topic, id, reason),
    }
}

/// An input that will have no answer.
pub(crate) fn refuse(config: &Config, topic: &str, id: Option<&str>, reason: String) -> Decision {
    let payload = match id {
        Some(id) => serde_json::json!({ "id": id, "error": reason }),
        None => serde_json::json!({ "error": reason }),
    };
    Decision::Drop { topic: format!("{}/{topic}", config.bus.failed), payload: payload.to_string(), reason }
}

fn answer(id: Option<&str>, prediction: &Prediction) -> String {
    let published = Published {
        id,
        model: &prediction.model_name,
        version: &prediction.model_version,
        best: prediction.best().map(|(at, _)| at),
        outputs: prediction.outputs.iter().map(|output| (output.name.as_str(), output.data.as_slice())).collect(),
    };
    serde_json::json!(published).to_string()
}

#[cfg(test)]
mod tests {
    use muster_example_client::verdict::Output;

    use super::*;

    fn config() -> Config {
        let mut config = Config::default();
        config.agent.shape = vec![1, 2];
        config
    }

    #[test]
    fn inputs_are_numbers_with_or_without_a_name() {
        let bare = question(&config(), b"[0, 1.5]").unwrap();
        assert_eq!(bare.id, None);
        let request: serde_json::Value = serde_json::from_slice(&bare.body).unwrap();
        assert_eq!(request["inputs"][0]["data"], serde_json::json!([0.0, 1.5]));
        assert_eq!(request["inputs"][0]["shape"], serde_json::json!([1, 2]));
        let named = question(&config(), br#"{"id": "press-7", "data": [0, 1]}"#).unwrap();
        assert_eq!(named.id.as_deref(), Some("press-7"));
        assert!(String::from_utf8_lossy(&named.body).contains(r#""id":"press-7""#));
    }

    #[test]
    fn what_is_no_input_is_said() {
        for (payload, part) in [
            ("", "no JSON"),
            ("[1, 2", "no JSON"),
            ("{\"data\": [1, 2]}", "neither"),
            ("{\"id\": \"x\", \"data\": [1, 2], \"more\": 1}", "neither"),
            ("[1]", "1 numbers where the model takes 2"),
            ("[\"a\", 1]", "neither"),
            ("\u{0}", "no JSON"),
        ] {
            let reason = question(&config(), payload.as_bytes()).unwrap_err();
            assert!(reason.contains(part), "{part:?} is not in {reason}");
        }
    }

    #[test]
    fn answers_are_published_beside_their_inputs() {
        let prediction = Prediction {
            model_name: "digits".to_owned(),
            model_version: "1.1.0".to_owned(),
            outputs: vec![Output { name: "probabilities".to_owned(), data: vec![0.25, 0.75] }],
        };
        let decision = decide(&config(), "sensors/7/image", Some("x"), Verdict::Answered(prediction));
        let Decision::Publish { topic, payload } = decision else { panic!("{decision:?}") };
        assert_eq!(topic, "predictions/sensors/7/image");
        let payload: serde_json::Value = serde_json::from_str(&payload).unwrap();
        assert_eq!(
            payload,
            serde_json::json!({
                "id": "x", "model": "digits", "version": "1.1.0", "best": 1, "outputs": { "probabilities": [0.25, 0.75] }
            })
        );
    }

    #[test]
    fn what_passes_is_kept_and_what_does_not_is_dropped_with_its_reason() {
        let later = decide(&config(), "sensors/7/image", None, Verdict::Later("busy".to_owned()));
        assert_eq!(later, Decision::RetryLater { reason: "busy".to_owned() });
        let never = decide(&config(), "sensors/7/image", Some("x"), Verdict::Never("refused with 400: no".to_owned()));
        let Decision::Drop { topic, payload, reason } = never else { panic!("{never:?}") };
        assert_eq!((topic.as_str(), reason.as_str()), ("failed/sensors/7/image", "refused with 400: no"));
        assert_eq!(payload, r#"{"error":"refused with 400: no","id":"x"}"#);
    }
}
