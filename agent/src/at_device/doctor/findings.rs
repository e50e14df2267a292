//! What facts about a device mean, and what to do about them. No file and no network is looked at here.

use std::path::PathBuf;

use muster_agent_core::admit::DISK_RESERVE_BYTES;
use muster_agent_core::renewal::Validity;
use muster_shared::messages::TrackReport;

use super::program::{Program, program};
use super::{Finding, Health};
use crate::status::moment;

/// A certificate with less than this part of its time left should have been renewed.
const LAST_PART: u64 = 8;

/// What was found out. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The device's clock.
    pub(super) now_ms: u64,
    /// When this program was built; 0 where it does not say.
    pub(super) built_ms: u64,
    /// The latest time a verified document has proved to be past.
    pub(super) floor_ms: u64,
    /// Whether the system says that its clock is set by others.
    pub(super) is_synchronised: Option<bool>,
    /// What is wrong with the configuration.
    pub(super) config_fault: Option<String>,
    /// Where the agent keeps its data.
    pub(super) folder: Folder,
    /// Who this device is.
    pub(super) papers: Papers,
    /// The version of the root document, or what is wrong with it; none before the device is enrolled.
    pub(super) root: Option<Result<u64, String>>,
    /// The broker's address, and how far a connection to it comes; none before the device is enrolled.
    pub(super) broker: Option<(String, Reach)>,
    /// The controller's address, and whether it answers; none where it is not known.
    pub(super) controller: Option<(String, Result<(), String>)>,
    /// The committed bundle, whose files are right; or what is wrong with them.
    pub(super) bundle: Result<Option<String>, String>,
    /// The agent's own program, or what is wrong with the record of it.
    pub(super) program: Result<Program, String>,
    /// The running agent, or why it does not answer.
    pub(super) agent: Result<Agent, String>,
    /// What systemd says of the service; none where there is no systemd.
    pub(super) service: Option<String>,
    /// Whether the last run did not end in order.
    pub(super) crashed: bool,
}

/// The data folder.
#[derive(Debug, Clone, Default)]
pub(super) struct Folder {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Whether it is there.
    pub(super) is_there: bool,
    /// Whether others than its owner may look into it.
    pub(super) is_open: bool,
    /// Why this program cannot look into it or write to it.
    pub(super) trouble: Option<String>,
    /// A file in it that does not belong to its owner.
    pub(super) foreign: Option<PathBuf>,
    /// Room on its disk, in bytes.
    pub(super) free_bytes: u64,
}

/// Who the device is.
#[derive(Debug, Clone)]
pub(super) enum Papers {
    /// It is not enrolled.
    None,
    /// They cannot be used.
    Unusable(String),
    /// They fit each other.
    Right {
        /// Its name.
        device: String,
        /// How long its certificate is good.
        validity: Validity,
    },
}

/// How far a connection comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// Its name is not found.
    Name(String),
    /// It does not take connections.
    Tcp(String),
    /// It and the device do not take each other's papers.
    Tls(String),
    /// All the way.
    Right,
}

/// What the running agent says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Agent {
    /// Its version.
    pub(super) version: String,
    /// What has come to a standstill.
    pub(super) stuck: Option<String>,
    /// Whether it is connected to the broker.
    pub(super) is_connected: bool,
    /// Why it last was not.
    pub(super) link_error: Option<String>,
    /// Which program it is; none where it does not say.
    pub(super) program: Option<TrackReport>,
    /// What of its configuration waits for a restart.
    pub(super) waiting: Vec<String>,
}

pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    Finding { check, health: Health::Ok, found: found.into(), hint: None }
}

pub(super) fn bad(check: &'static str, health: Health, found: impl Into<String>, hint: &str) -> Finding {
    Finding { check, health, found: found.into(), hint: Some(hint.to_owned()) }
}

/// What `facts` mean, in the order in which one thing rests on another.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![configuration(facts)];
    all.extend(folder(&facts.folder));
    all.extend([clock(facts), certificate(facts), root(facts)]);
    all.extend(network(facts));
    all.push(bundle(facts));
    all.extend(program(&facts.program));
    all.extend(agent(facts));
    all
}

fn configuration(facts: &Facts) -> Finding {
    let check = "configuration";
    match &facts.config_fault {
        None => ok(check, "it is right"),
        Some(why) => bad(
            check,
            Health::Fault,
            why,
            "put it right and try again with muster-agent check-config; everything below was looked at with default settings",
        ),
    }
}

