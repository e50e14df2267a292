//! Long lists as people read them: the first few, and how many more there are.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted() {
        let names = |n: usize| first_few((0..n).map(|i| format!("d{i}")), 3);
        assert_eq!([names(0), names(3), names(5)], ["", "d0, d1, d2", "d0, d1, d2 and 2 more"]);
    }
}
