//! What the agent uses of the device, as the kernel counts it.
//!
//! A number that cannot be read is 0: a kernel without `/proc` must not stop anything.

use std::ops::RangeInclusive;
use std::path::Path;

use muster_shared::messages::Resources;

use crate::pressure::Pressed;
use crate::system::System;
use crate::time::Steady;

/// What a sensor can mean, in thousandths of a degree Celsius: one that is off or broken says other things.
const POSSIBLE_MC: RangeInclusive<i32> = -100_000..=300_000;

/// The agent's own use of the device at this moment; `data_dir` is where it keeps its data.
pub(crate) fn now(system: &System, started: Steady, data_dir: &Path, pressed: &Pressed) -> Resources {
    Resources {
        resident_bytes: resident_bytes(system),
        cpu_ms: cpu_ms(system),
        uptime_ms: started.now_ms(),
        disk_free_bytes: disk_free_bytes(data_dir),
        temperature_mc: temperature_mc(system),
        throttled_ms: pressed.throttled_ms(),
    }
}

/// Temperature of the hottest thermal zone, in thousandths of a degree Celsius; none where none can be read.
pub(crate) fn temperature_mc(system: &System) -> Option<i32> {
    let zones = system.entries("/sys/class/thermal", "thermal_zone");
    let read = zones.iter().filter_map(|zone| system.number(&format!("{zone}/temp")));
    read.filter(|temperature| POSSIBLE_MC.contains(temperature)).max()
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident_bytes(system: &System) -> u64 {
    let statm = system.line("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    pages.saturating_mul(u64::try_from(rustix::param::page_size()).unwrap_or_default())
}

fn cpu_ms(system: &System) -> u64 {
    let stat = system.line("/proc/self/stat").unwrap_or_default();
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

/// Size of the file system that `path` is on, in bytes.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize))
}

/// Memory of the device, in bytes.
pub(crate) fn memory_bytes(system: &System) -> u64 {
    meminfo_bytes(system, "MemTotal:").unwrap_or(0)
}

/// What of the device's memory this service may ever have, in bytes: less where its control group has a limit. None where the kernel
/// does not say.
pub(crate) fn memory_allowed_bytes(system: &System) -> Option<u64> {
    let total = meminfo_bytes(system, "MemTotal:")?;
    Some(cgroup_number(system, "memory.max").map_or(total, |limit| limit.min(total)))
}

/// Memory that could be taken without anything being pushed out, in bytes: what the kernel has to give, and no more than this service's
/// own limit leaves. None where the kernel does not say.
pub(crate) fn memory_available_bytes(system: &System) -> Option<u64> {
    let available = meminfo_bytes(system, "MemAvailable:")?;
    let limits = cgroup_number(system, "memory.max").zip(cgroup_number(system, "memory.current"));
    Some(limits.map_or(available, |(limit, used)| limit.saturating_sub(used).min(available)))
}

/// What of the device's memory nothing could get any more, in basis points. None where the kernel does not say.
pub(crate) fn memory_used_bp(system: &System) -> Option<u32> {
    let (total, available) = (meminfo_bytes(system, "MemTotal:")?, meminfo_bytes(system, "MemAvailable:")?);
    let used = u128::from(total.saturating_sub(available)) * 10_000;
    used.checked_div(u128::from(total)).and_then(|bp| u32::try_from(bp).ok())
}

fn meminfo_bytes(system: &System, field: &str) -> Option<u64> {
    let meminfo = system.text("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1_024))
}

/// The number in a file of this process's control group (version 2); none without one, or without a limit.
fn cgroup_number(system: &System, file: &str) -> Option<u64> {
    system.number(&format!("{}/{file}", cgroup(system)?))
}

/// The folder of this process's control group (version 2).
pub(crate) fn cgroup(system: &System) -> Option<String> {
    let of_process = system.text("/proc/self/cgroup")?;
    let group = of_process.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A group whose name leads out of the tree is none.
    (!group.split('/').any(|part| part == "..")).then(|| format!("/sys/fs/cgroup/{group}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_kernel_tells() {
        let resources = now(&System::default(), Steady::start(), Path::new("."), &Pressed::default());
        assert!(resources.resident_bytes > 100_000 && resources.disk_free_bytes > 0);
        let system = System::default();
        let memory_bytes = memory_bytes(&system);
        assert!(memory_bytes > resources.resident_bytes);
        assert!(memory_available_bytes(&system).is_some_and(|bytes| bytes > 0 && bytes <= memory_bytes));
        assert!(disk_bytes(Path::new(".")) >= resources.disk_free_bytes);
        assert_eq!(disk_free_bytes(Path::new("/nowhere/at/all")), 0);
    }

    #[test]
    fn the_services_own_limit_counts_where_it_is_lower() {
        let root = tempfile::tempdir().unwrap();
        let system = System::below(root.path());
        assert_eq!(
            (memory_bytes(&system), memory_allowed_bytes(&system), memory_available_bytes(&system)),
            (0, None, None)
        );
        let group = root.path().join("sys/fs/cgroup/system.slice/muster-agent.service");
        fs::create_dir_all(&group).unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::write(root.path().join("proc/meminfo"), "MemTotal:  1000 kB\nMemAvailable:   600 kB\n").unwrap();
        fs::write(root.path().join("proc/self/cgroup"), "1:cpu:/\n0::/system.slice/muster-agent.service\n").unwrap();
        let told = || (memory_allowed_bytes(&system), memory_available_bytes(&system));
        assert_eq!(told(), (Some(1_024_000), Some(614_400)));
        for (limit, used, allowed, available) in [
            ("max", 9, 1_024_000, 614_400),
            ("4096000", 9, 1_024_000, 614_400),
            ("100000", 40_000, 100_000, 60_000),
            ("5", 9, 5, 0),
        ] {
            fs::write(group.join("memory.max"), format!("{limit}\n")).unwrap();
            fs::write(group.join("memory.current"), format!("{used}\n")).unwrap();
            assert_eq!(told(), (Some(allowed), Some(available)), "{limit}");
        }
        fs::write(root.path().join("proc/self/cgroup"), "0::/../../etc\n").unwrap();
        assert_eq!(cgroup(&system), None);
    }

    #[test]
    fn the_hottest_zone_that_can_be_read_counts() {
        let root = tempfile::tempdir().unwrap();
        let system = System::below(root.path());
        assert_eq!(temperature_mc(&system), None);
        let folder = root.path().join("sys/class/thermal");
        for (name, temperature) in [
            ("thermal_zone0", "41000\n"),
            ("thermal_zone1", "63500\n"),
            ("thermal_zone2", "broken"),
            ("thermal_zone3", "-2147483648"),
            ("cooling_device0", "99000"),
        ] {
            let zone = folder.join(name);
            fs::create_dir_all(&zone).unwrap();
            fs::write(zone.join("temp"), temperature).unwrap();
        }
        fs::create_dir(folder.join("thermal_zone4")).unwrap();
        assert_eq!(temperature_mc(&system), Some(63_500));
    }
}