fn folder(folder: &Folder) -> Vec<Finding> {
    let (check, path) = ("data folder", folder.path.display());
    if let Some(trouble) = &folder.trouble {
        let hint = "run this as root or as the service's user; if that was so, see to its owner and to whether its disk is mounted read-only";
        return vec![bad(check, Health::Fault, format!("{path}: {trouble}"), hint)];
    }
    if !folder.is_there {
        let hint = "it is made by the first start of the service, or by muster-agent enrol";
        return vec![bad(check, Health::Warning, format!("{path} is not there yet"), hint)];
    }
    let first = match &folder.foreign {
        Some(foreign) => bad(
            check,
            Health::Fault,
            format!("{} belongs to another user than its folder", foreign.display()),
            "the agent was run by another user once: give all of the folder back to the service with chown -R",
        ),
        None if folder.is_open => {
            bad(check, Health::Warning, format!("others may look into {path}"), "close it: chmod 700")
        }
        None => ok(check, format!("{path} is there and can be written")),
    };
    let free = folder.free_bytes;
    let space = match free {
        0 => {
            bad("disk", Health::Fault, "it is full", "make room: what is installed serves on, but nothing can be kept")
        }
        1..DISK_RESERVE_BYTES => bad(
            "disk",
            Health::Warning,
            format!("{free} bytes are free"),
            "make room: no bundle is fetched while less than the reserve is free",
        ),
        _ => ok("disk", format!("{} MiB are free", free >> 20)),
    };
    vec![first, space]
}

fn clock(facts: &Facts) -> Finding {
    let (check, now) = ("clock", moment(facts.now_ms, facts.now_ms));
    let earliest_ms = facts.built_ms.max(facts.floor_ms);
    if facts.now_ms < earliest_ms {
        return bad(
            check,
            Health::Fault,
            format!("it says {now}, but {} is past", moment(earliest_ms, facts.now_ms)),
            "set it, or let it be set: timedatectl set-ntp true; a device without a battery for its clock needs a time server",
        );
    }
    match facts.is_synchronised {
        Some(true) => ok(check, format!("{now}, kept by a time server")),
        Some(false) => bad(
            check,
            Health::Warning,
            format!("{now}, kept by nobody"),
            "let a time server keep it: timedatectl set-ntp true",
        ),
        None => ok(check, format!("{now}; the system does not say who keeps it")),
    }
}

fn certificate(facts: &Facts) -> Finding {
    let check = "certificate";
    let (device, validity) = match &facts.papers {
        Papers::None => {
            let hint = "get a token (muster token create at the controller) and give it to muster-agent enrol --token-file FILE";
            return bad(check, Health::Fault, "this device is not enrolled", hint);
        }
        Papers::Unusable(why) => {
            let hint = "if this is not root, try as root first; restore the folder identity from a copy, or remove it and enrol under another name: this one belongs to the key";
            return bad(check, Health::Fault, why, hint);
        }
        Papers::Right { device, validity } => (device, validity),
    };
    let ends = moment(validity.not_after_ms, facts.now_ms);
    if facts.now_ms >= validity.not_after_ms {
        let hint = "see to the clock first; else the device must be enrolled anew: stop the agent, remove identity/identity.json (not the key, which keeps its name), muster-agent enrol";
        return bad(check, Health::Fault, format!("that of {device} ended {ends}"), hint);
    }
    if facts.now_ms < validity.not_before_ms {
        let begins = moment(validity.not_before_ms, facts.now_ms);
        return bad(check, Health::Fault, format!("that of {device} begins {begins}"), "the clock is wrong: set it");
    }
    let (left_ms, all_ms) = (validity.not_after_ms - facts.now_ms, validity.not_after_ms - validity.not_before_ms);
    if left_ms < all_ms / LAST_PART {
        let hint = "it should have been renewed by now: does the controller's address below answer? muster-agent logs says why not";
        return bad(check, Health::Warning, format!("that of {device} ends {ends}"), hint);
    }
    ok(check, format!("that of {device} fits its key and ends {ends}"))
}

fn root(facts: &Facts) -> Finding {
    let check = "root document";
    match &facts.root {
        None => ok(check, "none before the device is enrolled"),
        Some(Ok(version)) => ok(check, format!("version {version} is trusted")),
        Some(Err(why)) => bad(check, Health::Fault, why, "restore the folder trust from a copy, or enrol again"),
    }
}

