//! Conditions on an answer, as `result[0] >= 0.95 && len(result) == 1`.
//!
//! The part of the language of Argo Rollouts' conditions that talks of one answer: numbers, texts and lists, `== != < <= > >=`, `&& || !`
//! (also `and or not`), `in`, `+ - * / %`, fields and places, and a few functions. It is ours so that it is bounded by the way it is built: there
//! are no loops and no names but `result`, texts and depth are limited, and every step is counted.

mod evaluate;
mod parse;
mod value;

pub use value::Value;

use crate::limits::MAX_TEXT_BYTES;

/// How deep a condition may be nested.
const MAX_DEPTH: usize = 24;

/// Why a condition is none, or has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// It does not parse.
    #[error("at character {at} of {text:?}: {why}")]
    Syntax {
        /// The condition, shortened.
        text: String,
        /// Where, counted from 1.
        at: usize,
        /// What is expected.
        why: String,
    },
    /// It cannot be told of this answer.
    #[error("{0}")]
    Evaluation(String),
}

/// A condition, ready to be held against answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition(Node);

/// A part of a condition.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Literal(Value),
    /// `result`.
    Answer,
    /// `#`: the item that `all` and `any` look at.
    Item,
    List(Vec<Node>),
    Not(Box<Node>),
    Minus(Box<Node>),
    Both(Box<Node>, Box<Node>),
    Either(Box<Node>, Box<Node>),
    Pair(Operator, Box<Node>, Box<Node>),
    /// A field by name, or a place by number.
    Part(Box<Node>, Box<Node>),
    Call(Function, Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Differs,
    Less,
    AtMost,
    Greater,
    AtLeast,
    In,
    Plus,
    Minus,
    Times,
    Over,
    Rest,
}

impl Operator {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::Differs => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
            Self::In => "in",
            Self::Plus => "+",
            Self::Minus => "-",
            Self::Times => "*",
            Self::Over => "/",
            Self::Rest => "%",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Len,
    IsNan,
    IsInf,
    IsNil,
    AsFloat,
    AsInt,
    Default,
    Abs,
    All,
    Any,
}

impl Function {
    /// Each with its name and how many arguments it takes.
    const ALL: [(&'static str, Self, usize); 10] = [
        ("len", Self::Len, 1),
        ("isNaN", Self::IsNan, 1),
        ("isInf", Self::IsInf, 1),
        ("isNil", Self::IsNil, 1),
        ("asFloat", Self::AsFloat, 1),
        ("asInt", Self::AsInt, 1),
        ("default", Self::Default, 2),
        ("abs", Self::Abs, 1),
        ("all", Self::All, 2),
        ("any", Self::Any, 2),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, function, _)| *function == self).map_or("", |(name, ..)| name)
    }
}

