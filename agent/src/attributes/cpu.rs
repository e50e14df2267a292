//! The processor: what it is called, how many of it there are, and which of its instructions matter to inference.

use muster_shared::bundle::CPU_FEATURES;

use crate::system::System;

/// Processors of boards by implementer and part, which is all that a 64-bit ARM kernel says of them.
const ARM_PARTS: [(&str, &str, &str); 21] = [
    ("0x41", "0xb76", "ARM1176"),
    ("0x41", "0xc05", "Cortex-A5"),
    ("0x41", "0xc07", "Cortex-A7"),
    ("0x41", "0xc08", "Cortex-A8"),
    ("0x41", "0xc09", "Cortex-A9"),
    ("0x41", "0xc0f", "Cortex-A15"),
    ("0x41", "0xd01", "Cortex-A32"),
    ("0x41", "0xd03", "Cortex-A53"),
    ("0x41", "0xd04", "Cortex-A35"),
    ("0x41", "0xd05", "Cortex-A55"),
    ("0x41", "0xd07", "Cortex-A57"),
    ("0x41", "0xd08", "Cortex-A72"),
    ("0x41", "0xd09", "Cortex-A73"),
    ("0x41", "0xd0a", "Cortex-A75"),
    ("0x41", "0xd0b", "Cortex-A76"),
    ("0x41", "0xd0c", "Neoverse-N1"),
    ("0x41", "0xd41", "Cortex-A78"),
    ("0x41", "0xd42", "Cortex-A78AE"),
    ("0x41", "0xd46", "Cortex-A510"),
    ("0x4e", "0x003", "Denver-2"),
    ("0x4e", "0x004", "Carmel"),
];

/// What the kernel says of the processors, of which the first speaks for all.
pub(super) struct Cpu {
    text: String,
}

impl Cpu {
    /// Reads it.
    pub(super) fn of(system: &System) -> Self {
        Self { text: system.text("/proc/cpuinfo").unwrap_or_default() }
    }

    fn field(&self, name: &str) -> Option<&str> {
        let pairs = self.text.lines().filter_map(|line| line.split_once(':'));
        pairs.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// What it is called: by its part where that is known, else as the kernel says it.
    pub(super) fn model(&self) -> Option<String> {
        let part = self.field("CPU implementer").zip(self.field("CPU part"));
        let known = |(implementer, part): (&str, &str)| {
            let named = ARM_PARTS.iter().find(|entry| (entry.0, entry.1) == (implementer, part));
            named.map_or_else(|| format!("{implementer}-{part}"), |entry| entry.2.to_owned())
        };
        let said = || ["model name", "uarch"].iter().find_map(|name| self.field(name)).map(str::to_owned);
        part.map(known).or_else(said)
    }

    /// Those of [`CPU_FEATURES`] it has.
    pub(super) fn features(&self) -> impl Iterator<Item = &'static str> {
        let flags = ["Features", "flags"].iter().find_map(|name| self.field(name)).unwrap_or_default();
        // On 32-bit ARM the same unit is called neon.
        let has = |wanted: &str| {
            flags.split_ascii_whitespace().any(|flag| flag == wanted || (flag, wanted) == ("neon", "asimd"))
        };
        CPU_FEATURES.into_iter().filter(move |feature| has(feature))
    }
}

/// How many processors are in use: `0-3`, `0,2-3`, as the kernel lists them.
pub(super) fn count(system: &System) -> Option<u32> {
    let online = system.line("/sys/devices/system/cpu/online")?;
    online.split(',').try_fold(0_u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}
