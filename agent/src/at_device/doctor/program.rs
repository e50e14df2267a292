//! What the state of the agent's own program means, and what to do about it.

use muster_shared::ids::Digest;
use muster_shared::messages::{TrackReport, UpdateState};

use super::findings::{bad, ok};
use super::{Finding, Health};

const CHECK: &str = "program";

/// The agent's own program.
#[derive(Debug, Clone, Default)]
pub(super) struct Program {
    /// How it stands with it.
    pub(super) report: TrackReport,
    /// Whether the running agent says so; else it is what the record says.
    pub(super) runs: bool,
    /// The whole programs whose files are not right: the manifest, and what is wrong in words.
    pub(super) damaged: Vec<(Digest, String)>,
}

/// What `program` means.
pub(super) fn program(program: &Result<Program, String>) -> Vec<Finding> {
    let Program { report, runs, damaged } = match program {
        Ok(program) => program,
        Err(why) => {
            let hint = "the package's program runs until the controller assigns one anew; see to the disk, which lost what was written";
            return vec![bad(CHECK, Health::Warning, why, hint)];
        }
    };
    let TrackReport { update, running, committed, .. } = report;
    let named = |bundle: &Option<muster_shared::messages::InstalledBundle>| match bundle {
        Some(bundle) => bundle.bundle.to_string(),
        None => "the package's program".to_owned(),
    };
    let (runs_now, stands) = (named(running), named(committed));
    let is_committed = running.as_ref().map(|it| it.manifest) == committed.as_ref().map(|it| it.manifest);
    let reason = update.reason.as_deref().unwrap_or("it did not say why");
    let mut all = vec![match update.state {
        UpdateState::Trial => {
            let hint = "nothing: it is committed or given up by itself, and the device may be switched off meanwhile";
            let found = format!("{runs_now}; a trial is under way, and {stands} is what it falls back to");
            Finding { hint: Some(hint.to_owned()), ..ok(CHECK, found) }
        }
        UpdateState::Reverted => bad(
            CHECK,
            Health::Warning,
            format!("{runs_now}; the one of generation {} was given up: {reason}", update.generation),
            "that one is not tried again: mend it and bring out another version; muster-agent logs says what it did",
        ),
        UpdateState::Failed => bad(
            CHECK,
            Health::Warning,
            format!("{runs_now}; the one of generation {} was not started: {reason}", update.generation),
            "what the reason names has to be put right, then bring it out again with another rollout",
        ),
        UpdateState::Idle
        | UpdateState::Fetching
        | UpdateState::Verified
        | UpdateState::Beside
        | UpdateState::Committed
        | UpdateState::Other => settled(*runs, is_committed, &runs_now, &stands),
    }];
    all.extend(damaged.iter().map(|(manifest, what)| {
        let is_committed = committed.as_ref().is_some_and(|bundle| bundle.manifest == *manifest);
        let hint = if is_committed {
            "from the next start on the package's program runs in its place: bring it out again, and see to the disk"
        } else {
            "it does not run, and is fetched again when it is needed; see to the disk"
        };
        bad(CHECK, Health::Warning, what, hint)
    }));
    all
}

/// While nothing is on trial and nothing failed.
fn settled(runs: bool, is_committed: bool, runs_now: &str, stands: &str) -> Finding {
    match (runs, is_committed) {
        (true, false) => bad(
            CHECK,
            Health::Warning,
            format!("{runs_now}, and not {stands}, which is committed"),
            "it could not be started: muster-agent logs says why; bring it out again where it is damaged",
        ),
        (true, true) => ok(CHECK, format!("{runs_now} runs")),
        (false, _) => ok(CHECK, format!("{stands} is to run")),
    }
}

#[cfg(test)]
mod tests {
    use muster_shared::messages::InstalledBundle;

    use super::*;

    fn bundle(minor: u8) -> Option<InstalledBundle> {
        let bundle = format!("muster-agent@0.{minor}.0").parse().unwrap();
        Some(InstalledBundle { manifest: Digest::of(&[minor]), bundle, generation: u64::from(minor) })
    }

    /// A device that runs program 2 for good.
    fn well() -> Program {
        let mut report = TrackReport { running: bundle(2), committed: bundle(2), ..TrackReport::default() };
        report.update.state = UpdateState::Committed;
        Program { report, runs: true, damaged: Vec::new() }
    }

    #[test]
    fn it_is_said_which_program_runs() {
        let found = |given: Program| {
            let all = program(&Ok(given));
            assert!(all.len() == 1 && all[0].health == Health::Ok, "{all:?}");
            all[0].found.clone()
        };
        assert_eq!(found(well()), "muster-agent@0.2.0 runs");
        assert_eq!(found(Program { runs: false, ..well() }), "muster-agent@0.2.0 is to run");
        assert_eq!(found(Program { runs: true, ..Program::default() }), "the package's program runs");
        let mut trial = well();
        trial.report.running = bundle(3);
        trial.report.update.state = UpdateState::Trial;
        let text = found(trial);
        assert!(text.contains("0.3.0; a trial") && text.contains("0.2.0 is what it falls back to"), "{text}");
    }

    #[test]
    fn each_trouble_says_what_to_do() {
        type Case = (&'static str, &'static str, fn(&mut Program));
        let gave_up = |state, reason: &str, given: &mut Program| {
            given.report.update.state = state;
            given.report.update.reason = Some(reason.to_owned());
        };
        let mut given_up = well();
        gave_up(UpdateState::Reverted, "3 starts", &mut given_up);
        let mut refused = well();
        gave_up(UpdateState::Failed, "too large", &mut refused);
        let cases: [Case; 3] = [
            ("and not muster-agent@0.2.0", "muster-agent logs", |p| p.report.running = None),
            ("slot a", "the package's program runs", |p| p.damaged.push((Digest::of(&[2]), "slot a".to_owned()))),
            ("slot b", "fetched again", |p| p.damaged.push((Digest::of(&[1]), "slot b".to_owned()))),
        ];
        let mut all = vec![
            ("3 starts", "another version", Ok(given_up)),
            ("too large", "put right", Ok(refused)),
            ("torn", "see to the disk", Err("torn".to_owned())),
        ];
        all.extend(cases.map(|(says, hint, change)| {
            let mut given = well();
            change(&mut given);
            (says, hint, Ok(given))
        }));
        for (says, hint, given) in all {
            let bad: Vec<_> = program(&given).into_iter().filter(|finding| finding.health > Health::Ok).collect();
            assert!(bad.len() == 1 && bad[0].health == Health::Warning, "{says}: {bad:?}");
            assert!(bad[0].found.contains(says), "{bad:?}");
            assert!(bad[0].hint.as_ref().is_some_and(|told| told.contains(hint)), "{bad:?}");
        }
    }
}
