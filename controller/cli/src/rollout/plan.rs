//! `muster rollout plan`: what a rollout would do, and what its gate could tell.

use muster_rollout::statistics::{MIN_BLOCKS, Power, power};
use muster_shared::ids::DeviceId;
use muster_shared::listing::{by_reason, first_few};
use muster_shared::rollout::{Analysis, IntakePreview, MetricTemplate, RolloutPreview, RolloutSpec, WavePreview};
use serde::Serialize;

use super::create::{self, Wish};
use super::{abort, deadline, words};
use crate::command::{Context, block_on};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::output::{self, cell, number};

/// Devices and blocks of a wave that are named; `--output json` has all.
const SHOWN: usize = 8;

/// What a wave's comparison could tell.
#[derive(Debug, Serialize)]
struct WavePower {
    blocks: usize,
    /// Controls of a block, on average and rounded.
    controls: u32,
    /// The least loss that would be seen four times in five, in spreads of scores between devices.
    least_loss: Option<f64>,
    /// The least margin that an equal bundle would be shown to keep four times in five, in the same spreads.
    least_margin: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Planned {
    #[serde(flatten)]
    preview: RolloutPreview,
    /// One for each wave; none without a gate.
    power: Vec<Option<WavePower>>,
}

fn wave_power(wave: &WavePreview) -> Option<WavePower> {
    let alpha = wave.alpha?;
    let (blocks, all) = (wave.blocks.len(), wave.blocks.iter().map(|block| block.controls.len()).sum::<usize>());
    let rounded = (all + blocks / 2).checked_div(blocks).unwrap_or(0);
    let controls = u32::try_from(rounded).unwrap_or(u32::MAX);
    let Power { least_loss, least_margin } = power(u32::try_from(blocks).unwrap_or(u32::MAX), controls, alpha);
    Some(WavePower { blocks, controls, least_loss, least_margin })
}

fn names<'d>(devices: impl ExactSizeIterator<Item = &'d DeviceId>) -> String {
    first_few(devices, SHOWN)
}

/// An analysis in a line: `success-rate@2 in wave 1: errors (5 measurements)`.
fn analysis(analysis: &Analysis) -> String {
    let waves = match analysis.waves.as_slice() {
        [] => "every wave".to_owned(),
        [wave] => format!("wave {wave}"),
        waves => format!("waves {}", first_few(waves, SHOWN)),
    };
    let counted = |metric: &MetricTemplate| match metric.needed() {
        1 => format!("{} (1 measurement)", metric.name),
        n => format!("{} ({n} measurements)", metric.name),
    };
    format!("  {} in {waves}: {}", analysis.template, first_few(analysis.metrics.iter().map(counted), SHOWN))
}

/// How long a wave's devices take to come in.
fn comes_in(IntakePreview { least_ms, most_ms }: IntakePreview) -> String {
    match (least_ms, most_ms) {
        (_, 0) => "at once".to_owned(),
        (0, most) => format!("at once or within {}", Millis(most).rough()),
        (least, most) if least == most => format!("within {}", Millis(most).rough()),
        (least, most) => format!("within {} to {}", Millis(least).rough(), Millis(most).rough()),
    }
}

/// What the columns of the comparison say, and what comes of too few blocks.
fn what_power_means(spec: &RolloutSpec) -> String {
    let experiment = (0u32..)
        .zip(&spec.waves)
        .find(|(wave, _)| spec.gate_of(*wave).is_some_and(|gate| gate.asks_for_gain()))
        .map_or_else(String::new, |(wave, _)| {
            format!(
                ". Wave {} must show that canaries are better, so it pauses instead; it shows a gain that is larger than asked for by the margin it proves",
                u64::from(wave) + 1
            )
        });
    format!(
        "Losses and margins are four times in five, in spreads of scores between devices: where their error rates differ by 2 points, one spread is 2 points. Fewer than {MIN_BLOCKS} blocks prove nothing: such a wave rests on its limits{experiment}."
    )
}

