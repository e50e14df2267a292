//! One feature's rules, ready to be held against a value.

use muster_shared::data_schema::{DataSchema, FeatureRule, Handling, Imputed};
use muster_shared::sketch::Cause;

use super::FeatureState;
use super::state::text_hash;
use crate::pipeline::Lookup;

/// A value of a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Number(f64),
    Text(&'a [u8]),
}

pub(super) struct Rule {
    /// Its place in the schema.
    pub(super) feature: usize,
    /// The element of the row.
    pub(super) index: usize,
    min: f64,
    max: f64,
    categories: Option<Lookup>,
    may_be_infinite: bool,
    stuck_after: Option<u32>,
    is_time: bool,
    /// By cause.
    handling: [Handling; Cause::ALL.len()],
    pub(super) impute: Option<Imputed>,
}

impl Rule {
    /// The rules about `tensor`, by element.
    pub(super) fn all_of(schema: &DataSchema, tensor: &str) -> Vec<Self> {
        let mine = schema.features.iter().enumerate().filter(|(_, rule)| rule.tensor == tensor);
        let mut rules: Vec<Self> = mine.map(|(feature, rule)| Self::new(feature, rule)).collect();
        rules.sort_by_key(|rule| rule.index);
        rules
    }

    fn new(feature: usize, rule: &FeatureRule) -> Self {
        Self {
            feature,
            index: rule.index as usize,
            min: rule.min.unwrap_or(f64::NEG_INFINITY),
            max: rule.max.unwrap_or(f64::INFINITY),
            categories: rule.categories.as_ref().map(Lookup::new),
            may_be_infinite: rule.may_be_infinite,
            stuck_after: rule.stuck_after,
            is_time: rule.is_time,
            handling: Cause::ALL.map(|cause| rule.handling(cause)),
            impute: rule.impute.clone(),
        }
    }

    /// Whether it needs to know the value before.
    pub(super) fn remembers(&self) -> bool {
        self.stuck_after.is_some() || self.is_time
    }

    /// What is to be counted about `value`: the first of missing, infinite, out of range, unknown, stuck, out of order.
    #[inline]
    pub(super) fn look_at(&self, value: Value<'_>, remembered: Option<&mut FeatureState>) -> Option<Cause> {
        let alone = match value {
            // Any comparison with NaN is false, so a number within the range needs no further look.
            Value::Number(number) if number >= self.min && number <= self.max && number.is_finite() => {
                let known = self.categories.as_ref().is_none_or(|known| known.number(number).is_some());
                (!known).then_some(Cause::UnknownCategory)
            }
            Value::Number(number) if number.is_nan() => return Some(Cause::Missing),
            Value::Number(number) if number.is_infinite() => {
                return (!self.may_be_infinite).then_some(Cause::Infinite);
            }
            Value::Number(number) => Some(if number < self.min { Cause::BelowMin } else { Cause::AboveMax }),
            Value::Text([]) => return Some(Cause::Missing),
            Value::Text(text) => {
                let known = self.categories.as_ref().is_none_or(|known| known.text(text).is_some());
                (!known).then_some(Cause::UnknownCategory)
            }
        };
        match remembered {
            Some(remembered) if self.remembers() => {
                let over_time = self.compare(value, remembered);
                alone.or(over_time)
            }
            Some(_) | None => alone,
        }
    }

    /// Holds a value against the one before it and remembers it.
    fn compare(&self, value: Value<'_>, remembered: &mut FeatureState) -> Option<Cause> {
        let bits = match value {
            Value::Number(number) => number.to_bits(),
            Value::Text(text) => text_hash(text),
        };
        let times = remembered.see(bits);
        if self.stuck_after.is_some_and(|after| times > after) {
            return Some(Cause::Stuck);
        }
        match value {
            Value::Number(time) if self.is_time && remembered.is_before_last(time) => Some(Cause::OutOfOrder),
            Value::Number(_) | Value::Text(_) => None,
        }
    }

    /// What is done about a value with this cause.
    pub(super) fn handling(&self, cause: Cause) -> Handling {
        self.handling[cause as usize]
    }

    /// What a value is and what is expected instead, in words.
    pub(super) fn words(&self, cause: Cause, value: Value<'_>) -> String {
        let shown = match value {
            Value::Number(number) => number.to_string(),
            Value::Text(text) => format!("{:?}", String::from_utf8_lossy(text).chars().take(40).collect::<String>()),
        };
        match cause {
            Cause::Missing => "is missing, and must not be".into(),
            Cause::Infinite => "is infinite, and must not be".into(),
            Cause::BelowMin => format!("is {shown}, and {} is the least that is expected", self.min),
            Cause::AboveMax => format!("is {shown}, and {} is the most that is expected", self.max),
            Cause::UnknownCategory => format!("is {shown}, which is none of the expected categories"),
            Cause::Stuck => {
                format!("is {shown} more than {} times in a row: is it stuck?", self.stuck_after.unwrap_or_default())
            }
            Cause::OutOfOrder => format!("is the time {shown}, before the time of the row before it"),
        }
    }
}
