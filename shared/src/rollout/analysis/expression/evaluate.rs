//! Holds conditions against answers. Every part looked at and every text compared is counted, so that none takes long.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::{ExpressionError, Function, Node, Operator, Value};

/// Parts looked at, and pieces of texts compared, for one answer.
const MAX_STEPS: usize = 100_000;
/// Bytes of a text that count as one step.
const PIECE_BYTES: usize = 64;

struct Run<'a> {
    answer: &'a Value,
    /// The items that `all` and `any` look at, the innermost last.
    items: Vec<Cow<'a, Value>>,
    steps: usize,
}

type Evaluated<'a> = Result<Cow<'a, Value>, ExpressionError>;

fn fault<T>(why: impl Into<String>) -> Result<T, ExpressionError> {
    Err(ExpressionError::Evaluation(why.into()))
}

fn owned<'a>(value: Value) -> Evaluated<'a> {
    Ok(Cow::Owned(value))
}

/// Whether the condition holds.
pub(super) fn holds(node: &Node, answer: &Value) -> Result<bool, ExpressionError> {
    let mut run = Run { answer, items: Vec::new(), steps: 0 };
    let given = run.value(node)?;
    let Value::Flag(holds) = given.as_ref() else {
        return fault(format!("the condition gives {}, which is neither true nor false", given.kind()));
    };
    Ok(*holds)
}

impl<'a> Run<'a> {
    fn value(&mut self, node: &'a Node) -> Evaluated<'a> {
        self.step()?;
        match node {
            Node::Literal(value) => Ok(Cow::Borrowed(value)),
            Node::Answer => Ok(Cow::Borrowed(self.answer)),
            Node::Item => Ok(self.items.last().cloned().unwrap_or(Cow::Owned(Value::Null))),
            Node::List(items) => {
                let mut list = Vec::new();
                for item in items {
                    let item = self.value(item)?;
                    self.weigh(&item)?;
                    list.push(item.into_owned());
                }
                owned(Value::List(list))
            }
            Node::Not(inside) => owned(Value::Flag(!self.flag(inside)?)),
            Node::Minus(inside) => owned(Value::Number(-self.number(inside)?)),
            Node::Both(left, right) => owned(Value::Flag(self.flag(left)? && self.flag(right)?)),
            Node::Either(left, right) => owned(Value::Flag(self.flag(left)? || self.flag(right)?)),
            Node::Pair(operator, left, right) => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                self.weigh(&left)?;
                self.weigh(&right)?;
                pair(*operator, &left, &right).map(Cow::Owned)
            }
            Node::Part(of, place) => {
                let (whole, place) = (self.value(of)?, self.value(place)?);
                match whole {
                    Cow::Borrowed(whole) => part(whole, &place).map(Cow::Borrowed),
                    Cow::Owned(whole) => {
                        let found = part(&whole, &place)?;
                        self.weigh(found)?;
                        owned(found.clone())
                    }
                }
            }
            Node::Call(function, arguments) => self.call(*function, arguments),
        }
    }

    fn step(&mut self) -> Result<(), ExpressionError> {
        self.steps += 1;
        if self.steps > MAX_STEPS { fault(format!("it takes more than {MAX_STEPS} steps")) } else { Ok(()) }
    }

    /// Counts what it takes to read the whole of `value`.
    fn weigh(&mut self, value: &Value) -> Result<(), ExpressionError> {
        self.step()?;
        match value {
            Value::Null | Value::Flag(_) | Value::Number(_) => Ok(()),
            Value::Text(text) => {
                self.steps = self.steps.saturating_add(text.len() / PIECE_BYTES);
                self.step()
            }
            Value::List(items) => items.iter().try_for_each(|item| self.weigh(item)),
            Value::Map(fields) => fields.values().try_for_each(|value| self.weigh(value)),
        }
    }

    fn flag(&mut self, node: &'a Node) -> Result<bool, ExpressionError> {
        let value = self.value(node)?;
        let Value::Flag(flag) = value.as_ref() else {
            return fault(format!("true or false is expected, and here is {}", value.kind()));
        };
        Ok(*flag)
    }

    fn number(&mut self, node: &'a Node) -> Result<f64, ExpressionError> {
        let value = self.value(node)?;
        let Value::Number(number) = value.as_ref() else {
            return fault(format!("a number is expected, and here is {}", value.kind()));
        };
        Ok(*number)
    }

