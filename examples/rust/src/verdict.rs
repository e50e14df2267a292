//! What an outcome means: a prediction, something that will pass, or something that will not. Pure.

use serde::Deserialize;

use crate::ask::{Said, Silence};

/// A prediction, and who made it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Prediction {
    /// The model.
    pub model_name: String,
    /// Its version: it changes when the fleet's operator rolls out another.
    pub model_version: String,
    /// Its outputs.
    pub outputs: Vec<Output>,
}

/// One output tensor.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its numbers, row by row.
    pub data: Vec<f64>,
}

impl Prediction {
    /// The place of the largest number of the first output, and that number: for a classifier the class and its probability.
    #[must_use]
    pub fn best(&self) -> Option<(usize, f64)> {
        let scores = &self.outputs.first()?.data;
        scores.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// What to do with an outcome.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Here it is.
    Answered(Prediction),
    /// Ask again later: no agent yet, no model yet, or more requests than may wait.
    Later(String),
    /// To ask again would change nothing.
    Never(String),
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// What `outcome` means. A model that failed (500) is not asked again: it would mostly fail on the same input again.
#[must_use]
pub fn verdict(outcome: &Result<Said, Silence>) -> Verdict {
    let said = match outcome {
        Ok(said) => said,
        Err(Silence::Request(error)) => return Verdict::Never(error.to_string()),
        Err(silence) => return Verdict::Later(silence.to_string()),
    };
    if said.status == 200 {
        return match serde_json::from_slice(&said.body) {
            Ok(prediction) => Verdict::Answered(prediction),
            Err(error) => Verdict::Never(format!("the agent's answer is no prediction: {error}")),
        };
    }
    let reason = serde_json::from_slice(&said.body).map_or_else(|_| "no reason given".to_owned(), |r: Refusal| r.error);
    match said.status {
        408 | 429 | 503 => Verdict::Later(reason),
        status => Verdict::Never(format!("refused with {status}: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn said(status: u16, body: &str) -> Result<Said, Silence> {
        Ok(Said { status, body: body.to_owned().into() })
    }

    #[test]
    fn an_answer_names_its_class_and_its_version() {
        let body = r#"{"model_name":"digits","model_version":"1.1.0","id":"x","outputs":[
            {"name":"probabilities","datatype":"FP32","shape":[1,3],"data":[0.1,0.7,0.2]}]}"#;
        let Verdict::Answered(prediction) = verdict(&said(200, body)) else { panic!("no answer") };
        assert_eq!(prediction.best(), Some((1, 0.7)));
        assert_eq!(prediction.model_version, "1.1.0");
    }

    #[test]
    fn what_passes_is_asked_again_and_what_does_not_is_not() {
        for status in [408, 429, 503] {
            assert_eq!(verdict(&said(status, r#"{"error":"busy"}"#)), Verdict::Later("busy".to_owned()));
        }
        for status in [400, 404, 413, 500] {
            assert_eq!(
                verdict(&said(status, r#"{"error":"no"}"#)),
                Verdict::Never(format!("refused with {status}: no"))
            );
        }
        assert!(matches!(verdict(&Err(Silence::TimedOut(Duration::from_secs(1)))), Verdict::Later(_)));
        let missing = Silence::Unreachable { socket: "/x".into(), source: std::io::ErrorKind::NotFound.into() };
        assert!(matches!(verdict(&Err(missing)), Verdict::Later(_)));
    }

    #[test]
    fn no_bytes_are_taken_for_an_answer() {
        for body in ["", "{}", "[", r#"{"model_name":"digits"}"#] {
            assert!(matches!(verdict(&said(200, body)), Verdict::Never(_)), "{body}");
            assert!(matches!(verdict(&said(503, body)), Verdict::Later(_)), "{body}");
        }
    }
}
