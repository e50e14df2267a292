//! A rollout in a file. YAML and TOML have the words of flags; a JSON file holds what the API takes.

use std::path::Path;

use muster_shared::ids::BundleRef;
use muster_shared::rollout::{
    AbortCriterion, AnalysisUse, MAX_PRIORITY, MaintenanceWindow, Rate, RolloutSpec, WaveSize, WaveSpec,
};
use muster_shared::selector::Selector;
use schemars::JsonSchema;
use serde::Deserialize;

use super::contradiction::contradiction;
use super::{DeliveryOptions, LimitOptions, Pace, ProbationOptions};
use crate::duration::Millis;
use crate::failure::Failure;
use crate::moment::Moment;
use crate::rollout::approval::ApprovalOptions;
use crate::rollout::blue_green::BlueGreenOptions;
use crate::rollout::deadline::DeadlineOptions;
use crate::rollout::gate::GateOptions;
use crate::rollout::reach::{JoiningWord, ReachOptions};
use crate::rollout::shadow_first::ShadowFirstTable;
use crate::rollout::stage::{Share, StageOptions, StageWord};
use crate::rollout::turn::{ConflictWord, TurnOptions};
use crate::{disk, settings_file};

const MAX_SPEC_BYTES: u64 = 1024 * 1024;

/// A rollout as its file has it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::rollout) struct SpecFile {
    /// The bundle to bring out.
    bundle: BundleRef,
    /// The devices meant, by labels and attributes; '*' for all.
    selector: Selector,
    /// The least time each wave is watched after its devices have committed [default: 10m].
    soak: Option<Millis>,
    /// Pause if a wave has no verdict after this [default: 1h].
    max_duration: Option<Millis>,
    /// The waves, in order; the last must be 100%. One for everybody where none is given.
    #[serde(default)]
    waves: Vec<WaveTable>,
    #[serde(default)]
    limits: LimitOptions,
    #[serde(default)]
    gate: GateOptions,
    /// Analyses that waves must stand beside their limits.
    #[serde(default)]
    analyses: Vec<AnalysisUse>,
    #[serde(default)]
    approval: ApprovalOptions,
    /// Begin at this time [default: at once].
    start_at: Option<Moment>,
    /// Where it means devices of another rollout that has not ended [default: skip].
    conflict: Option<ConflictWord>,
    /// Of those that queue for the same devices, the highest goes first [default: 50].
    #[schemars(range(max = MAX_PRIORITY))]
    priority: Option<u8>,
    /// Devices come in only in these windows, by their own clocks.
    #[serde(default)]
    windows: Vec<MaintenanceWindow>,
    /// The time zone of devices that name none by the label or attribute timezone, as Europe/Paris [default: UTC].
    timezone: Option<String>,
    #[serde(default)]
    watch: ProbationOptions,
    #[serde(default)]
    delivery: DeliveryOptions,
    /// Which devices switch together; left out, each switches when it can.
    blue_green: Option<BlueGreenOptions>,
    /// How long each device may take before it is timed_out; left out, as long as the wave may last.
    deadlines: Option<DeadlineOptions>,
    /// When so many devices fail that it ends by itself; up to 8.
    #[serde(default)]
    abort_criteria: Vec<AbortCriterion>,
    /// In which part devices run the bundle [default: serve].
    stage: Option<StageWord>,
    /// The share of requests it runs on (shadow) or answers (split) [default: 100% of a shadow].
    share: Option<Share>,
    /// What a split is called: the same name deals the same keys to the same bundle.
    experiment: Option<String>,
    /// Everybody at once, held against nothing.
    #[serde(default)]
    emergency: bool,
    /// Share of the devices that keeps what it has for good, as 5%.
    holdback: Option<WaveSize>,
    /// What becomes of devices that the selector means only after the rollout began [default: include].
    joining: Option<JoiningWord>,
    /// How fast devices come in, in the words of AWS IoT Jobs; left out, as many at once as a wave has room for.
    rate: Option<Rate>,
    /// A wave before all others that runs the bundle as shadow on devices which are then the first to serve it.
    shadow_first: Option<ShadowFirstTable>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WaveTable {
    /// How large it is, all waves before it included: a number of devices ('3') or a share (25%).
    size: WaveSize,
    /// Narrows the wave to some of the rollout's devices, as to one site.
    selector: Option<Selector>,
    /// As above, of this wave.
    soak: Option<Millis>,
    /// As above, of this wave.
    max_duration: Option<Millis>,
    /// Shadow, to run the bundle beside the one in service: in the first waves, and not in the last [default: serve].
    stage: Option<StageWord>,
    /// The share of requests that a shadow runs on [default: 100%].
    share: Option<Share>,
}