    fn call(&mut self, function: Function, arguments: &'a [Node]) -> Evaluated<'a> {
        let Some(first) = arguments.first() else { return fault("an argument is missing") };
        match function {
            Function::Len => {
                let value = self.value(first)?;
                let length = match value.as_ref() {
                    Value::Text(text) => {
                        self.weigh(&value)?;
                        text.chars().count()
                    }
                    Value::List(items) => items.len(),
                    Value::Map(fields) => fields.len(),
                    Value::Null | Value::Flag(_) | Value::Number(_) => {
                        return fault(format!("{} has no length", value.kind()));
                    }
                };
                owned(Value::Number(length as f64))
            }
            Function::IsNan => owned(Value::Flag(self.number(first)?.is_nan())),
            Function::IsInf => owned(Value::Flag(self.number(first)?.is_infinite())),
            Function::IsNil => owned(Value::Flag(*self.value(first)? == Value::Null)),
            Function::Abs => owned(Value::Number(self.number(first)?.abs())),
            Function::AsFloat | Function::AsInt => {
                let value = self.value(first)?;
                self.weigh(&value)?;
                let number = match value.as_ref() {
                    Value::Number(number) => Some(*number),
                    Value::Text(text) => text.trim().parse::<f64>().ok(),
                    Value::Null | Value::Flag(_) | Value::List(_) | Value::Map(_) => None,
                };
                match number {
                    Some(number) if function == Function::AsInt => owned(Value::Number(number.trunc())),
                    Some(number) => owned(Value::Number(number)),
                    None => fault(format!("{}: {} is no number", function.name(), value.kind())),
                }
            }
            Function::Default => match (self.value(first)?, arguments.get(1)) {
                (value, Some(other)) if *value == Value::Null => self.value(other),
                (value, _) => Ok(value),
            },
            Function::All | Function::Any => {
                let items: Vec<Cow<'a, Value>> = match self.value(first)? {
                    Cow::Borrowed(Value::List(items)) => items.iter().map(Cow::Borrowed).collect(),
                    Cow::Owned(Value::List(items)) => items.into_iter().map(Cow::Owned).collect(),
                    Cow::Borrowed(_) | Cow::Owned(_) => {
                        return fault(format!("{} looks at the items of a list", function.name()));
                    }
                };
                self.each(function == Function::Any, items, arguments.get(1))
            }
        }
    }

    /// Whether a predicate is `until` of any item; else it is the other of all.
    fn each(&mut self, until: bool, items: Vec<Cow<'a, Value>>, predicate: Option<&'a Node>) -> Evaluated<'a> {
        let Some(predicate) = predicate else { return fault("what is asked of each item is missing") };
        for item in items {
            self.items.push(item);
            let holds = self.flag(predicate);
            self.items.pop();
            if holds? == until {
                return owned(Value::Flag(until));
            }
        }
        owned(Value::Flag(!until))
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it was found to be a whole place in the list"
)]
fn place_in(length: usize, number: f64) -> Option<usize> {
    // From the end where it is below zero.
    let place = if number < 0.0 { length as f64 + number } else { number };
    (place.fract() == 0.0 && place >= 0.0 && place < length as f64).then_some(place as usize)
}

fn part<'v>(whole: &'v Value, place: &Value) -> Result<&'v Value, ExpressionError> {
    match (whole, place) {
        (Value::Map(fields), Value::Text(name)) => Ok(fields.get(name).unwrap_or(&Value::Null)),
        (Value::List(items), Value::Number(number)) => {
            let found = place_in(items.len(), *number).and_then(|at| items.get(at));
            found.map_or_else(|| fault(format!("there is no place {number} in a list of {}", items.len())), Ok)
        }
        (whole, Value::Text(name)) => fault(format!("there is no field of {}: {name}", whole.kind())),
        (whole, place) => fault(format!("{} has no place that is {}", whole.kind(), place.kind())),
    }
}

fn pair(operator: Operator, left: &Value, right: &Value) -> Result<Value, ExpressionError> {
    let mismatch = || fault(format!("{} {} {} cannot be told", left.kind(), operator.as_str(), right.kind()));
    let ordered = |holds: fn(Ordering) -> bool| match (left, right) {
        // NaN is neither less nor greater nor equal.
        (Value::Number(left), Value::Number(right)) => Ok(Value::Flag(left.partial_cmp(right).is_some_and(holds))),
        (Value::Text(left), Value::Text(right)) => Ok(Value::Flag(holds(left.cmp(right)))),
        (..) => mismatch(),
    };
    let computed = |compute: fn(f64, f64) -> f64| match (left, right) {
        (Value::Number(left), Value::Number(right)) => Ok(Value::Number(compute(*left, *right))),
        (..) => mismatch(),
    };
    match operator {
        Operator::Equal => Ok(Value::Flag(left == right)),
        Operator::Differs => Ok(Value::Flag(left != right)),
        Operator::Less => ordered(Ordering::is_lt),
        Operator::AtMost => ordered(Ordering::is_le),
        Operator::Greater => ordered(Ordering::is_gt),
        Operator::AtLeast => ordered(Ordering::is_ge),
        Operator::In => match (left, right) {
            (value, Value::List(items)) => Ok(Value::Flag(items.contains(value))),
            (Value::Text(name), Value::Map(fields)) => Ok(Value::Flag(fields.contains_key(name))),
            (..) => mismatch(),
        },
        Operator::Plus => computed(|left, right| left + right),
        Operator::Minus => computed(|left, right| left - right),
        Operator::Times => computed(|left, right| left * right),
        Operator::Over => computed(|left, right| left / right),
        Operator::Rest => computed(|left, right| left % right),
    }
}
