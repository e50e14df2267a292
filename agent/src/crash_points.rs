//! The named steps of an update, at each of which `muster-agent-crashing` can be made to die as in a power cut.
//!
//! Compiled only with the feature `crash-points`; the agent itself has neither this module nor a call of it. `MUSTER_AGENT_CRASH_AT`
//! says where: `record-stored:3` ends the process with SIGKILL when it passes that step for the third time, `list` prints every
//! step. What must hold after such a death is for `tests/crashes` to say.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_agent_core::record::Record;
use muster_shared::messages::DeviceEventKind;

const VARIABLE: &str = "MUSTER_AGENT_CRASH_AT";

/// Marks that a step has been reached: `passing!(ChunkWritten)`, or `passing!(record &record)` where a record was stored.
macro_rules! passing {
    (record $record:expr) => {
        crate::crash_points::pass_record($record)
    };
    ($step:ident) => {
        crate::crash_points::pass(crate::crash_points::Step::$step)
    };
}

macro_rules! steps {
    ($($step:ident = $name:literal,)+) => {
        /// A step, named after what has just been done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Step { $($step),+ }

        const ALL: &[(Step, &str)] = &[$((Step::$step, $name)),+];
    };
}

steps! {
    // Any small file that is replaced whole.
    FileWritten = "file-written",
    FileSynced = "file-synced",
    BeforeKept = "before-kept",
    FileRenamed = "file-renamed",
    // A start.
    StartCounted = "start-counted",
    OutboxOpening = "outbox-opening",
    OutboxOpened = "outbox-opened",
    RunNoted = "run-noted",
    CommittedLoaded = "committed-loaded",
    Published = "published",
    // An assignment.
    AssignmentVerified = "assignment-verified",
    TimeFloorStored = "time-floor-stored",
    ManifestStored = "manifest-stored",
    AssignmentStored = "assignment-stored",
    AssignmentDateStored = "assignment-date-stored",
    // Files.
    SlotEmptied = "slot-emptied",
    RoomReserved = "room-reserved",
    SlotPrepared = "slot-prepared",
    ChunkWritten = "chunk-written",
    ChunkCopied = "chunk-copied",
    ChunksSynced = "chunks-synced",
    BitmapStored = "bitmap-stored",
    FilesChecked = "files-checked",
    // A trial.
    VerifiedStored = "verified-stored",
    TrySpent = "try-spent",
    ModelTested = "model-tested",
    TrialStored = "trial-stored",
    PointerMoved = "pointer-moved",
    CommitStored = "commit-stored",
    Tidied = "tidied",
    // A model beside the incumbent.
    BesideStored = "beside-stored",
    BesideBegun = "beside-begun",
    BesideAnswered = "beside-answered",
    BesideRun = "beside-run",
    BesideEnded = "beside-ended",
    // The agent's own program.
    ProgramManifestStored = "program-manifest-stored",
    ProgramSlotPrepared = "program-slot-prepared",
    ProgramRecordStored = "program-record-stored",
    ProgramBarrierStored = "program-barrier-stored",
    ProgramRehearsed = "program-rehearsed",
    ProgramAnswered = "program-answered",
    ProgramStartSpent = "program-start-spent",
    ProgramLaunching = "program-launching",
    // Whatever is stored and told.
    RecordStored = "record-stored",
    BarrierPending = "barrier-pending",
    BarrierStored = "barrier-stored",
    EventKept = "event-kept",
    Reported = "reported",
    WindowClosed = "window-closed",
    TelemetryKept = "telemetry-kept",
    MessageBatched = "message-batched",
    LogFlushed = "log-flushed",
    MessageDurable = "message-durable",
    AckTaken = "ack-taken",
    AckForgotten = "ack-forgotten",
}

static PLAN: OnceLock<Option<(Step, u64)>> = OnceLock::new();
static PASSED: AtomicU64 = AtomicU64::new(0);

/// Reads what is planned. Prints every step instead, and says so, where that is asked for.
pub(crate) fn begin() -> anyhow::Result<bool> {
    let Ok(asked) = std::env::var(VARIABLE) else {
        PLAN.get_or_init(|| None);
        return Ok(false);
    };
    if asked == "list" {
        ALL.iter().for_each(|(_, name)| crate::say(name));
        return Ok(true);
    }
    let planned = asked.split_once(':').and_then(|(name, nth)| {
        let (step, _) = ALL.iter().find(|(_, known)| *known == name)?;
        Some((*step, nth.parse::<u64>().ok()?))
    });
    anyhow::ensure!(planned.is_some(), "{VARIABLE}={asked:?} is no STEP:NUMBER: ask for `list`");
    PLAN.get_or_init(|| planned);
    Ok(false)
}

pub(crate) fn pass(step: Step) {
    if let Some(Some((planned, nth))) = PLAN.get()
        && *planned == step
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *nth
    {
        die();
    }
}

/// A record was stored; what it has to tell says which step of an update that was.
pub(crate) fn pass_record(record: &Record) {
    pass(Step::RecordStored);
    let of_update = record.untold.last().and_then(|untold| match untold.kind {
        DeviceEventKind::Assigned => Some(Step::AssignmentStored),
        DeviceEventKind::Verified => Some(Step::VerifiedStored),
        DeviceEventKind::Trial => Some(Step::TrialStored),
        DeviceEventKind::Committed => Some(Step::CommitStored),
        DeviceEventKind::Beside => Some(Step::BesideStored),
        DeviceEventKind::Started
        | DeviceEventKind::Crashed
        | DeviceEventKind::Refused
        | DeviceEventKind::Reverted
        | DeviceEventKind::Failed
        | DeviceEventKind::Withdrawn
        | DeviceEventKind::StaleMetadata
        | DeviceEventKind::Alarm
        | DeviceEventKind::Other => None,
    });
    if let Some(step) = of_update {
        pass(step);
    }
}

/// Nothing of this process runs on after the signal: no destructor, no flush.
fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}
