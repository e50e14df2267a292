//! What the agent uses of the device, as the kernel counts it.
//!
//! A number that cannot be read is 0: a kernel without `/proc` must not stop anything.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use muster_shared::messages::Resources;

use crate::time::Steady;

/// Entries that are looked at for thermal zones; cooling devices are listed among them.
const MAX_THERMAL_ENTRIES: usize = 256;
/// What a sensor can mean, in thousandths of a degree Celsius: one that is off or broken says other things.
const POSSIBLE_MC: RangeInclusive<i32> = -100_000..=300_000;

/// The agent's own use of the device at this moment; `data_dir` is where it keeps its data.
pub(crate) fn now(started: Steady, data_dir: &Path) -> Resources {
    Resources {
        resident_bytes: resident_bytes(),
        cpu_ms: cpu_ms(),
        uptime_ms: started.now_ms(),
        disk_free_bytes: disk_free_bytes(data_dir),
        temperature_mc: temperature_mc(Path::new("/sys/class/thermal")),
    }
}

/// Temperature of the hottest of the zones that `folder` lists, in thousandths of a degree Celsius; none where none can be read.
fn temperature_mc(folder: &Path) -> Option<i32> {
    let zones = fs::read_dir(folder).ok()?.take(MAX_THERMAL_ENTRIES).filter_map(Result::ok);
    let zones = zones.filter(|zone| zone.file_name().as_encoded_bytes().starts_with(b"thermal_zone"));
    let read = zones.filter_map(|zone| fs::read_to_string(zone.path().join("temp")).ok()?.trim().parse().ok());
    read.filter(|temperature| POSSIBLE_MC.contains(temperature)).max()
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    pages.saturating_mul(u64::try_from(rustix::param::page_size()).unwrap_or_default())
}

fn cpu_ms() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the command in parentheses and may hold spaces; times are the 14th and 15th.
    let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).fold(0, u64::saturating_add);
    ticks.saturating_mul(1_000) / rustix::param::clock_ticks_per_second().max(1)
}

/// Space this process may still use where `path` is, in bytes.
pub(crate) fn disk_free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
}

/// Memory of the device, in bytes.
pub(crate) fn memory_bytes() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1_024))
}

/// Memory that could be taken without anything being pushed out, in bytes: what the kernel has to give, and no more than this service's
/// own limit leaves. None where the kernel does not say.
pub(crate) fn memory_available_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    let system = kib.saturating_mul(1_024);
    Some(cgroup_left_bytes().map_or(system, |left| left.min(system)))
}

/// What the limit of this process's control group (version 2) leaves, in bytes; none without one.
fn cgroup_left_bytes() -> Option<u64> {
    let of_process = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = of_process.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = Path::new("/sys/fs/cgroup").join(group);
    let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells() {
        let resources = now(Steady::start(), Path::new("."));
        assert!(resources.resident_bytes > 100_000 && resources.disk_free_bytes > 0);
        assert!(memory_bytes() > resources.resident_bytes);
        assert!(memory_available_bytes().is_some_and(|bytes| bytes > 0 && bytes <= memory_bytes()));
        assert_eq!(disk_free_bytes(Path::new("/nowhere/at/all")), 0);
    }

    #[test]
    fn the_hottest_zone_that_can_be_read_counts() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(temperature_mc(&folder.path().join("none")), None);
        for (name, temperature) in [
            ("thermal_zone0", "41000\n"),
            ("thermal_zone1", "63500\n"),
            ("thermal_zone2", "broken"),
            ("thermal_zone3", "-2147483648"),
            ("cooling_device0", "99000"),
        ] {
            let zone = folder.path().join(name);
            fs::create_dir(&zone).unwrap();
            fs::write(zone.join("temp"), temperature).unwrap();
        }
        fs::create_dir(folder.path().join("thermal_zone4")).unwrap();
        assert_eq!(temperature_mc(folder.path()), Some(63_500));
    }
}
