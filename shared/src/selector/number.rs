//! Numbers of selectors: whole ones, and those of several parts, as versions of kernels are.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A number of one part or several, as `4000000000`, `-5` or `6.1`. A part that is not there counts as 0.
#[derive(Debug, Clone)]
pub(super) struct Number {
    is_negative: bool,
    parts: Vec<u64>,
}

impl Number {
    /// The number that `text` begins with, as 6.1.0 of `6.1.0-13-arm64`.
    pub(super) fn leading(text: &str) -> Option<Self> {
        Self::read(text).map(|(number, _)| number)
    }

    /// The number that `text` begins with, and what follows it.
    fn read(text: &str) -> Option<(Self, &str)> {
        let (is_negative, mut rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let mut parts = Vec::new();
        loop {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (digits, after) = rest.split_at(end);
            parts.push(digits.parse().ok()?);
            rest = after;
            match after.strip_prefix('.').filter(|next| next.starts_with(|c: char| c.is_ascii_digit())) {
                Some(next) => rest = next,
                None => return Some((Self { is_negative, parts }, rest)),
            }
        }
    }

    /// The parts up to the last that is not 0.
    fn significant(&self) -> &[u64] {
        let end = self.parts.iter().rposition(|part| *part != 0).map_or(0, |last| last + 1);
        self.parts.get(..end).unwrap_or_default()
    }
}

impl FromStr for Number {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::read(text).filter(|(_, rest)| rest.is_empty()).map(|(number, _)| number).ok_or(())
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        let is_below_zero = |number: &Self| number.is_negative && !number.significant().is_empty();
        match (is_below_zero(self), is_below_zero(other)) {
            (false, false) => self.significant().cmp(other.significant()),
            (true, true) => other.significant().cmp(self.significant()),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Number {}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_negative {
            f.write_str("-")?;
        }
        for (index, part) in self.parts.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            part.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Number {
        text.parse().unwrap()
    }

    #[test]
    fn a_part_that_is_not_there_is_0_and_a_number_ends_where_it_does() {
        assert_eq!(number("5.10"), number("5.10.0"));
        assert_eq!(number("-0"), number("0.0"));
        assert!(number("-1.5") < number("-1") && number("-1") < number("0"));
        let leading = |text| Number::leading(text).map(|number| number.to_string());
        assert_eq!(leading("6.1.0-13-arm64").as_deref(), Some("6.1.0"));
        assert_eq!(leading("12.").as_deref(), Some("12"));
        for none in ["", "-", ".5", "v6", "--1", "99999999999999999999"] {
            assert_eq!(leading(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_are_ordered_as_ever(one: i64, other: i64) {
            prop_assert_eq!(number(&one.to_string()).cmp(&number(&other.to_string())), one.cmp(&other));
        }

        #[test]
        fn versions_are_ordered_as_versions_are(one: [u8; 3], other: [u8; 3]) {
            let text = |[major, minor, patch]: [u8; 3]| format!("{major}.{minor}.{patch}");
            let version = |parts| semver::Version::parse(&text(parts)).unwrap();
            prop_assert_eq!(number(&text(one)).cmp(&number(&text(other))), version(one).cmp(&version(other)));
        }
    }
}
