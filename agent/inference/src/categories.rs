//! From an element's value to its place among named categories.
//!
//! A category is written as text: the text itself in a tensor of `BYTES`, otherwise a number ("3", "0.5"), of a `BOOL` "true" and "false".
//! [`OTHER_SLICE`] and [`MISSING_SLICE`] among the names stand for whatever has no name, and for no value.

use muster_shared::bundle::DataType;
use muster_shared::limits::MAX_EXACT;
use muster_shared::profile::{MISSING_SLICE, OTHER_SLICE};

/// The place of a value that has no name, where nothing stands for such.
const UNKNOWN: f64 = -1.0;

/// Named categories, made ready for one type of tensor.
#[derive(Debug, Clone)]
pub(crate) struct Categories {
    known: Known,
    /// The place of what has no name.
    other: f64,
    /// The place of no value; none where nothing stands for it.
    missing: Option<f64>,
}

/// Values and their places, ascending by value.
#[derive(Debug, Clone)]
enum Known {
    Numbers(Vec<(f64, f64)>),
    Texts(Vec<(Vec<u8>, f64)>),
}

/// The number that `text` stands for in a tensor of `datatype`.
fn number(text: &str, datatype: DataType) -> Option<f64> {
    match (datatype, text) {
        (DataType::Bool, "true") => Some(1.0),
        (DataType::Bool, "false") => Some(0.0),
        (DataType::Bool, _) => None,
        // Adding 0 makes one of the two zeros.
        _ => text.parse().ok().filter(|number: &f64| number.abs() <= MAX_EXACT as f64).map(|number| number + 0.0),
    }
}

impl Categories {
    /// Makes `names` ready for elements of `datatype`.
    ///
    /// # Errors
    /// In words, when a name is no value of that type, or two are the same one.
    pub(crate) fn new(names: &[String], datatype: DataType) -> Result<Self, String> {
        let place = |name: &str| names.iter().position(|known| known == name).map(|at| at as f64);
        let values = names.iter().enumerate().filter(|(_, name)| *name != OTHER_SLICE && *name != MISSING_SLICE);
        let known = if datatype == DataType::Bytes {
            let mut texts: Vec<_> = values.map(|(at, name)| (name.clone().into_bytes(), at as f64)).collect();
            texts.sort_by(|one, other| one.0.cmp(&other.0));
            Known::Texts(texts)
        } else {
            let parsed = |(at, name): (usize, &String)| {
                let number = number(name, datatype).ok_or_else(|| format!("{name:?} is no value of {datatype}"))?;
                Ok((number, at as f64))
            };
            let mut numbers = values.map(parsed).collect::<Result<Vec<_>, String>>()?;
            numbers.sort_by(|one, other| one.0.total_cmp(&other.0));
            if let Some(pair) = numbers.windows(2).find(|pair| pair[0].0.total_cmp(&pair[1].0).is_eq()) {
                return Err(format!("{} is named twice", pair[0].0));
            }
            Known::Numbers(numbers)
        };
        Ok(Self { known, other: place(OTHER_SLICE).unwrap_or(UNKNOWN), missing: place(MISSING_SLICE) })
    }

    /// The place of a number; NaN is no value.
    pub(crate) fn of_number(&self, value: Option<f64>) -> Option<f64> {
        let Some(value) = value.filter(|value| !value.is_nan()) else { return self.missing };
        let Known::Numbers(numbers) = &self.known else { return Some(self.other) };
        let at = numbers.binary_search_by(|(known, _)| known.total_cmp(&(value + 0.0)));
        Some(at.map_or(self.other, |at| numbers[at].1))
    }

    /// The place of a text; an empty one is no value.
    pub(crate) fn of_text(&self, text: &[u8]) -> Option<f64> {
        if text.is_empty() {
            return self.missing;
        }
        let Known::Texts(texts) = &self.known else { return Some(self.other) };
        let at = texts.binary_search_by(|(known, _)| known.as_slice().cmp(text));
        Some(at.map_or(self.other, |at| texts[at].1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn numbers_find_their_place() {
        let categories = Categories::new(&names(&["7", "-1.5", "0"]), DataType::Fp32).unwrap();
        for (value, expected) in
            [(7.0, 0.0), (-1.5, 1.0), (0.0, 2.0), (-0.0, 2.0), (7.5, UNKNOWN), (f64::INFINITY, UNKNOWN)]
        {
            assert_eq!(categories.of_number(Some(value)), Some(expected), "{value}");
        }
        assert_eq!((categories.of_number(Some(f64::NAN)), categories.of_number(None)), (None, None));
        let named = Categories::new(&names(&["(missing)", "true", "(other)"]), DataType::Bool).unwrap();
        let found = [Some(1.0), Some(0.0), None].map(|value| named.of_number(value));
        assert_eq!(found, [Some(1.0), Some(2.0), Some(0.0)]);
    }

    #[test]
    fn texts_find_their_place() {
        let categories = Categories::new(&names(&["north", "east", "(other)"]), DataType::Bytes).unwrap();
        let found = ["east", "north", "nort", "north ", ""].map(|text| categories.of_text(text.as_bytes()));
        assert_eq!(found, [Some(1.0), Some(0.0), Some(2.0), Some(2.0), None]);
    }

    #[test]
    fn names_that_are_no_values_are_refused() {
        let refused = |text: &[&str], datatype| Categories::new(&names(text), datatype).unwrap_err();
        assert_eq!(refused(&["north"], DataType::Int64), "\"north\" is no value of INT64");
        assert_eq!(refused(&["1", "1.0"], DataType::Int64), "1 is named twice");
        assert!(refused(&["1"], DataType::Bool).contains("no value of BOOL"));
        assert!(refused(&["1e300"], DataType::Fp64).contains("no value of FP64"));
    }
}
