//! How a command ends badly, and the exit code that tells a script how.
//!
//! The codes are a promise: 1 the thing asked for failed, 2 usage or bad local input, 3 the controller refused, or a scored table has drifted,
//! 4 the controller cannot be reached or failed itself, 5 scores show neither that a bundle is worse nor that it is not.

use std::error::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unmet,
    Input,
    Refused,
    Unavailable,
    Drifted,
    Undecided,
    Closed,
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The thing asked for was tried and failed: a check, a verification, a rollout.
    pub(crate) fn unmet(message: impl Into<String>) -> Self {
        Self::new(Kind::Unmet, message)
    }

    /// A flag, a file or a folder given is wrong.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }

    /// The controller understood and said no.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// A scored table has drifted: an answer, not a fault, but one that a script must hear.
    pub(crate) fn drifted(message: impl Into<String>) -> Self {
        Self::new(Kind::Drifted, message)
    }

    /// Scores show neither that a bundle is worse nor that it is not.
    pub(crate) fn undecided(message: impl Into<String>) -> Self {
        Self::new(Kind::Undecided, message)
    }

    /// The controller could not be reached, failed, or gave an answer that is none.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// Whoever reads our output has gone, as `head` does. Not worth a word.
    pub(crate) fn closed() -> Self {
        Self::new(Kind::Closed, "the reader of the output is gone")
    }

    /// Adds what lies behind it.
    pub(crate) fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Unmet => 1,
            Kind::Input => 2,
            Kind::Refused | Kind::Drifted => 3,
            Kind::Unavailable => 4,
            Kind::Undecided => 5,
            Kind::Closed => 0,
        }
    }

    /// The whole story: what went wrong, and what lies behind it.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// Whether nothing is to be printed.
    pub(crate) fn is_silent(&self) -> bool {
        self.kind == Kind::Closed
    }

    /// Whether trying again later may help.
    pub(crate) fn is_unavailable(&self) -> bool {
        self.kind == Kind::Unavailable
    }
}