impl WaveTable {
    fn wave(self, pace: Pace) -> Result<WaveSpec, Failure> {
        let own = Pace { soak: self.soak, max_duration: self.max_duration };
        let part = StageOptions { stage: self.stage, share: self.share, experiment: None };
        let stage = if self.stage.is_some() || self.share.is_some() { Some(part.stage()?) } else { None };
        Ok(WaveSpec { stage, ..pace.wave(self.size, self.selector, own) })
    }
}

/// The rollout that a file describes: JSON or YAML if its name ends so, TOML otherwise.
///
/// # Errors
/// [`Failure`] with line and field.
pub(in crate::rollout) fn from_file(path: &Path) -> Result<RolloutSpec, Failure> {
    read(&disk::read_text(path, MAX_SPEC_BYTES)?, path)
}

/// The same of `text`, which stands in the file at `path`.
pub(super) fn read(text: &str, path: &Path) -> Result<RolloutSpec, Failure> {
    let spec = parse(text, path)?;
    spec.validate().map_err(|error| contradiction(&error, text, path))?;
    Ok(spec)
}

fn parse(text: &str, path: &Path) -> Result<RolloutSpec, Failure> {
    let fault = |reason: String| Failure::input(format!("{}: {}", path.display(), reason.trim_end()));
    if settings_file::is_named(path, &["json"]) {
        return serde_json::from_str(text).map_err(|error| fault(error.to_string()));
    }
    let file: SpecFile = settings_file::parse(text, path)?;
    let stage = StageOptions { stage: file.stage, share: file.share, experiment: file.experiment };
    let turn = TurnOptions {
        start_at: file.start_at,
        conflict: file.conflict,
        priority: file.priority,
        windows: file.windows,
        timezone: file.timezone,
    };
    let pace = Pace { soak: file.soak, max_duration: file.max_duration }.or_at_once(file.emergency);
    let waves: Vec<WaveSpec> = if file.waves.is_empty() {
        vec![pace.wave(WaveSize::Percent(100), None, Pace::default())]
    } else {
        file.waves.into_iter().map(|wave| wave.wave(pace)).collect::<Result<_, _>>()?
    };
    let waves = file.shadow_first.map(|first| first.wave(pace)).into_iter().chain(waves).collect();
    let reach = ReachOptions { holdback: file.holdback, joining: file.joining };
    Ok(RolloutSpec {
        limits: file.limits.limits(),
        gate: file.gate.gate(),
        analyses: file.analyses,
        approval: file.approval.approval(),
        watch: file.watch.policy(),
        delivery: file.delivery.policy(),
        stage: stage.stage()?,
        emergency: file.emergency,
        blue_green: file.blue_green.as_ref().map(BlueGreenOptions::blue_green),
        rate: file.rate,
        deadlines: file.deadlines.map(DeadlineOptions::deadlines),
        abort_criteria: file.abort_criteria,
        ..turn.apply(reach.of(RolloutSpec::of(file.bundle, file.selector, waves)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use muster_shared::rollout::Limits;
    use muster_shared::trust::Stage;

    use super::super::{Metered, from_flags};
    use super::*;
    use crate::rollout::shadow_first::ShadowFirstOptions;

    fn read(name: &str, text: &str) -> Result<RolloutSpec, Failure> {
        super::read(text, Path::new(name))
    }

    #[test]
    fn flags_and_files_mean_the_same() {
        let flags = from_flags(
            "digits@1.1.0".parse().unwrap(),
            "site=lyon".parse().unwrap(),
            &["1:ring=canary".parse().unwrap(), "100%".parse().unwrap()],
            Pace { soak: Some(Millis(5_000)), max_duration: None },
            LimitOptions { max_failures: Some(1), ..LimitOptions::default() },
            ProbationOptions { probation: Some(Millis(2_000)), ..ProbationOptions::default() },
            DeliveryOptions {
                metered: Some(Metered::Never),
                max_download_bytes_per_s: Some(9_000),
                ..Default::default()
            },
        );
        let toml = "bundle = \"digits@1.1.0\"\nselector = \"site=lyon\"\nsoak = \"5s\"\n\
            [[waves]]\nsize = \"1\"\nselector = \"ring=canary\"\n[[waves]]\nsize = \"100%\"\n\
            [limits]\nmax-failures = 1\n[watch]\nprobation = \"2s\"\n\
            [delivery]\nmetered = \"never\"\nmax-download-bytes-per-s = 9000\n";
        assert_eq!(read("r.toml", toml).unwrap(), flags);
        let yaml = "bundle: digits@1.1.0\nselector: site=lyon\nsoak: 5s\nwaves:\n  - size: '1'\n    selector: ring=canary\n  - size: 100%\n\
            limits:\n  max-failures: 1\nwatch: {probation: 2s}\ndelivery: {metered: never, max-download-bytes-per-s: 9000}\n";
        assert_eq!(read("r.yaml", yaml).unwrap(), flags);
        assert_eq!(read("r.JSON", &serde_json::to_string(&flags).unwrap()).unwrap(), flags);
        assert_eq!(flags.validate(), Ok(()));
        assert_eq!(flags.waves[1].max_duration_ms, 3_600_000);
        assert_eq!(flags.limits.min_requests, Limits::default().min_requests);
    }

    #[test]
    fn a_file_says_who_is_left_out() {
        let text = "bundle: a@1.0.0\nselector: '*'\nholdback: 5%\njoining: exclude\n";
        let spec = read("r.yaml", text).unwrap();
        let flags = ReachOptions { holdback: Some(WaveSize::Percent(5)), joining: Some(JoiningWord::Exclude) };
        let plain = read("r.yaml", "bundle: a@1.0.0\nselector: '*'\n").unwrap();
        assert_eq!(flags.of(plain.clone()), spec);
        assert_ne!(plain, spec);
        assert_eq!(read("r.json", &serde_json::to_string(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn a_file_says_how_fast_devices_come_in() {
        let text = "bundle: a@1.0.0\nselector: '*'\nrate:\n  maximum_per_minute: 200\n  exponential_rate:\n    base_rate_per_minute: 10\n    \
            increment_factor: 1.5\n    rate_increase_criteria: {number_of_notified_things: 50}\n";
        let spec = read("r.yaml", text).unwrap();
        assert_eq!(spec.validate(), Ok(()));
        let said = spec.rate.map(|rate| rate.to_string());
        assert_eq!(
            said.as_deref(),
            Some("10 devices a minute, times 1.5 whenever 50 more have been told, at most 200")
        );
        assert_eq!(read("r.json", &serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        let unknown = read("r.yaml", &text.replace("number_of_notified_things", "told")).unwrap_err().to_string();
        assert!(unknown.contains("number_of_notified_things") && unknown.contains("line 8"), "{unknown}");
    }

    #[test]
    fn a_file_says_how_long_devices_may_take() {
        let text = "bundle: a@1.0.0\nselector: '*'\ndeadlines: {in-progress: 30m, offline: 24h}\n";
        let spec = read("r.yaml", text).unwrap();
        let deadlines = spec.deadlines.unwrap();
        assert_eq!((deadlines.in_progress_ms, deadlines.offline_ms), (Some(1_800_000), Some(86_400_000)));
        assert_eq!(read("r.json", &serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        let short = read("r.yaml", &text.replace("30m", "30s")).unwrap_err().to_string();
        assert!(
            short.contains("r.yaml: line 3: deadlines: in_progress_ms must be longer than watch.probation_ms"),
            "{short}"
        );
        let ends = format!(
            "{text}abort-criteria:\n  - {{failure_type: timed_out, threshold_percentage: 20, min_number_of_executed_things: 10}}\n"
        );
        let spec = read("r.yaml", &ends).unwrap();
        let flag = "timed_out:20%:10".parse::<crate::rollout::abort::CriterionFlag>().unwrap();
        assert_eq!((spec.abort_criteria.as_slice(), spec.validate()), (&[flag.0][..], Ok(())));
    }

    #[test]
    fn an_emergency_is_one_wave_for_everybody_at_once() {
        let text = "bundle = \"a@1.0.0\"\nselector = \"*\"\nemergency = true\n";
        let spec = read("r.toml", text).unwrap();
        assert!(spec.emergency && spec.validate().is_ok(), "{spec:?}");
        assert_eq!((spec.waves.len(), spec.waves[0].soak_ms), (1, 0));
        assert_eq!(read("r.json", &serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        let careful = read("r.toml", &format!("{text}soak = \"1s\"\n")).unwrap_err().to_string();
        assert!(careful.contains("line 3: an emergency") && careful.contains("leave out"), "{careful}");
    }

    #[test]
    fn a_file_says_in_which_part_a_bundle_runs() {
        let base = "bundle = \"a@1.0.0\"\nselector = \"*\"\n";
        let shadow = read("r.toml", &format!("{base}stage = \"shadow\"\nshare = \"2.5%\"\n")).unwrap();
        assert_eq!(shadow.stage, Stage::Shadow { share_bp: 250 });
        assert_eq!(read("r.json", &serde_json::to_string(&shadow).unwrap()).unwrap(), shadow);
        let split = read("r.toml", &format!("{base}stage = \"split\"\nshare = \"50%\"\nexperiment = \"warm\"\n"));
        assert_eq!(split.unwrap().stage, Stage::Split { share_bp: 5_000, experiment: "warm".into() });
        assert!(read("r.toml", &format!("{base}share = \"50%\"\n")).unwrap_err().to_string().contains("--stage"));
    }

    #[test]
    fn a_file_says_who_runs_a_shadow_first() {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            first: ShadowFirstOptions,
        }
        let flags = ["x", "--shadow-first", "50%:site=lyon", "--shadow-share", "20%", "--shadow-soak", "1h"];
        let flags = <Flags as clap::Parser>::parse_from(flags).first;
        let base = "bundle: a@1.0.0\nselector: '*'\nsoak: 5m\nmax-duration: 2h\n";
        let pace = Pace { soak: Some(Millis(300_000)), max_duration: Some(Millis(7_200_000)) };
        let flags = flags.of(read("r.yaml", base).unwrap(), pace);
        let part = "size: 50%, selector: site=lyon, share: 20%, soak: 1h";
        assert_eq!(read("r.yaml", &format!("{base}shadow-first: {{{part}}}\n")).unwrap(), flags);
        let waves = format!("{base}waves: [{{{part}, stage: shadow}}, {{size: 100%}}]\n");
        assert_eq!(read("r.yaml", &waves).unwrap(), flags);
        assert_eq!(read("r.json", &serde_json::to_string(&flags).unwrap()).unwrap(), flags);
        assert_eq!((flags.validate(), flags.waves.len(), flags.waves[0].soak_ms), (Ok(()), 2, 3_600_000));
        assert_eq!(flags.stage_of(0), &Stage::Shadow { share_bp: 2_000 });
        let said = crate::rollout::words::wave_name(0, 2, flags.waves.first());
        assert_eq!(said, "wave 1/2 (50% of site=lyon, shadow of 20 %)");
        let limit = read("r.yaml", &format!("{base}limits: {{max-disagreement: 0.02}}\n")).unwrap_err().to_string();
        assert!(limit.contains("line 5: limit max_disagreement: only a shadow disagrees"), "{limit}");
    }

    #[test]
    fn a_file_says_what_canaries_are_compared_by() {
        let base = "bundle = \"a@1.0.0\"\nselector = \"*\"\n[gate]\n";
        let text =
            format!("{base}guardrails = [\"error-rate=3%\", \"failures\"]\nmatch-on = [\"site\"]\ncontrols = 2\n");
        let spec = read("r.toml", &text).unwrap();
        let gate = spec.gate.clone().unwrap();
        assert_eq!((gate.alpha, gate.controls, gate.guardrails.len()), (0.05, 2, 2));
        assert_eq!(read("r.json", &serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        let unknown = read("r.toml", &format!("{base}guardrails = [\"errors\"]\n")).unwrap_err().to_string();
        assert!(unknown.contains("line 4") && unknown.contains("error-rate"), "{unknown}");
    }

    #[test]
    fn a_file_says_which_analyses_waves_must_stand() {
        let yaml = "bundle: a@1.0.0\nselector: '*'\nanalyses:\n  - template: errors@2\n    args: {most: '0.1'}\n    waves: [1]\n";
        let spec = read("r.yaml", yaml).unwrap();
        let [asked] = spec.analyses.as_slice() else { panic!("{:?}", spec.analyses) };
        assert_eq!(
            (asked.template.to_string(), asked.args["most"].as_str(), asked.waves.clone()),
            ("errors@2".into(), "0.1", vec![1])
        );
        assert_eq!(read("r.json", &serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        let toml = "bundle = \"a@1.0.0\"\nselector = \"*\"\n[[analyses]]\ntemplate = \"errors@2\"\nargs = { most = \"0.1\" }\nwaves = [1]\n";
        assert_eq!(read("r.toml", toml).unwrap(), spec);
        let wrong = read("r.yaml", &yaml.replace("waves", "wave")).unwrap_err().to_string();
        assert!(wrong.contains("unknown field `wave`") && wrong.contains("line 6"), "{wrong}");
    }

    #[test]
    fn a_file_says_who_must_approve() {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            approval: ApprovalOptions,
        }
        let flags = ["x", "--approvals", "2", "--approver", "ann", "--approver", "bob", "--approve-within", "2d"];
        let flags = <Flags as clap::Parser>::parse_from(flags).approval.approval();
        let file =
            "bundle: a@1.0.0\nselector: '*'\napproval: {approvals: 2, approvers: [ann, bob], approve-within: 2d}\n";
        let spec = read("r.yaml", file).unwrap();
        assert_eq!((&spec.approval, spec.validate()), (&flags, Ok(())));
        let approval = flags.unwrap();
        assert_eq!((approval.needed, approval.within_ms), (2, Some(172_800_000)));
        assert_eq!(read("r.json", &serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        let nobody = "bundle: a@1.0.0\nselector: '*'\napproval: {approve-within: 2d}\n";
        let nobody = read("r.yaml", nobody).unwrap_err().to_string();
        assert!(nobody.contains("line 3: approval: 0 approvals"), "{nobody}");
    }

    #[test]
    fn a_file_says_which_devices_switch_together() {
        let base = "bundle = \"a@1.0.0\"\nselector = \"*\"\n";
        let spec = read("r.toml", &format!("{base}[blue-green]\ngroup-by = \"line\"\nlead = \"2s\"\n")).unwrap();
        let blue_green = spec.blue_green.clone().unwrap();
        assert_eq!((blue_green.group_by.as_str(), blue_green.lead_ms), ("line", 2_000));
        assert_eq!(read("r.json", &serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        let yaml = read("r.yaml", "bundle: a@1.0.0\nselector: '*'\nblue-green: {}\n").unwrap();
        assert_eq!(yaml.blue_green, Some(muster_shared::rollout::BlueGreen::default()));
        let unknown = read("r.toml", &format!("{base}[blue-green]\ngroup = \"site\"\n")).unwrap_err().to_string();
        assert!(unknown.contains("line 4") && unknown.contains("group-by"), "{unknown}");
    }

    #[test]
    fn a_file_says_when_and_beside_which_others() {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            turn: TurnOptions,
        }
        let window = ["--window", "sat,sun 22:00-05:00", "--timezone", "Europe/Paris"];
        let flags = ["x", "--start-at", "2026-03-01T23:00:00+01:00", "--conflict", "queue", "--priority", "80"];
        let flags = flags.into_iter().chain(window);
        let turn = <Flags as clap::Parser>::parse_from(flags).turn;
        let base = "bundle = \"a@1.0.0\"\nselector = \"*\"\n";
        let flags = turn.apply(read("r.toml", base).unwrap());
        let file = format!(
            "{base}start-at = \"2026-03-01T22:00:00Z\"\nconflict = \"queue\"\npriority = 80\ntimezone = \"Europe/Paris\"\n\
             windows = [{{ days = [\"sat\", \"sun\"], from = \"22:00\", to = \"05:00\" }}]\n"
        );
        assert_eq!(read("r.toml", &file).unwrap(), flags);
        assert_eq!(read("r.json", &serde_json::to_string(&flags).unwrap()).unwrap(), flags);
        let wrong = read("r.toml", &format!("{base}conflict = \"fight\"\n")).unwrap_err().to_string();
        assert!(wrong.contains("line 3") && wrong.contains("refuse"), "{wrong}");
    }

    #[test]
    fn one_wave_for_everybody_unless_told_otherwise() {
        let spec = read("r.toml", "bundle = \"a@1.0.0\"\nselector = \"*\"\n").unwrap();
        assert_eq!((spec.waves.len(), spec.waves[0].size), (1, WaveSize::Percent(100)));
        let own = "bundle = \"a@1.0.0\"\nselector = \"*\"\nsoak = \"1m\"\n[[waves]]\nsize = \"100%\"\nsoak = \"2m\"\n";
        assert_eq!(read("r.toml", own).unwrap().waves[0].soak_ms, 120_000);
    }

    #[test]
    fn mistakes_name_file_and_line() {
        for (name, text, expected) in [
            ("r.toml", "bundle = \"a\"\nselector = \"*\"\n", "line 1"),
            ("r.toml", "bundle = \"a@1.0.0\"\nselector = \"\"\n", "selector is empty"),
            ("r.toml", "bundle = \"a@1.0.0\"\nselector = \"*\"\nsoak = 3\n", "line 3"),
            (
                "r.toml",
                "bundle = \"a@1.0.0\"\nselector = \"*\"\n[limits]\nmax-erors = 1\n",
                "unknown field `max-erors`",
            ),
            ("r.json", "{\"bundle\": \"a@1.0.0\",\n]", "line 2"),
            ("r.yaml", "bundle: a@1.0.0\nselector: '*'\nsoaks: 5s\n", "unknown field `soaks`"),
            ("r.yml", "bundle: a@1.0.0\nselector: '*'\nlimits:\n  max-failures: few\n", "line 4"),
        ] {
            let message = read(name, text).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains(name), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(text in ".{0,80}", at in 0usize..58, with in ".{0,6}") {
            let good = "bundle = \"a@1.0.0\"\nselector = \"*\"\n[[waves]]\nsize = \"100%\"\n";
            let _ = parse(&format!("{}{with}{}", &good[..at], &good[at..]), Path::new("r.toml"));
            let _ = parse(&text, Path::new("r.toml"));
            let _ = parse(&text, Path::new("r.yaml"));
            let _ = parse(&format!("{{\"bundle\":{text}"), Path::new("r.json"));
        }
    }
}
