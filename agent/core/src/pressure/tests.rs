//! What presses, when it is over, and that nothing flaps.

use proptest::prelude::*;

use super::*;

fn memory(some_bp: u32, full_bp: u32) -> Signs {
    Signs { memory: Some(Stall { some_bp, full_bp }), ..Signs::default() }
}

fn hot(mc: i32) -> Signs {
    Signs { temperature_mc: Some(mc), ..Signs::default() }
}

fn throttled(throttling: Throttling) -> Signs {
    Signs { throttling: Some(throttling), ..Signs::default() }
}

/// The level after one look, and what is said of it.
fn at_once(signs: &Signs) -> (Level, String) {
    let mut pressure = Pressure::default();
    pressure.observe(signs, 0);
    (pressure.level(), pressure.cause().map(|cause| cause.to_string()).unwrap_or_default())
}

#[test]
fn each_sign_has_its_thresholds_and_its_words() {
    let used = |bp| Signs { memory_used_bp: Some(bp), ..Signs::default() };
    for (signs, level, said) in [
        (Signs::default(), Level::None, ""),
        (memory(999, 499), Level::None, ""),
        (memory(1_000, 0), Level::Some, "short of memory: work waits for it 10 % of the time, all of it 0 %"),
        (memory(3_999, 500), Level::Some, "short of memory"),
        (memory(4_000, 0), Level::High, "short of memory"),
        (memory(0, 2_000), Level::High, "short of memory"),
        (used(9_499), Level::None, ""),
        (used(9_500), Level::Some, "short of memory: 95 % of it is gone"),
        (used(9_800), Level::High, "short of memory"),
        // Where the kernel says that nothing waits for memory, much of it in use is no harm.
        (Signs { memory_used_bp: Some(9_900), ..memory(0, 0) }, Level::None, ""),
        (hot(79_999), Level::None, ""),
        (hot(80_000), Level::Some, "hot: 80 °C"),
        (hot(90_000), Level::High, "hot: 90 °C"),
        (hot(-40_000), Level::None, ""),
        (throttled(Throttling::None), Level::None, ""),
        (throttled(Throttling::Heat), Level::Some, "held back for heat"),
        (throttled(Throttling::UnderVoltage), Level::Some, "held back by its power supply: the voltage is too low"),
        (Signs { temperature_mc: Some(95_000), ..memory(1_500, 0) }, Level::High, "hot: 95 °C"),
    ] {
        let (found, text) = at_once(&signs);
        assert_eq!(found, level, "{signs:?}");
        assert!(text.starts_with(said) && text.is_empty() == said.is_empty(), "{text:?}");
    }
}

#[test]
fn a_level_rises_at_once_and_falls_after_a_minute_of_calm() {
    let mut pressure = Pressure::default();
    assert!(pressure.observe(&memory(5_000, 0), 0) && pressure.level() == Level::High);
    // Below the threshold, but not below half of it.
    assert!(!pressure.observe(&memory(2_100, 0), 5_000));
    assert!(!pressure.observe(&memory(0, 0), 10_000));
    assert!(!pressure.observe(&memory(0, 0), 69_999));
    assert_eq!(pressure.level(), Level::High);
    assert!(pressure.observe(&memory(0, 0), 70_000));
    assert!(pressure.level() == Level::Some && pressure.cause().is_some(), "by one");
    assert!(!pressure.observe(&memory(0, 0), 75_000) && !pressure.observe(&memory(0, 0), 134_999));
    assert!(pressure.observe(&memory(0, 0), 135_000));
    assert_eq!((pressure.level(), pressure.cause()), (Level::None, None));
    // Calm that is broken off begins anew.
    assert!(pressure.observe(&hot(81_000), 200_000));
    assert!(!pressure.observe(&hot(70_000), 201_000) && !pressure.observe(&hot(80_000), 230_000));
    assert!(!pressure.observe(&hot(70_000), 231_000) && !pressure.observe(&hot(70_000), 290_999));
    assert!(!pressure.observe(&hot(75_000), 291_000), "not five degrees below");
    assert!(!pressure.observe(&hot(74_999), 300_000));
    assert!(pressure.observe(&hot(74_999), 360_000) && pressure.level() == Level::None);
}

#[test]
fn the_controller_is_told_of_the_first_and_then_every_ten_minutes_at_most() {
    let mut pressure = Pressure::default();
    assert!(!pressure.is_to_be_told(0));
    pressure.observe(&hot(85_000), 1_000);
    assert!(pressure.is_to_be_told(1_000) && !pressure.is_to_be_told(2_000));
    pressure.observe(&hot(40_000), 10_000);
    pressure.observe(&hot(40_000), 70_000);
    assert_eq!(pressure.level(), Level::None);
    assert!(!pressure.is_to_be_told(600_999) && pressure.is_to_be_told(601_000), "the end is told, too, if later");
    assert!(!pressure.is_to_be_told(10_000_000));
}

#[test]
fn the_controller_is_told_of_another_temperature_and_of_what_holds_the_processor_back() {
    let mut pressure = Pressure::default();
    let mut told = |signs: Signs, now_ms| {
        pressure.observe(&signs, now_ms);
        pressure.is_to_be_told(now_ms)
    };
    assert!(told(hot(50_000), 0), "it was not known before");
    assert!(!told(hot(54_999), 700_000) && !told(hot(45_001), 800_000));
    assert!(told(hot(55_000), 900_000) && !told(hot(40_000), 1_499_999) && told(hot(40_000), 1_500_000));
    assert!(told(throttled(Throttling::None), 2_200_000), "the temperature is not known any more");
    assert!(told(throttled(Throttling::Heat), 3_000_000) && told(throttled(Throttling::UnderVoltage), 4_000_000));
    assert!(!told(throttled(Throttling::UnderVoltage), 5_000_000));
    // That it is pressed, or not any more, waits for nothing but the last such word.
    assert!(told(hot(20_000), 6_000_000) && told(hot(20_000), 6_060_000) && told(hot(26_000), 7_000_000));
    assert!(told(hot(85_000), 7_005_000) && !told(hot(95_000), 7_010_000));
}