fn network(facts: &Facts) -> Vec<Finding> {
    let broker = facts.broker.as_ref().map(|(address, reach)| {
        let check = "broker";
        let (why, hint) = match reach {
            Reach::Right => return ok(check, format!("{address} takes this device's certificate")),
            Reach::Name(why) => {
                (why, "the name is not found: see to the network and its name server, or set [broker] host to an address")
            }
            Reach::Tcp(why) => (why, "nothing answers there: see to the network, to firewalls on the way, and to the controller"),
            Reach::Tls(why) => {
                (why, "the two do not take each other's papers: is the clock right, has the device been revoked, is that address the controller's?")
            }
        };
        bad(check, Health::Fault, format!("{address}: {why}"), hint)
    });
    let controller = facts.controller.as_ref().map(|(url, answer)| match answer {
        Ok(()) => ok("controller", format!("{url} answers")),
        Err(why) => bad(
            "controller",
            Health::Warning,
            format!("{url}: {why}"),
            "certificates are renewed there: see to it before this device's ends",
        ),
    });
    [broker, controller].into_iter().flatten().collect()
}

fn bundle(facts: &Facts) -> Finding {
    let check = "bundle";
    match &facts.bundle {
        Ok(Some(bundle)) => ok(check, format!("{bundle} is committed, and its files are what was signed")),
        Ok(None) => bad(
            check,
            Health::Warning,
            "none is committed",
            "nothing has come so far: does a rollout at the controller select this device?",
        ),
        Err(why) => bad(check, Health::Fault, why, "start the agent again: what is damaged is fetched once more"),
    }
}

