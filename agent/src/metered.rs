//! Whether the device's link costs by the byte, as far as the kernel's own tables tell. A table that cannot be read names no
//! interface, and then the link is taken to be free: what is fetched is what was asked for.

use std::fs;

use muster_shared::messages::Stream;

use crate::config::{DeliveryConfig, MeteredSetting, MeteredTelemetry};

/// Flags of routes in the kernel's tables: it is up, and it leads nowhere.
const UP: u32 = 0x1;
const REJECT: u32 = 0x200;

/// What is known of the link.
#[derive(Debug, Clone)]
pub(crate) struct Metered {
    setting: MeteredSetting,
    interfaces: Vec<String>,
    telemetry: MeteredTelemetry,
}

impl Metered {
    pub(crate) fn new(config: &DeliveryConfig) -> Self {
        Self {
            setting: config.metered,
            interfaces: config.metered_interfaces.clone(),
            telemetry: config.metered_telemetry,
        }
    }

    /// Whether the link costs by the byte at this moment.
    pub(crate) fn is_metered(&self) -> bool {
        match self.setting {
            MeteredSetting::Yes => true,
            MeteredSetting::No => false,
            MeteredSetting::Auto if self.interfaces.is_empty() => false,
            MeteredSetting::Auto => {
                // Below `self`: a hardened service sees nothing else of /proc.
                let table = |path| fs::read_to_string(path).unwrap_or_default();
                let interface = of_table(&table("/proc/self/net/route"), default_of_ipv4)
                    .or_else(|| of_table(&table("/proc/self/net/ipv6_route"), default_of_ipv6));
                interface.is_some_and(|name| self.interfaces.iter().any(|pattern| is_meant(pattern, &name)))
            }
        }
    }

    /// The streams that have to wait for another link at this moment.
    pub(crate) fn deferred(&self) -> &'static [Stream] {
        let waiting: &[Stream] = match self.telemetry {
            MeteredTelemetry::All => &[],
            MeteredTelemetry::Counts => &[Stream::Sketch],
            MeteredTelemetry::None => &[Stream::Telemetry, Stream::Sketch],
        };
        if waiting.is_empty() || !self.is_metered() { &[] } else { waiting }
    }
}

fn is_meant(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |beginning| name.starts_with(beginning))
}

/// The interface of the default route with the least metric.
fn of_table(table: &str, default: impl Fn(&[&str]) -> Option<(u32, String)>) -> Option<String> {
    let routes = table.lines().filter_map(|line| default(&line.split_whitespace().collect::<Vec<_>>()));
    routes.min_by_key(|(metric, _)| *metric).map(|(_, interface)| interface)
}

/// Metric and interface, if this is a default route: `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`.
fn default_of_ipv4(fields: &[&str]) -> Option<(u32, String)> {
    let [interface, "00000000", _, flags, _, _, metric, "00000000", ..] = fields else { return None };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    (flags & UP != 0 && flags & REJECT == 0).then_some((metric.parse().ok()?, (*interface).to_owned()))
}

/// The same of `destination prefix-length source prefix-length gateway metric references uses flags interface`.
fn default_of_ipv6(fields: &[&str]) -> Option<(u32, String)> {
    let [destination, "00", _, _, _, metric, _, _, flags, interface] = fields else { return None };
    let (metric, flags) = (u32::from_str_radix(metric, 16).ok()?, u32::from_str_radix(flags, 16).ok()?);
    let leads_on = flags & UP != 0 && flags & REJECT == 0 && *interface != "lo";
    (destination.bytes().all(|digit| digit == b'0') && leads_on).then_some((metric, (*interface).to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        wwan0\t00000000\t0100A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0\n\
        eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
        eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
    const ROUTES_6: &str = "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n\
        00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000002 00000000 00000003 ppp0\n\
        00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n";

    #[test]
    fn the_default_route_with_the_least_metric_counts() {
        assert_eq!(of_table(ROUTES, default_of_ipv4).as_deref(), Some("eth0"));
        let without_cable: String =
            ROUTES.lines().filter(|line| !line.starts_with("eth0\t00000000")).map(|line| format!("{line}\n")).collect();
        assert_eq!(of_table(&without_cable, default_of_ipv4).as_deref(), Some("wwan0"));
        assert_eq!(of_table(ROUTES_6, default_of_ipv6).as_deref(), Some("ppp0"));
        assert_eq!(of_table(&ROUTES.replace("\t0003\t", "\t0002\t"), default_of_ipv4), None, "routes that are down");
    }

    #[test]
    fn interfaces_are_named_whole_or_by_their_beginning() {
        for (pattern, name, meant) in
            [("wwan*", "wwan0", true), ("wwan0", "wwan0", true), ("wwan0", "wwan01", false), ("ppp*", "eth0", false)]
        {
            assert_eq!(is_meant(pattern, name), meant, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_configured_needs_no_table() {
        let metered = |setting, telemetry| Metered { setting, interfaces: vec![], telemetry };
        assert!(metered(MeteredSetting::Yes, MeteredTelemetry::All).is_metered());
        assert!(!metered(MeteredSetting::No, MeteredTelemetry::All).is_metered());
        for (setting, telemetry, deferred) in [
            (MeteredSetting::Yes, MeteredTelemetry::All, &[][..]),
            (MeteredSetting::Yes, MeteredTelemetry::Counts, &[Stream::Sketch]),
            (MeteredSetting::Yes, MeteredTelemetry::None, &[Stream::Telemetry, Stream::Sketch]),
            (MeteredSetting::No, MeteredTelemetry::None, &[]),
        ] {
            assert_eq!(metered(setting, telemetry).deferred(), deferred, "{setting:?} {telemetry:?}");
        }
    }

    proptest! {
        #[test]
        fn any_table_has_a_default_route_or_none(table in "([0-9a-f]{0,9}[ \t]){0,12}\n(.{0,20}\n){0,3}") {
            let _ = (of_table(&table, default_of_ipv4), of_table(&table, default_of_ipv6));
        }
    }
}
