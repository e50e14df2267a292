//! Categories to numbers, and numbers to labels.

use std::collections::BTreeMap;

use muster_shared::limits::MAX_EXACT;
use muster_shared::pipeline::{Categories, Unknown};

use super::value::{Numbers, Texts, Value, columns, room};

/// The categories of one column by their positions.
pub(crate) enum Lookup {
    Texts(BTreeMap<Box<[u8]>, usize>),
    Integers(BTreeMap<i64, usize>),
}

impl Lookup {
    pub(crate) fn new(categories: &Categories) -> Self {
        match categories {
            Categories::Texts(texts) => {
                Self::Texts(texts.iter().enumerate().map(|(at, text)| (text.as_bytes().into(), at)).collect())
            }
            Categories::Integers(integers) => {
                Self::Integers(integers.iter().enumerate().map(|(at, integer)| (*integer, at)).collect())
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Integers(integers) => integers.len(),
        }
    }

    pub(crate) fn text(&self, text: &[u8]) -> Option<usize> {
        match self {
            Self::Texts(texts) => texts.get(text).copied(),
            Self::Integers(_) => None,
        }
    }

    /// The position of a number that is a whole one and known.
    pub(crate) fn number(&self, number: f64) -> Option<usize> {
        match self {
            Self::Texts(_) => None,
            Self::Integers(integers) => whole(number).and_then(|number| integers.get(&number)).copied(),
        }
    }
}

/// `number` as an integer, if it is one that floating point holds exactly.
pub(super) fn whole(number: f64) -> Option<i64> {
    let exact = number.fract() == 0.0 && number.abs() <= MAX_EXACT as f64;
    #[expect(clippy::cast_possible_truncation, reason = "a whole number of at most 54 bits, checked just above")]
    exact.then_some(number as i64)
}

/// The start of something, for messages.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().take(40).collect()
}

/// Calls `found(row, column, position)` for every element; the position is `None` where the category is unknown.
fn look_up(
    lookups: &[Lookup],
    value: Value<'_>,
    mut found: impl FnMut(usize, usize, Option<usize>, &dyn Fn() -> String) -> Result<(), String>,
) -> Result<(), String> {
    let width = columns(value.shape());
    if width != lookups.len() || width == 0 {
        return Err(format!("{} columns are expected, but there are {width}", lookups.len()));
    }
    if value.is_text() {
        let texts = value.into_texts()?;
        for (at, text) in texts.data.iter().enumerate() {
            found(at / width, at % width, lookups[at % width].text(text), &|| format!("{:?}", shown(text)))?;
        }
    } else {
        let numbers = value.into_numbers()?;
        for (at, number) in numbers.data.iter().enumerate() {
            found(at / width, at % width, lookups[at % width].number(*number), &|| number.to_string())?;
        }
    }
    Ok(())
}

fn unknown_category(row: usize, column: usize, shown: &str) -> String {
    format!("row {}, column {}: {shown} is no known category", row + 1, column + 1)
}

fn rows(shape: &[usize]) -> usize {
    shape.first().copied().unwrap_or(1)
}

pub(super) fn one_hot(lookups: &[Lookup], unknown: Unknown, value: Value<'_>) -> Result<Numbers, String> {
    let others = usize::from(unknown == Unknown::Other);
    let mut starts = Vec::with_capacity(lookups.len());
    let mut width = 0;
    for lookup in lookups {
        starts.push(width);
        width += lookup.len() + others;
    }
    let rows = rows(value.shape());
    let mut data = vec![0.0; room(rows, width)?];
    look_up(lookups, value, |row, column, position, shown| {
        let position = match (position, unknown) {
            (Some(position), _) => position,
            (None, Unknown::Other) => lookups[column].len(),
            (None, Unknown::Ignore) => return Ok(()),
            (None, Unknown::Error) => return Err(unknown_category(row, column, &shown())),
        };
        data[row * width + starts[column] + position] = 1.0;
        Ok(())
    })?;
    Ok(Numbers { shape: vec![rows, width], data })
}

pub(super) fn ordinal(lookups: &[Lookup], unknown: Option<f64>, value: Value<'_>) -> Result<Numbers, String> {
    let rows = rows(value.shape());
    let mut data = Vec::with_capacity(room(rows, lookups.len())?);
    look_up(lookups, value, |row, column, position, shown| {
        let number = position.map(|position| position as f64).or(unknown);
        data.push(number.ok_or_else(|| unknown_category(row, column, &shown()))?);
        Ok(())
    })?;
    Ok(Numbers { shape: vec![rows, lookups.len()], data })
}

/// Puts `values`, one a column or one for all, where a text is empty.
pub(super) fn impute<'a>(values: &'a [String], mut texts: Texts<'a>) -> Texts<'a> {
    let width = columns(&texts.shape).max(1);
    for (at, text) in texts.data.iter_mut().enumerate().filter(|(_, text)| text.is_empty()) {
        if let Some(value) = values.get(if values.len() == 1 { 0 } else { at % width }) {
            *text = value.as_bytes();
        }
    }
    texts
}

pub(super) fn labels<'a>(labels: &'a [String], positions: &Numbers) -> Texts<'a> {
    let label = |position: &f64| {
        let position = whole(*position).and_then(|position| usize::try_from(position).ok());
        position.and_then(|position| labels.get(position)).map_or(&[][..], |label| label.as_bytes())
    };
    Texts { shape: positions.shape.clone(), data: positions.data.iter().map(label).collect() }
}
