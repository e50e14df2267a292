//! Long lists as people read them: the first few, and how many more there are.

use std::collections::BTreeMap;
use std::fmt::Display;

/// The first `most` of `items` with commas between them, and how many more there are: `d1, d2 and 7 more`.
#[must_use]
pub fn first_few<T: Display>(items: impl IntoIterator<Item = T>, most: usize) -> String {
    let mut items = items.into_iter();
    let shown: Vec<String> = items.by_ref().take(most).map(|item| item.to_string()).collect();
    match items.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Whom each reason concerns, the one of most first: `d1, d2 (pinned); d3 (quarantined)`. Of each the first `most` names are shown, and of
/// the reasons as many; those that are not are counted.
#[must_use]
pub fn by_reason<'a, T: Display>(items: impl IntoIterator<Item = (T, &'a str)>, most: usize) -> String {
    let mut reasons: BTreeMap<&str, Vec<T>> = BTreeMap::new();
    for (item, why) in items {
        reasons.entry(why).or_default().push(item);
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, concerned)| std::cmp::Reverse(concerned.len()));
    let rest: usize = reasons.iter().skip(most).map(|(_, concerned)| concerned.len()).sum();
    let shown =
        reasons.into_iter().take(most).map(|(why, concerned)| format!("{} ({why})", first_few(concerned, most)));
    let rest = (rest > 0).then(|| format!("{rest} more for other reasons"));
    shown.chain(rest).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted() {
        let names = |n: usize| first_few((0..n).map(|i| format!("d{i}")), 3);
        assert_eq!([names(0), names(3), names(5)], ["", "d0, d1, d2", "d0, d1, d2 and 2 more"]);
    }

    #[test]
    fn every_reason_names_whom_it_concerns() {
        let some = [("d1", "pinned"), ("d2", "too small"), ("d3", "too small"), ("d4", "too small"), ("d5", "revoked")];
        assert_eq!(by_reason(some, 2), "d2, d3 and 1 more (too small); d1 (pinned); 1 more for other reasons");
        assert_eq!(by_reason([("d1", "pinned")], 2), "d1 (pinned)");
    }
}
