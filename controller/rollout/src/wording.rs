//! Numbers as people read them.

use std::fmt::Display;

use muster_shared::ids::DeviceId;
use muster_shared::listing::first_few;

/// `1604` as `1,604`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 device`, `1,604 devices`.
pub(crate) fn counted(n: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(n), if n == 1 { "" } else { "s" })
}

/// `measured > limit` or `measured ≤ limit`, with two decimals, or as many as it takes to tell them apart.
pub(crate) fn comparison(measured: f64, limit: f64, unit: &str) -> String {
    let sign = if measured > limit { '>' } else { '≤' };
    let text = |digits: usize| (format!("{measured:.digits$}"), format!("{limit:.digits$}"));
    let (mut left, mut right) = text(2);
    for digits in [4, 6] {
        if left == right && measured > limit {
            (left, right) = text(digits);
        }
    }
    format!("{left}{unit} {sign} {right}{unit}")
}

/// Microseconds as `4.80 ms`.
pub(crate) fn latency(us: f64) -> String {
    if us < 1_000.0 {
        format!("{us:.0} µs")
    } else if us < 1_000_000.0 {
        format!("{:.2} ms", us / 1_000.0)
    } else {
        format!("{:.2} s", us / 1_000_000.0)
    }
}

/// Milliseconds in the largest unit that leaves at least 2, as `90 s` or `36 h`.
pub(crate) fn duration(ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400_000, "days"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    for (unit_ms, name) in UNITS {
        if ms >= 2 * unit_ms {
            let tenths = ms / (unit_ms / 10);
            return match tenths % 10 {
                0 => format!("{} {name}", tenths / 10),
                rest => format!("{}.{rest} {name}", tenths / 10),
            };
        }
    }
    format!("{ms} ms")
}

/// The first few names, and how many more there are.
pub(crate) fn names<'d>(devices: impl IntoIterator<Item = &'d DeviceId>) -> String {
    listed(devices)
}

/// The first few items, and how many more there are.
pub(crate) fn listed<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    first_few(items, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!([0, 7, 999, 1_604, 1_234_567].map(count), ["0", "7", "999", "1,604", "1,234,567"]);
        assert_eq!(counted(1, "device"), "1 device");
        assert_eq!(counted(0, "device"), "0 devices");
        assert_eq!(comparison(3.409, 0.25, ""), "3.41 > 0.25");
        assert_eq!(comparison(0.25, 0.25, ""), "0.25 ≤ 0.25");
        assert_eq!(comparison(0.250_04, 0.25, ""), "0.250040 > 0.250000");
        assert_eq!(comparison(7.5, 5.0, " %"), "7.50 % > 5.00 %");
        assert_eq!([812.4, 4_800.0, 2_500_000.0].map(latency), ["812 µs", "4.80 ms", "2.50 s"]);
        for (ms, text) in [
            (1_500, "1500 ms"),
            (2_500, "2.5 s"),
            (90_000, "90 s"),
            (600_000, "10 min"),
            (5_400_000, "90 min"),
            (129_600_000, "36 h"),
            (259_200_000, "3 days"),
        ] {
            assert_eq!(duration(ms), text);
        }
    }
}
