//! What the device is under: pressure, throttling, heat.

use std::sync::atomic::AtomicU64;

use muster_shared::messages::PressureLevel;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// No label at all.
type NoLabels = [(&'static str, &'static str); 0];

/// The metrics of pressure.
#[derive(Default)]
pub(super) struct PressureMetrics {
    level: Gauge,
    pressed: Counter<f64, AtomicU64>,
    // Families without a label show nothing before there is something to show: not every device says anything of these.
    throttled: Family<NoLabels, Counter<f64, AtomicU64>>,
    temperature: Family<NoLabels, Gauge<f64, AtomicU64>>,
}

impl PressureMetrics {
    /// All of them, at zero.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register(
            "pressure",
            "How hard pressed the device is: 0 not at all, 1 no shadow runs, 2 downloads and uploads are slowed as well",
            this.level.clone(),
        );
        registry.register_with_unit("pressed", "Time at a pressure above 0", Unit::Seconds, this.pressed.clone());
        registry.register_with_unit(
            "throttled",
            "Time in which the processor was held back for heat or want of voltage",
            Unit::Seconds,
            this.throttled.clone(),
        );
        registry.register_with_unit(
            "temperature",
            "Temperature of the hottest thermal zone",
            Unit::Celsius,
            this.temperature.clone(),
        );
        this
    }

    /// The level is `level`, and was for `passed_ms`.
    pub(super) fn pressed(&self, level: PressureLevel, passed_ms: u64) {
        self.level.set(match level {
            PressureLevel::None => 0,
            PressureLevel::Some => 1,
            PressureLevel::High | PressureLevel::Other => 2,
        });
        if level != PressureLevel::None {
            self.pressed.inc_by(passed_ms as f64 / 1_000.0);
        }
    }

    /// The processor was held back for `for_ms`, which may be nothing; the device says so.
    pub(super) fn throttled(&self, for_ms: u64) {
        self.throttled.get_or_create(&[]).inc_by(for_ms as f64 / 1_000.0);
    }

    /// It is so hot, in thousandths of a degree Celsius.
    pub(super) fn temperature(&self, temperature_mc: i32) {
        self.temperature.get_or_create(&[]).set(f64::from(temperature_mc) / 1_000.0);
    }
}
