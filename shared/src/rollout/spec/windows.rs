//! Maintenance windows: the hours of the week, by each device's own clock on the wall, in which devices may come in.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_WINDOWS;

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Day {
    /// Every day, Monday first.
    pub const ALL: [Self; 7] = [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Mon => "mon",
            Self::Tue => "tue",
            Self::Wed => "wed",
            Self::Thu => "thu",
            Self::Fri => "fri",
            Self::Sat => "sat",
            Self::Sun => "sun",
        }
    }

    fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|day| day.as_str() == text)
    }
}

/// A time on the clock, written `22:00`; `24:00` is the end of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClockTime {
    minutes: u16,
}

impl ClockTime {
    /// Minutes since midnight, 0 to 1440.
    #[must_use]
    pub fn minutes(self) -> u16 {
        self.minutes
    }
}

impl FromStr for ClockTime {
    type Err = WindowError;
    fn from_str(text: &str) -> Result<Self, WindowError> {
        let refuse = || WindowError::Clock(text.chars().take(40).collect());
        let (hours, minutes) = text.split_once(':').ok_or_else(refuse)?;
        let number = |digits: &str| -> Option<u16> {
            (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
        };
        let (hours, minutes) = number(hours).zip(number(minutes)).ok_or_else(refuse)?;
        let all = hours * 60 + minutes;
        if minutes < 60 && all <= 1_440 { Ok(Self { minutes: all }) } else { Err(refuse()) }
    }
}

impl TryFrom<String> for ClockTime {
    type Error = WindowError;
    fn try_from(text: String) -> Result<Self, WindowError> {
        text.parse()
    }
}

impl From<ClockTime> for String {
    fn from(time: ClockTime) -> Self {
        time.to_string()
    }
}

impl fmt::Display for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.minutes / 60, self.minutes % 60)
    }
}

/// One window: on these days from one time to another. Where it ends no later than it begins it ends on the next day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct MaintenanceWindow {
    /// The days on which it begins; every day where none is given.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub days: BTreeSet<Day>,
    /// When it begins.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub from: ClockTime,
    /// When it ends.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub to: ClockTime,
}

impl MaintenanceWindow {
    /// Whether it begins on `day`.
    #[must_use]
    pub fn begins_on(&self, day: Day) -> bool {
        self.days.is_empty() || self.days.contains(&day)
    }

    /// Whether it ends on the day after.
    #[must_use]
    pub fn ends_on_the_next_day(&self) -> bool {
        self.to <= self.from
    }
}

/// Why windows cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Not a time.
    #[error("{0:?} is not a time of the day: write 22:00, from 00:00 to 24:00")]
    Clock(String),
    /// Not a window.
    #[error("{0:?} is not a window: write 22:00-05:00, mon-fri 22:00-05:00 or sat,sun 00:00-24:00")]
    Window(String),
    /// It begins when the day is over.
    #[error("a window cannot begin at 24:00: write 00:00 of the next day")]
    Beginning,
    /// So many cannot be.
    #[error("{0} windows: at most {MAX_WINDOWS} are possible")]
    TooMany(usize),
    /// A time zone that is not known.
    #[error("{0:?} is no time zone that is known: write its IANA name, as Europe/Paris")]
    Zone(String),
    /// A time zone that nothing needs.
    #[error("a time zone without windows means nothing: give windows, too")]
    NoWindows,
}

impl FromStr for MaintenanceWindow {
    type Err = WindowError;
    fn from_str(text: &str) -> Result<Self, WindowError> {
        let refuse = || WindowError::Window(text.chars().take(60).collect());
        let text = text.trim();
        let (days, hours) = text.rsplit_once(' ').unwrap_or(("", text));
        let (from, to) = hours.split_once('-').ok_or_else(refuse)?;
        let mut on = BTreeSet::new();
        for part in days.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = Day::named(first).zip(Day::named(last)).ok_or_else(refuse)?;
            let from_first = Day::ALL.into_iter().cycle().skip_while(|day| *day != first);
            for day in from_first.take(7) {
                on.insert(day);
                if day == last {
                    break;
                }
            }
        }
        Ok(Self { days: on, from: from.parse()?, to: to.parse()? })
    }
}

/// Checks windows and the time zone for devices that name none. Whether the zone exists is seen where zones are known.
///
/// # Errors
/// [`WindowError`] with the first fault found.
pub(super) fn validate(windows: &[MaintenanceWindow], timezone: Option<&str>) -> Result<(), WindowError> {
    if windows.len() > MAX_WINDOWS {
        return Err(WindowError::TooMany(windows.len()));
    }
    if windows.iter().any(|window| window.from.minutes == 1_440) {
        return Err(WindowError::Beginning);
    }
    if windows.is_empty() && timezone.is_some() { Err(WindowError::NoWindows) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn windows_read_as_people_write_them() {
        let of = |days: &[Day], from: &str, to: &str| MaintenanceWindow {
            days: days.iter().copied().collect(),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
        };
        use Day::{Fri, Mon, Sat, Sun, Thu, Tue, Wed};
        for (text, window) in [
            ("22:00-05:00", of(&[], "22:00", "05:00")),
            ("mon-fri 22:00-05:00", of(&[Mon, Tue, Wed, Thu, Fri], "22:00", "05:00")),
            ("sat,sun 00:00-24:00", of(&[Sat, Sun], "00:00", "24:00")),
            ("fri-mon 01:30-02:00", of(&[Fri, Sat, Sun, Mon], "01:30", "02:00")),
        ] {
            assert_eq!(text.parse::<MaintenanceWindow>().unwrap(), window, "{text}");
            let json = serde_json::to_string(&window).unwrap();
            assert_eq!(serde_json::from_str::<MaintenanceWindow>(&json).unwrap(), window);
        }
        assert!(of(&[], "22:00", "05:00").ends_on_the_next_day() && of(&[], "07:00", "07:00").ends_on_the_next_day());
        assert!(!of(&[], "00:00", "24:00").ends_on_the_next_day());
        for bad in [
            "",
            "22:00",
            "22-05",
            "22:00-25:00",
            "22:60-23:00",
            "2:00-3:00",
            "moon 22:00-23:00",
            "mon- 22:00-23:00",
            "+1:00-02:00",
        ] {
            assert!(bad.parse::<MaintenanceWindow>().is_err(), "{bad}");
        }
        assert_eq!(validate(&[of(&[], "24:00", "05:00")], None), Err(WindowError::Beginning));
        assert_eq!(validate(&[], Some("Europe/Paris")), Err(WindowError::NoWindows));
    }

    proptest! {
        #[test]
        fn any_text_is_a_window_or_refused(text in ".{0,30}|[a-z,-]{0,12} ?[0-9:]{0,6}-[0-9:]{0,6}") {
            let _ = text.parse::<MaintenanceWindow>();
        }
    }
}