impl Condition {
    /// Reads a condition.
    ///
    /// # Errors
    /// [`ExpressionError::Syntax`] with where it goes wrong.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        if text.len() > MAX_TEXT_BYTES {
            let why = format!("a condition has at most {MAX_TEXT_BYTES} bytes");
            return Err(ExpressionError::Syntax { text: text.chars().take(80).collect(), at: 1, why });
        }
        parse::parse(text).map(Self)
    }

    /// Whether it holds for `answer`.
    ///
    /// # Errors
    /// [`ExpressionError::Evaluation`] where that cannot be told: a place that is not there, kinds that cannot be compared, or what comes out is
    /// neither true nor false.
    pub fn holds(&self, answer: &Value) -> Result<bool, ExpressionError> {
        evaluate::holds(&self.0, answer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(numbers: &[f64]) -> Value {
        Value::List(numbers.iter().copied().map(Value::Number).collect())
    }

    fn holds(condition: &str, answer: &Value) -> Result<bool, String> {
        Condition::parse(condition).and_then(|condition| condition.holds(answer)).map_err(|error| error.to_string())
    }

    #[test]
    fn conditions_of_argo_mean_here_what_they_mean_there() {
        let answer = numbers(&[0.97, 0.4]);
        for (condition, expected) in [
            ("result[0] >= 0.95", true),
            ("result[0] < 0.95", false),
            ("len(result) == 2 && result[1] == 0.4", true),
            ("len(result) == 0 || result[0] > 1", false),
            ("not (result[1] > 0.5) and true", true),
            ("!(result[1] > 0.5)", true),
            ("all(result, # > 0.3)", true),
            ("all(result, {# > 0.5})", false),
            ("any(result, # > 0.5)", true),
            ("result[-1] == 0.4", true),
            ("1 + 2 * 3 == 7 && 7 % 4 == 3 && 2 - 1 - 1 == 0", true),
            ("0.4 in result", true),
            ("isNaN(result[0]) || isInf(result[0])", false),
            ("default(nil, 3) == 3 && abs(-2) == 2", true),
        ] {
            assert_eq!(holds(condition, &answer), Ok(expected), "{condition}");
        }
        let fields: Value = serde_json::from_str::<serde_json::Value>(
            r#"{"status": "ok", "data": {"share": "0.5", "n": 12, "none": null}, "a-b": 1}"#,
        )
        .unwrap()
        .into();
        for (condition, expected) in [
            ("result.status == 'ok'", true),
            ("result[\"status\"] in ['fine', 'ok']", true),
            ("asFloat(result.data.share) <= 0.5", true),
            ("asInt(result.data.n) / 5 > 2.3", true),
            ("result.data.none == nil && isNil(result.missing)", true),
            ("result['a-b'] != 2", true),
            ("'data' in result", true),
            ("default(result.data.none, 0) == 0", true),
            ("len(result.status) == 2", true),
        ] {
            assert_eq!(holds(condition, &fields), Ok(expected), "{condition}");
        }
    }

    #[test]
    fn nan_meets_no_condition_but_the_one_that_asks_for_it() {
        let nan = numbers(&[f64::NAN]);
        assert_eq!(holds("result[0] >= 0.95", &nan), Ok(false));
        assert_eq!(holds("result[0] < 0.95", &nan), Ok(false));
        assert_eq!(holds("isNaN(result[0])", &nan), Ok(true));
    }

    #[test]
    fn what_cannot_be_told_is_an_error_and_says_why() {
        let answer = numbers(&[1.0]);
        for (condition, part) in [
            ("result[1] > 0", "there is no place 1"),
            ("result > 0", "a list > a number"),
            ("result[0]", "neither true nor false"),
            ("result.field == 1", "field of a list"),
            ("result[0] && true", "true or false"),
            ("asFloat('x') > 1", "a text is no number"),
            ("result[0] + 'x' == 1", "a number + a text"),
            ("nil < 1", "nothing < a number"),
        ] {
            let error = holds(condition, &answer).unwrap_err();
            assert!(error.contains(part), "{condition}: {error}");
        }
    }

    #[test]
    fn no_condition_takes_long() {
        let long = numbers(&[0.5; 5_000]);
        let error = holds("all(result, any(result, # > 1) || true)", &long).unwrap_err();
        assert!(error.contains("steps"), "{error}");
        let texts = Value::List(vec![Value::Text("x".repeat(200_000)); 50]);
        let error = holds("all(result, # in result)", &texts).unwrap_err();
        assert!(error.contains("steps"), "{error}");
        assert_eq!(holds("all(result, # > 0.1)", &long), Ok(true));
    }

    #[test]
    fn what_is_no_condition_is_refused_where_it_goes_wrong() {
        let deep = format!("{}1{} == 1", "(".repeat(40), ")".repeat(40));
        for (condition, part) in [
            ("", "at character 1"),
            ("result >", "at character 9"),
            ("result[0", "]"),
            ("results > 1", "result"),
            ("result == 'x", "end of the text"),
            ("result > 1 2", "at character 12"),
            ("exec('x')", "isNaN"),
            ("len(result, 1) == 1", "len takes 1"),
            ("result = 1", "=="),
            ("# > 1", "all"),
            (deep.as_str(), "nested"),
        ] {
            let error = Condition::parse(condition).unwrap_err().to_string();
            assert!(error.contains(part), "{condition}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_condition_or_refused_and_ends(
            text in ".{0,60}|([a-z#(){}\\[\\]<>=!&|.,0-9'+*/%-]| |result|len|all|any){0,30}",
        ) {
            if let Ok(condition) = Condition::parse(&text) {
                let _ = condition.holds(&numbers(&[0.5; 30]));
            }
        }
    }
}
