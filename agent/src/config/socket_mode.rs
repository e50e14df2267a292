//! Permissions of the Unix socket, written as `chmod` has them.

use serde::Deserialize;

/// Who may use the Unix socket: permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct SocketMode(pub(crate) u32);

/// Why a text is no mode.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no mode of a socket: write three octal digits, such as \"0660\" for its owner and its group, or \"0666\" for everybody"
)]
pub(crate) struct NoMode(String);

impl Default for SocketMode {
    fn default() -> Self {
        Self(0o660)
    }
}

impl TryFrom<String> for SocketMode {
    type Error = NoMode;

    fn try_from(text: String) -> Result<Self, NoMode> {
        let digits = text.strip_prefix('0').unwrap_or(&text);
        let mode = (digits.len() == 3).then(|| u32::from_str_radix(digits, 8).ok()).flatten();
        // One that its owner cannot use is a slip.
        mode.filter(|mode| mode & 0o600 == 0o600).map(Self).ok_or_else(|| NoMode(text.chars().take(20).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_three_octal_digits() {
        for (text, mode) in [("0660", 0o660), ("660", 0o660), ("0666", 0o666), ("600", 0o600)] {
            assert_eq!(SocketMode::try_from(text.to_owned()).unwrap(), SocketMode(mode));
        }
        for text in ["", "0", "66", "0o660", "rw", "+66", "880", "060", "4660", "00660"] {
            assert!(SocketMode::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
