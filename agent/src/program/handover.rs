//! The way from one program to the next without the service manager, which would wait for `RestartSec=` in between.
//!
//! A process that has ended in order becomes the packaged program again (`exec`), which decides and spends as at any start. That is done
//! only under the service manager's watchdog: it goes on counting, and ends a program that hangs before it is ready, as a limit for starts would.
//! And only so often in a row: then the service manager has its turn, so that no circle goes on behind its back.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use super::{PACKAGE, Running, SLOT};
use crate::notify;

/// Tells a program that was started in place of the packaged one where that is.
pub(super) const LAUNCHER: &str = "MUSTER_AGENT_LAUNCHER";
/// Tells how often the process has become the packaged program since the service manager started it.
const HANDOVERS: &str = "MUSTER_AGENT_HANDOVERS";
/// How often it may: a program that is tried, given up and left takes two.
const MAX_HANDOVERS: u32 = 4;

/// The packaged program takes over this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handover {
    launcher: PathBuf,
    number: u32,
}

impl Handover {
    /// How the process of `running` is handed over; none where it has to end, and be started again.
    pub(crate) fn of(running: &Running) -> Option<Self> {
        let made = std::env::var(HANDOVERS).ok();
        Self::planned(notify::watchdog_limit().is_some(), running.launcher.clone(), made.as_deref())
    }

    fn planned(is_watched: bool, launcher: Option<PathBuf>, made: Option<&str>) -> Option<Self> {
        // A number that is none is not 0: who cannot count must not go on.
        let made = made.map_or(Some(0), |made| made.parse::<u32>().ok())?;
        let launcher = launcher.filter(|path| path.is_absolute() && is_watched && made < MAX_HANDOVERS)?;
        Some(Self { launcher, number: made + 1 })
    }

    /// Becomes the packaged program; returns why that cannot be.
    pub(crate) fn carry_out(self) -> std::io::Error {
        // What comes now has the whole of the watchdog's time until it can say the same.
        notify::alive();
        let mut command = Command::new(&self.launcher);
        command.args(std::env::args_os().skip(1)).env(HANDOVERS, self.number.to_string());
        // With these it would take itself for the program that ends.
        command.env_remove(SLOT).env_remove(PACKAGE).env_remove(LAUNCHER);
        command.exec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_handed_over_under_a_watchdog_and_only_so_often() {
        let launcher = || Some(PathBuf::from("/usr/bin/muster-agent"));
        let first = Handover::planned(true, launcher(), None).unwrap();
        assert_eq!((first.launcher, first.number), (launcher().unwrap(), 1));
        assert_eq!(Handover::planned(false, launcher(), None), None, "nothing would end one that hangs");
        assert_eq!(Handover::planned(true, None, None), None, "a launcher of before does not say where it is");
        assert_eq!(Handover::planned(true, Some("muster-agent".into()), None), None);
        let (mut made, mut handovers) = (None::<String>, 0);
        while let Some(next) = Handover::planned(true, launcher(), made.as_deref()) {
            (made, handovers) = (Some(next.number.to_string()), handovers + 1);
            assert!(handovers < 100, "it goes on for ever");
        }
        assert_eq!(handovers, 4);
        for doubtful in ["", "-1", "x", "99999999999", "4294967295"] {
            assert_eq!(Handover::planned(true, launcher(), Some(doubtful)), None, "{doubtful:?}");
        }
    }
}
