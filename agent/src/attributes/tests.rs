//! Devices as their kernels describe them, from boards of each kind.

use std::fs;

use muster_agent_core::pressure::Signs;
use muster_shared::messages::Pressure;

use super::*;

/// A device whose files are these.
fn device(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let system = System::below(root.path());
    (root, system)
}

fn found(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    let (root, system) = device(files);
    all(&system, root.path(), &BTreeMap::new())
}

#[test]
fn facts_that_bundles_are_chosen_by_cannot_be_configured_away() {
    let configured = [
        ("arch", "toaster"),
        ("hostname", "press-7"),
        ("line", "3"),
        ("disk-bytes", "1"),
        ("cpu-sve", "yes"),
        ("cpu-fan", "yes"),
        ("temperature-c", "20"),
        ("throttling", "none"),
    ];
    let configured = configured.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let attributes = all(&System::default(), Path::new("."), &configured.clone().into());
    assert_eq!(attributes["arch"], arch());
    assert_eq!((attributes["hostname"].as_str(), attributes["line"].as_str()), ("press-7", "3"));
    assert!(attributes["memory-bytes"].parse::<u64>().unwrap() > 0);
    assert!(attributes["agent-version"].parse::<semver::Version>().is_ok());
    let (root, nothing) = device(&[]);
    let attributes = all(&nothing, &root.path().join("none"), &configured.into());
    assert!(["disk-bytes", "cpu-sve", "temperature-c", "throttling"].iter().all(|key| !attributes.contains_key(*key)));
    assert_eq!(attributes["cpu-fan"], "yes");
}

#[test]
fn the_condition_is_what_was_read_last() {
    let pressed = Pressed::default();
    let attributes = || of_condition(&pressed).collect::<BTreeMap<_, _>>();
    let said = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assert_eq!(attributes(), said(&[("pressure", "none")]));
    let signs = |temperature_mc, throttling| Signs {
        temperature_mc: Some(temperature_mc),
        throttling: Some(throttling),
        ..Signs::default()
    };
    pressed.read(signs(61_499, Throttling::None));
    assert_eq!(attributes(), said(&[("pressure", "none"), ("temperature-c", "61"), ("throttling", "none")]));
    pressed.set(Pressure { level: PressureLevel::High, reason: "cold".into() });
    pressed.read(signs(-12_600, Throttling::UnderVoltage));
    assert_eq!(attributes(), said(&[("pressure", "high"), ("temperature-c", "-13"), ("throttling", "under-voltage")]));
}

