//! Reads what presses on the device from the kernel and the firmware.

use muster_agent_core::pressure::{Signs, Stall};
use muster_shared::messages::Throttling;

use crate::resources;
use crate::system::System;

/// Where the firmware of a Raspberry Pi says what holds its processor back.
const FIRMWARE: &str = "/sys/devices/platform/soc/soc:firmware/get_throttled";
/// Of its bits, the one for a voltage that is too low now.
const UNDER_VOLTAGE: u32 = 1;
/// Of its bits, those for a processor that is slowed now, and for a temperature at its soft limit.
const SLOWED: u32 = 0b1110;
/// Cooling devices that slow processors, by how their kinds begin.
const SLOWING: [&str; 4] = ["thermal-cpufreq", "cpufreq", "thermal-cpuidle", "Processor"];

/// What presses at this moment.
pub(super) fn read(system: &System) -> Signs {
    let of_device = stall(system, "/proc/pressure/memory");
    let of_service = resources::cgroup(system).and_then(|group| stall(system, &format!("{group}/memory.pressure")));
    let memory = match (of_device, of_service) {
        (Some(one), Some(other)) => {
            Some(Stall { some_bp: one.some_bp.max(other.some_bp), full_bp: one.full_bp.max(other.full_bp) })
        }
        (one, other) => one.or(other),
    };
    Signs {
        memory,
        memory_used_bp: resources::memory_used_bp(system),
        temperature_mc: resources::temperature_mc(system),
        throttling: throttling(system),
    }
}

/// The shares over the last ten seconds in a file of pressure stall information.
fn stall(system: &System, path: &str) -> Option<Stall> {
    let text = system.text(path)?;
    let share_bp = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let share = line.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?;
        let (whole, hundredths) = share.split_once('.')?;
        let (whole, hundredths): (u32, u32) = (whole.parse().ok()?, hundredths.get(..2)?.parse().ok()?);
        Some(whole.min(100) * 100 + hundredths)
    };
    Some(Stall { some_bp: share_bp("some ")?, full_bp: share_bp("full ").unwrap_or(0) })
}

/// Whether the processor is held back; none where nobody says.
fn throttling(system: &System) -> Option<Throttling> {
    let of_firmware = || {
        let bits = system.line(FIRMWARE)?;
        let bits = u32::from_str_radix(bits.trim_start_matches("0x"), 16).ok()?;
        Some(match bits {
            bits if bits & UNDER_VOLTAGE != 0 => Throttling::UnderVoltage,
            bits if bits & SLOWED != 0 => Throttling::Heat,
            _ => Throttling::None,
        })
    };
    of_firmware().or_else(|| {
        let devices = system.entries("/sys/class/thermal", "cooling_device");
        let slows = |device: &&String| {
            let kind = system.line(&format!("{device}/type")).unwrap_or_default();
            SLOWING.iter().any(|slowing| kind.starts_with(slowing))
        };
        let states =
            devices.iter().filter(slows).filter_map(|device| system.number::<u32>(&format!("{device}/cur_state")));
        states.max().map(|state| if state > 0 { Throttling::Heat } else { Throttling::None })
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(root: &std::path::Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_device_that_says_nothing_has_no_signs() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(&System::below(root.path())), Signs::default());
        for odd in ["", "some", "some avg10=", "some avg10=x.yz", "some avg10=5", "full avg10=1.00"] {
            write(root.path(), "proc/pressure/memory", odd);
            write(root.path(), "sys/devices/platform/soc/soc:firmware/get_throttled", odd);
            assert_eq!(read(&System::below(root.path())), Signs::default(), "{odd:?}");
        }
    }

    #[test]
    fn the_worse_of_device_and_service_counts() {
        let root = tempfile::tempdir().unwrap();
        let system = System::below(root.path());
        let psi = |some: &str, full: &str| {
            format!(
                "some avg10={some} avg60=9.00 avg300=9.00 total=9\nfull avg10={full} avg60=9.00 avg300=9.00 total=9\n"
            )
        };
        write(root.path(), "proc/pressure/memory", &psi("12.34", "0.50"));
        assert_eq!(read(&system).memory, Some(Stall { some_bp: 1_234, full_bp: 50 }));
        write(root.path(), "proc/self/cgroup", "0::/system.slice/muster-agent.service\n");
        write(root.path(), "sys/fs/cgroup/system.slice/muster-agent.service/memory.pressure", &psi("3.00", "100.00"));
        assert_eq!(read(&system).memory, Some(Stall { some_bp: 1_234, full_bp: 10_000 }));
        write(root.path(), "proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 30 kB\n");
        write(root.path(), "sys/class/thermal/thermal_zone0/temp", "61000\n");
        let signs = read(&system);
        assert_eq!((signs.memory_used_bp, signs.temperature_mc), (Some(9_700), Some(61_000)));
    }

    #[test]
    fn firmware_or_a_cooling_device_says_what_holds_the_processor_back() {
        let root = tempfile::tempdir().unwrap();
        let system = System::below(root.path());
        let cooler = |number: u32, kind: &str, state: &str| {
            write(root.path(), &format!("sys/class/thermal/cooling_device{number}/type"), kind);
            write(root.path(), &format!("sys/class/thermal/cooling_device{number}/cur_state"), state);
        };
        cooler(0, "pwm-fan\n", "4\n");
        assert_eq!(throttling(&system), None, "a fan slows nothing");
        cooler(1, "cpufreq-cpu0\n", "0\n");
        assert_eq!(throttling(&system), Some(Throttling::None));
        cooler(2, "thermal-cpufreq-1\n", "2\n");
        assert_eq!(throttling(&system), Some(Throttling::Heat));
        for (bits, expected) in [
            // What has been so since the start counts no more.
            ("50000", Throttling::None),
            ("0x0", Throttling::None),
            ("50005\n", Throttling::UnderVoltage),
            ("0x4", Throttling::Heat),
            ("80008", Throttling::Heat),
            ("2", Throttling::Heat),
        ] {
            write(root.path(), "sys/devices/platform/soc/soc:firmware/get_throttled", bits);
            assert_eq!(throttling(&system), Some(expected), "{bits}");
        }
    }
}