proptest! {
    #[test]
    fn what_changes_is_told_within_ten_minutes_and_no_oftener_than_twice_in_them(
        looks in prop::collection::vec(any_signs(), 1..400)
    ) {
        let mut pressure = Pressure::default();
        let mut told_ms = Vec::new();
        let mut known = None;
        for (look, signs) in looks.iter().enumerate() {
            let now_ms = look as u64 * 5_000;
            pressure.observe(signs, now_ms);
            if pressure.is_to_be_told(now_ms) {
                told_ms.push(now_ms);
                known = Some((pressure.level(), signs.throttling));
            }
            let lately = told_ms.iter().filter(|told_ms| now_ms - **told_ms < TELL_MS).count();
            prop_assert!(lately <= 2, "{:?}", told_ms);
            if lately == 0 {
                prop_assert_eq!(known.unwrap_or_default(), (pressure.level(), signs.throttling));
            }
        }
    }
}

#[test]
fn only_a_device_that_is_hard_pressed_fetches_slowly() {
    let rollout =
        |cap| DeliveryPolicy { max_download_bytes_per_s: cap, ignore_quiet_hours: true, ..DeliveryPolicy::default() };
    for level in [Level::None, Level::Some] {
        assert_eq!(slowed(rollout(None), level), rollout(None));
    }
    for (cap, then) in [(None, 32_768), (Some(1_000_000), 32_768), (Some(1_000), 1_000)] {
        assert_eq!(slowed(rollout(cap), Level::High), rollout(Some(then)));
    }
}

fn any_stall() -> impl Strategy<Value = Option<Stall>> {
    prop::option::of((0u32..=10_000, 0u32..=10_000).prop_map(|(some_bp, full_bp)| Stall { some_bp, full_bp }))
}

fn any_signs() -> impl Strategy<Value = Signs> {
    let throttling = prop::sample::select(vec![Throttling::None, Throttling::Heat, Throttling::UnderVoltage]);
    let parts = (
        any_stall(),
        prop::option::of(0u32..=10_000),
        prop::option::of(-50_000i32..150_000),
        prop::option::of(throttling),
    );
    parts.prop_map(|(memory, memory_used_bp, temperature_mc, throttling)| Signs {
        memory,
        memory_used_bp,
        temperature_mc,
        throttling,
    })
}

/// `signs` with everything that presses pressing at least as much.
fn worse(signs: &Signs, by: u32) -> Signs {
    let more =
        |stall: Stall| Stall { some_bp: stall.some_bp.saturating_add(by), full_bp: stall.full_bp.saturating_add(by) };
    Signs {
        memory: signs.memory.map(more),
        memory_used_bp: signs.memory_used_bp.map(|bp| bp.saturating_add(by)),
        temperature_mc: signs.temperature_mc.map(|mc| mc.saturating_add(by.try_into().unwrap())),
        throttling: signs.throttling,
    }
}

proptest! {
    #[test]
    fn no_level_falls_within_its_hold_and_none_rises_for_nothing(
        looks in prop::collection::vec((any_signs(), 0u64..30_000), 1..200)
    ) {
        let mut pressure = Pressure::default();
        let (mut now_ms, mut changed_ms) = (0_u64, None::<u64>);
        for (signs, pause_ms) in looks {
            now_ms += pause_ms;
            let before = pressure.level();
            let alone = at_once(&signs).0;
            let changed = pressure.observe(&signs, now_ms);
            let after = pressure.level();
            prop_assert_eq!(changed, before != after);
            prop_assert!(after >= alone, "never less than what the signs ask for by themselves");
            if after < before {
                prop_assert!(changed_ms.is_some_and(|at| now_ms - at >= HOLD_MS));
            }
            if after > before {
                prop_assert_eq!(after, alone);
            }
            prop_assert_eq!(pressure.cause().is_some(), after != Level::None);
            if changed {
                changed_ms = Some(now_ms);
            }
        }
    }

    #[test]
    fn more_pressure_never_means_more_work(
        looks in prop::collection::vec((any_signs(), 0u32..5_000, 0u64..90_000), 1..100)
    ) {
        let (mut calm, mut pressed) = (Pressure::default(), Pressure::default());
        let mut now_ms = 0_u64;
        for (signs, by, pause_ms) in looks {
            now_ms += pause_ms;
            calm.observe(&signs, now_ms);
            pressed.observe(&worse(&signs, by), now_ms);
            prop_assert!(pressed.level() >= calm.level());
        }
    }

    #[test]
    fn calm_ends_every_level(looks in prop::collection::vec(any_signs(), 0..50)) {
        let mut pressure = Pressure::default();
        for signs in &looks {
            pressure.observe(signs, 0);
        }
        for calm_ms in [1, 1 + HOLD_MS, 2 + HOLD_MS, 2 + 2 * HOLD_MS] {
            pressure.observe(&Signs::default(), calm_ms);
        }
        prop_assert_eq!(pressure.level(), Level::None);
    }
}