#[test]
fn a_raspberry_pi_says_what_it_is() {
    let attributes = found(&[
        ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
        ("proc/device-tree/compatible", "raspberrypi,4-model-b\0brcm,bcm2711\0"),
        ("proc/sys/kernel/osrelease", "6.12.25+rpt-rpi-v8\n"),
        ("proc/meminfo", "MemTotal:        3885396 kB\nMemFree:  1 kB\n"),
        ("sys/devices/system/cpu/online", "0-3\n"),
        ("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n"),
        (
            "proc/cpuinfo",
            "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n\
             CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n",
        ),
    ]);
    for (key, value) in [
        ("board", "Raspberry-Pi-4-Model-B-Rev-1.4"),
        ("soc", "bcm2711"),
        ("cpu", "Cortex-A72"),
        ("cpu-count", "4"),
        ("cpu-asimd", "yes"),
        ("kernel", "6.12.25+rpt-rpi-v8"),
        ("os-id", "debian"),
        ("os-version", "12"),
        ("memory-bytes", "3978645504"),
    ] {
        assert_eq!(attributes.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(!attributes.contains_key("cpu-asimddp"));
    let selector: muster_shared::selector::Selector =
        "board=Raspberry-Pi-4-Model-B-Rev-1.4,soc=bcm2711,cpu-asimd,!cpu-asimddp".parse().unwrap();
    assert!(selector.matches("press-7", &BTreeMap::new(), &attributes));
}

#[test]
fn a_32_bit_board_a_pc_and_a_chip_unknown_here_say_what_they_are() {
    let beagle = found(&[
        ("proc/device-tree/model", "TI AM335x BeagleBone Black\0"),
        ("proc/device-tree/compatible", "ti,am335x-bone-black\0ti,am335x-bone\0ti,am33xx\0"),
        (
            "proc/cpuinfo",
            "model name\t: ARMv7 Processor rev 2 (v7l)\nFeatures\t: half thumb vfp neon vfpv3\nCPU implementer\t: 0x41\nCPU part\t: 0xc08\n",
        ),
        ("sys/devices/system/cpu/online", "0\n"),
    ]);
    let told = |attributes: &BTreeMap<String, String>, keys: &[&str]| -> Vec<String> {
        keys.iter().map(|key| attributes.get(*key).cloned().unwrap_or_else(|| "-".to_owned())).collect()
    };
    let keys = ["board", "soc", "cpu", "cpu-count", "cpu-asimd", "cpu-avx2"];
    assert_eq!(told(&beagle, &keys), ["TI-AM335x-BeagleBone-Black", "am33xx", "Cortex-A8", "1", "yes", "-"]);
    let pc = found(&[
        ("sys/class/dmi/id/sys_vendor", "Advantech, Inc.\n"),
        ("sys/class/dmi/id/product_name", "ARK-2250L\n"),
        (
            "proc/cpuinfo",
            "model name\t: Intel(R) Core(TM) i5-8365UE CPU @ 1.60GHz\nflags\t\t: fpu sse4_2 fma avx f16c avx2\n",
        ),
        ("sys/devices/system/cpu/online", "0,2-4\n"),
    ]);
    let keys = ["board", "soc", "cpu", "cpu-count", "cpu-avx2", "cpu-fma", "cpu-avx512f"];
    let expected =
        ["Advantech-Inc.-ARK-2250L", "-", "Intel(R)-Core(TM)-i5-8365UE-CPU-@-1.60GHz", "4", "yes", "yes", "-"];
    assert_eq!(told(&pc, &keys), expected);
    let strange = found(&[
        ("sys/class/dmi/id/sys_vendor", "To Be Filled By O.E.M.\n"),
        ("sys/class/dmi/id/product_name", "Default string\n"),
        ("sys/devices/soc0/soc_id", "i.MX8MP\n"),
        ("proc/cpuinfo", "CPU implementer\t: 0x61\nCPU part\t: 0x999\n"),
        ("sys/devices/system/cpu/online", "3-1\n"),
    ]);
    assert_eq!(told(&strange, &["board", "soc", "cpu", "cpu-count"]), ["-", "i.MX8MP", "0x61-0x999", "-"]);
}

#[test]
fn every_found_value_can_be_named_in_a_selector() {
    for (text, expected) in [
        ("", None),
        ("  ,,==**!!", None),
        ("Jetson AGX Orin (64 GB)\u{7}", Some("Jetson-AGX-Orin-(64-GB)")),
        ("Größe", Some("Gr-e")),
    ] {
        assert_eq!(label_text(text).as_deref(), expected, "{text:?}");
    }
    let long = label_text(&"x y".repeat(100)).unwrap();
    assert!(long.len() <= MAX_LABEL_BYTES && is_label_text(&long));
}

#[test]
fn a_hostile_tree_neither_stops_the_agent_nor_makes_facts_up() {
    let endless = "9-".repeat(1 << 17);
    let attributes = found(&[
        ("proc/device-tree/compatible", &endless),
        ("proc/cpuinfo", &endless),
        ("proc/meminfo", "MemTotal: 99999999999999999999999 kB"),
        ("sys/devices/system/cpu/online", "0-4294967295\n"),
        ("etc/os-release", "ID\n=\nID=\"\n"),
    ]);
    for unsaid in ["memory-bytes", "cpu-count", "os-id"] {
        assert!(!attributes.contains_key(unsaid), "{unsaid}");
    }
    assert!(attributes.iter().all(|(key, value)| is_label_text(key) && is_label_text(value)));
}