fn text(planned: &Planned) -> String {
    let Planned { preview, power } = planned;
    let waves = preview.waves.iter().zip(power).enumerate().map(|(index, (wave, power))| {
        let spec = preview.spec.waves.get(index);
        let spreads = |value: Option<f64>| output::optional(value, |spreads| format!("{spreads:.2} spreads"));
        let blocks =
            power.as_ref().map_or_else(|| "-".to_owned(), |power| format!("{} 1:{}", power.blocks, power.controls));
        vec![
            cell(words::wave_name(index, preview.waves.len(), spec)),
            cell(spec.map_or_else(String::new, |spec| Millis(spec.soak_ms).rough())),
            number(wave.devices.len().to_string()),
            number(wave.offline.len().to_string()),
            number(blocks),
            number(spreads(power.as_ref().and_then(|power| power.least_loss))),
            number(spreads(power.as_ref().and_then(|power| power.least_margin))),
            cell(names(wave.devices.iter())),
        ]
    });
    let header = ["wave", "soak", "devices", "away", "blocks", "sees a loss of", "proves a margin of", "which"];
    let mut parts = vec![output::table(&header, waves)];
    if power.iter().flatten().next().is_some() {
        parts.push(what_power_means(&preview.spec));
    }
    if let Some(rate) = &preview.spec.rate {
        let waves = preview.waves.iter().zip(1..).filter_map(|(wave, number)| Some((number, wave.intake?)));
        let said: Vec<String> = waves.map(|(number, intake)| format!("wave {number} {}", comes_in(intake))).collect();
        parts.push(format!("{rate}: {}", said.join(", ")));
    }
    for (wave, number) in preview.waves.iter().zip(1..).filter(|(wave, _)| !wave.blocks.is_empty()) {
        let mut blocks: Vec<String> = wave
            .blocks
            .iter()
            .take(SHOWN)
            .map(|block| format!("  {} beside {}", block.canary, names(block.controls.iter())))
            .collect();
        if wave.blocks.len() > SHOWN {
            blocks.push(format!("  and {} more", wave.blocks.len() - SHOWN));
        }
        parts.push(format!("blocks of wave {number}:\n{}", blocks.join("\n")));
    }
    if let Some(approval) = &preview.approval {
        let named = preview.spec.approval.as_ref().map(|asked| asked.approvers.as_slice()).unwrap_or_default();
        let of = if named.is_empty() { String::new() } else { format!(", of {}", first_few(named, SHOWN)) };
        parts.push(format!("begins with {} approvals{of}", approval.needed));
    }
    if !preview.analyses.is_empty() {
        let analyses: Vec<String> = preview.analyses.iter().map(analysis).collect();
        parts.push(format!("waves must stand:\n{}", analyses.join("\n")));
    }
    parts.extend(preview.spec.deadlines.as_ref().map(|deadlines| format!("deadlines: {}", deadline::text(deadlines))));
    if !preview.spec.abort_criteria.is_empty() {
        parts.push(format!("ends by itself:\n{}", abort::text(&preview.spec.abort_criteria)));
    }
    if !preview.ends.is_empty() {
        parts.push(format!("ends, as an emergency: {}", first_few(&preview.ends, SHOWN)));
    }
    if !preview.group.is_empty() {
        parts.push(format!("held back for good, to compare with: {}", names(preview.group.iter())));
    }
    if !preview.held.is_empty() {
        parts.push(format!("held by another rollout: {}", names(preview.held.iter())));
    }
    if !preview.unsuitable.is_empty() {
        let reasons = preview.unsuitable.iter().map(|(id, why)| (id, why.as_str()));
        parts.push(format!("left out: {}", by_reason(reasons, SHOWN)));
    }
    parts.iter().map(|part| output::clean(part)).collect::<Vec<_>>().join("\n\n")
}

/// Does what was asked.
///
/// # Errors
/// [`Failure`] when the controller refuses.
pub(super) fn run(context: &Context, wish: &Wish) -> Result<(), Failure> {
    let spec = create::spec(wish)?;
    let preview: RolloutPreview = block_on(context.client()?.post(&["rollouts", "preview"], &spec))?;
    let power = preview.waves.iter().map(wave_power).collect();
    context.output.show(&Planned { preview, power }, text)
}

#[cfg(test)]
mod tests {
    use muster_shared::rollout::{GateSpec, Guardrail, Metric, WaveSpec};
    use muster_shared::selector::Selector;
    use muster_shared::trust::Stage;

    use super::*;

    #[test]
    fn a_wave_that_must_show_a_gain_is_not_said_to_rest_on_limits() {
        let said = |rails: &[Guardrail]| {
            let waves = ["1", "50%", "100%"].map(|size| WaveSpec::of(size.parse().unwrap(), 1_000, 60_000));
            let plain = RolloutSpec::of("digits@1.0.0".parse().unwrap(), Selector::all(), waves.to_vec());
            let mut spec = RolloutSpec { gate: Some(GateSpec::of(rails.to_vec())), ..plain };
            spec.waves[0].stage = Some(Stage::Shadow { share_bp: 10_000 });
            what_power_means(&spec)
        };
        let kept = Guardrail::of(Metric::ErrorRate, Some(0.03));
        let plain = said(std::slice::from_ref(&kept));
        assert!(plain.ends_with("Fewer than 10 blocks prove nothing: such a wave rests on its limits."), "{plain}");
        let experiment = said(&[Guardrail::of(Metric::LabelError, Some(0.0)), kept]);
        assert!(
            experiment.contains("rests on its limits. Wave 2 must show that canaries are better, so it pauses"),
            "{experiment}"
        );
    }

    #[test]
    fn an_analysis_is_a_line() {
        let metric = |name: &str, count: Option<u32>| serde_json::json!({"name": name, "count": count, "interval": "1s", "successCondition": "true", "provider": {"fleet": {}}});
        let metrics = [metric("errors", Some(5)), metric("share", None)];
        let said = |waves: &[u32]| {
            let read = serde_json::json!({"template": "success-rate@2", "waves": waves, "metrics": metrics});
            analysis(&serde_json::from_value(read).unwrap())
        };
        let measured = "errors (5 measurements), share (1 measurement)";
        assert_eq!(said(&[]), format!("  success-rate@2 in every wave: {measured}"));
        assert_eq!(said(&[1]), format!("  success-rate@2 in wave 1: {measured}"));
        assert_eq!(said(&[1, 3]), format!("  success-rate@2 in waves 1, 3: {measured}"));
    }
}