fn agent(facts: &Facts) -> Vec<Finding> {
    let check = "agent";
    let mut all = Vec::new();
    match &facts.agent {
        Err(why) => {
            all.push(bad(
                check,
                Health::Fault,
                why,
                "start it: systemctl start muster-agent; muster-agent logs says why it ended",
            ));
        }
        Ok(Agent { version, stuck: Some(stuck), .. }) => {
            let hint = "its watchdog starts it again; where it has none, do so: systemctl restart muster-agent";
            all.push(bad(check, Health::Fault, format!("{version} answers, but {stuck}"), hint));
        }
        Ok(agent) => {
            all.push(ok(check, format!("{} answers", agent.version)));
            let why = agent.link_error.as_deref().unwrap_or("it is being tried");
            all.push(if agent.is_connected {
                ok("link", "connected to the broker")
            } else {
                bad(
                    "link",
                    Health::Warning,
                    format!("not connected to the broker: {why}"),
                    "what was found of the broker above says more; the agent goes on trying and serves meanwhile",
                )
            });
            if !agent.waiting.is_empty() {
                let waiting = agent.waiting.join(", ");
                all.push(bad(
                    "settings",
                    Health::Warning,
                    format!("{waiting}: changed, and not in force"),
                    "start the agent again: systemctl restart muster-agent",
                ));
            }
        }
    }
    if let Some(state) = &facts.service {
        let state = state.as_str();
        all.push(match (state, &facts.agent) {
            ("active" | "reloading", _) => ok("service", state),
            (_, Ok(_)) => bad("service", Health::Warning, state, "the agent that answers was not started by the service, and will not be after a reboot: systemctl enable --now muster-agent"),
            ("failed", Err(_)) => bad("service", Health::Fault, state, "see why with muster-agent logs, then systemctl restart muster-agent"),
            (_, Err(_)) => bad("service", Health::Fault, state, "systemctl enable --now muster-agent"),
        });
    }
    if facts.crashed {
        all.push(bad(
            "last run",
            Health::Warning,
            "it did not end in order",
            "a power cut, or a crash: muster-agent logs --since -1d",
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;
    const DAY_MS: u64 = 86_400_000;

    fn well() -> Facts {
        Facts {
            now_ms: NOW_MS,
            built_ms: NOW_MS - 100 * DAY_MS,
            floor_ms: NOW_MS - DAY_MS,
            is_synchronised: Some(true),
            config_fault: None,
            folder: Folder { path: "/data".into(), is_there: true, free_bytes: 1 << 34, ..Folder::default() },
            papers: papers(-10, 80),
            root: Some(Ok(3)),
            broker: Some(("hub:8883".to_owned(), Reach::Right)),
            controller: Some(("https://hub".to_owned(), Ok(()))),
            bundle: Ok(Some("digits@1.0.0".to_owned())),
            program: Ok(Program::default()),
            agent: Ok(Agent { version: "1.2.3".to_owned(), is_connected: true, ..Agent::default() }),
            service: Some("active".to_owned()),
            crashed: false,
        }
    }

    /// Good from so many days from now until so many.
    fn papers(from: i64, until: i64) -> Papers {
        let at = |days: i64| NOW_MS.saturating_add_signed(days * 86_400_000);
        Papers::Right {
            device: "press-7".to_owned(),
            validity: Validity { not_before_ms: at(from), not_after_ms: at(until) },
        }
    }

    #[test]
    fn a_device_on_which_all_is_well_has_no_findings_but_good_ones() {
        for finding in findings(&well()) {
            assert_eq!((finding.health, finding.hint), (Health::Ok, None), "{}: {}", finding.check, finding.found);
        }
    }

    #[test]
    fn each_trouble_is_found_by_itself_and_says_what_to_do() {
        use Health::{Fault, Warning};
        type Case = (&'static str, Health, &'static str, fn(&mut Facts));
        let cases: [Case; 27] = [
            ("configuration", Fault, "check-config", |f| f.config_fault = Some("line 3".to_owned())),
            ("data folder", Warning, "enrol", |f| f.folder.is_there = false),
            ("data folder", Fault, "root", |f| f.folder.trouble = Some("permission denied".to_owned())),
            ("data folder", Fault, "chown", |f| f.folder.foreign = Some("/data/x".into())),
            ("data folder", Warning, "chmod 700", |f| f.folder.is_open = true),
            ("disk", Fault, "make room", |f| f.folder.free_bytes = 0),
            ("disk", Warning, "make room", |f| f.folder.free_bytes = 4_096),
            ("clock", Fault, "set-ntp", |f| f.built_ms = NOW_MS + 1),
            ("clock", Fault, "set-ntp", |f| f.floor_ms = NOW_MS + 1),
            ("clock", Warning, "set-ntp", |f| f.is_synchronised = Some(false)),
            ("certificate", Fault, "muster-agent enrol", |f| f.papers = Papers::None),
            ("certificate", Fault, "under another name", |f| f.papers = Papers::Unusable("damaged".to_owned())),
            ("certificate", Fault, "enrolled anew", |f| f.papers = papers(-90, 0)),
            ("certificate", Fault, "clock", |f| f.papers = papers(1, 90)),
            ("certificate", Warning, "renewed", |f| f.papers = papers(-80, 10)),
            ("root document", Fault, "restore", |f| f.root = Some(Err("damaged".to_owned()))),
            ("broker", Fault, "name server", |f| f.broker = Some(("hub:1".to_owned(), Reach::Name("no".to_owned())))),
            ("broker", Fault, "firewalls", |f| f.broker = Some(("hub:1".to_owned(), Reach::Tcp("no".to_owned())))),
            ("broker", Fault, "revoked", |f| f.broker = Some(("hub:1".to_owned(), Reach::Tls("no".to_owned())))),
            ("controller", Warning, "renewed", |f| {
                f.controller = Some(("https://hub".to_owned(), Err("no".to_owned())))
            }),
            ("bundle", Warning, "rollout", |f| f.bundle = Ok(None)),
            ("bundle", Fault, "fetched once more", |f| f.bundle = Err("model.onnx is damaged".to_owned())),
            ("agent", Fault, "restart", |f| f.agent.as_mut().unwrap().stuck = Some("it stands".to_owned())),
            ("link", Warning, "goes on trying", |f| f.agent.as_mut().unwrap().is_connected = false),
            ("settings", Warning, "restart", |f| f.agent.as_mut().unwrap().waiting = vec!["serve".to_owned()]),
            ("service", Warning, "enable --now", |f| f.service = Some("inactive".to_owned())),
            ("last run", Warning, "logs", |f| f.crashed = true),
        ];
        for (check, health, hint, change) in cases {
            let mut facts = well();
            change(&mut facts);
            let bad: Vec<_> = findings(&facts).into_iter().filter(|finding| finding.health > Health::Ok).collect();
            assert_eq!(bad.len(), 1, "{check} {hint}: {bad:?}");
            assert_eq!((bad[0].check, bad[0].health), (check, health), "{hint}");
            let told = bad[0].hint.as_deref().unwrap_or_default();
            assert!(told.contains(hint), "{check}: {told:?} does not say {hint:?}");
        }
    }

    #[test]
    fn an_agent_that_does_not_run_is_a_fault_and_so_is_its_service() {
        let mut facts = Facts { agent: Err("nobody answers".to_owned()), service: Some("failed".to_owned()), ..well() };
        let faults = |facts: &Facts| {
            let all = findings(facts).into_iter().filter(|finding| finding.health == Health::Fault);
            all.map(|finding| finding.check).collect::<Vec<_>>()
        };
        assert_eq!(faults(&facts), ["agent", "service"]);
        facts.service = None;
        assert_eq!(faults(&facts), ["agent"]);
    }

    #[test]
    fn a_system_that_does_not_say_who_keeps_its_clock_is_no_trouble() {
        let facts = Facts { is_synchronised: None, built_ms: 0, ..well() };
        assert!(findings(&facts).iter().all(|finding| finding.health == Health::Ok));
    }
}
