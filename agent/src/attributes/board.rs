//! The board and the chip on it, as the device tree, the firmware or the kernel names them.

use crate::system::System;

/// What makers leave in their firmware where a name should be.
const NO_NAMES: [&str; 6] = [
    "To Be Filled By O.E.M.",
    "To be filled by O.E.M.",
    "System manufacturer",
    "System Product Name",
    "Default string",
    "Not Specified",
];

/// What the board is called: its model in the device tree, or the maker and the product that a PC's firmware names.
pub(super) fn model(system: &System) -> Option<String> {
    system.line("/proc/device-tree/model").or_else(|| {
        let named = |name: &str| {
            let said = system.line(&format!("/sys/class/dmi/id/{name}"))?;
            (!NO_NAMES.contains(&said.as_str())).then_some(said)
        };
        let parts: Vec<String> = ["sys_vendor", "product_name"].into_iter().filter_map(named).collect();
        (!parts.is_empty()).then(|| parts.join(" "))
    })
}

/// What the chip is called: the last name that the device tree says the board is compatible with, without its maker (`bcm2711`); else what
/// the kernel says of it.
pub(super) fn soc(system: &System) -> Option<String> {
    let of_tree = || {
        let compatible = system.text("/proc/device-tree/compatible")?;
        let last = compatible.split('\0').rfind(|name| !name.is_empty())?;
        Some(last.split_once(',').map_or(last, |(_, chip)| chip).to_owned())
    };
    let of_kernel = || ["soc_id", "family"].iter().find_map(|name| system.line(&format!("/sys/devices/soc0/{name}")));
    of_tree().or_else(of_kernel)
}
