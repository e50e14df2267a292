//! Brings assigned bundles onto the device: carries out what [`muster_agent_core::update::Machine`] decides.
//!
//! One thread owns the record, the slots and trust, and does one thing after another, so that nothing is ever half done
//! by two. What takes long (checking files, loading a model) runs on a thread of its own and comes back as one more
//! input. Serving goes on meanwhile: the model in [`ModelHost`] is replaced only once its successor has passed its test.

mod base;
mod download;
mod effects;
mod gate;
mod inputs;
mod model;
mod offers;
mod program;
mod records;
mod slot_files;
mod stored;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use muster_agent_core::fetch::Step;
use muster_agent_core::pressure::slowed;
use muster_agent_core::program::Event as ProgramEvent;
use muster_agent_core::ration::Ration;
use muster_agent_core::refusals::Refusals;
use muster_agent_core::slots::Slot;
use muster_agent_core::update::{Event, FileDamage, Machine};
use muster_inference::golden::GoldenReport;
use muster_shared::feedback::FeedbackReceipt;
use muster_shared::ids::{BundleRef, DeviceId, Digest};
use muster_shared::limits::bounded_text;
use muster_shared::messages::{ChunkRequest, DeviceEvent, DeviceEventKind, FreezeProtection, InstalledBundle};
use muster_shared::trust::{Envelope, Track};
use tokio::sync::{Notify, mpsc, oneshot};

use self::download::Download;
use self::gate::Asking;
pub(crate) use self::gate::{Gate, minute_of_day, zone};
use self::model::Loaded;
use self::program::ProgramTrack;
use self::records::Records;
pub(crate) use self::records::RecordsError;
use self::slot_files::SlotFiles;
pub(crate) use self::stored::{SelfTested, check_committed, self_test_committed, stored_record};
use crate::attributes;
use crate::causes::with_source;
use crate::config::Config;
use crate::files::FileError;
use crate::garbage;
use crate::heartbeat::{Begun, Heartbeat};
use crate::host::{ModelHost, ServedModel};
use crate::metrics::Metrics;
use crate::mqtt::{LinkState, Told};
use crate::outbox::Outbox;
use crate::program::Running as RunningProgram;
use crate::samples::Samples;
use crate::system::System;
use crate::time::{Steady, wall_ms};
use crate::trust_store::TrustStore;

/// Inputs that may wait; what comes on top is passed over and comes again.
pub(crate) const INBOX: usize = 64;
/// How often a model on trial is looked at, in milliseconds.
const WATCH_MS: u64 = 250;
/// The longest the thread sleeps, in milliseconds.
const IDLE_MS: u64 = 5_000;

/// How long one turn may take beside what it waits, in milliseconds: loading a model of which the files had to be repaired, say.
const WORK_MS: u64 = 60_000;
/// Self-tests in an hour: each costs a write to flash, and nobody has to prove who asks for one.
const SELF_TESTS_PER_HOUR: usize = 30;

/// What the updater takes in.
pub(crate) enum Input {
    /// Something the device was told.
    Told(Told),
    /// Look again: the link came or went.
    Wake,
    /// Tell the controller how it stands.
    Report,
    /// Work that ran apart is over.
    Done(Done),
    /// The configuration has changed.
    Settings(Arc<Config>),
    /// The agent stops.
    Stop,
}

/// Work that ran apart.
pub(crate) enum Done {
    Checked { generation: u64, result: Result<(), FileDamage> },
    Tested { slot: Slot, generation: u64, result: Result<(Box<Loaded>, GoldenReport), String> },
    Program(ProgramEvent),
    SelfTested { running: InstalledBundle, result: Result<GoldenReport, String> },
}

/// What came of one step of a download.
enum Turn {
    /// Nothing to do before this time, by the updater's clock, or before something comes.
    Pause(Option<u64>),
    /// Chunks were asked for.
    Asked,
    /// Chunks are durable.
    Durable { generation: u64, chunks: Vec<u32> },
    /// It cannot go on.
    Obstructed { generation: u64, reason: String },
}

/// What the updater needs.
pub(crate) struct Parts {
    pub(crate) data_dir: PathBuf,
    pub(crate) device: DeviceId,
    pub(crate) trust: TrustStore,
    pub(crate) host: ModelHost,
    pub(crate) outbox: Outbox,
    pub(crate) metrics: Metrics,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) system: System,
    pub(crate) starts: u64,
    /// Counts tests of models, so that one that never ends is found out.
    pub(crate) tests: Begun,
    /// How long a model may take to load and to run its golden examples, in milliseconds.
    pub(crate) load_within_ms: u64,
    pub(crate) chunk_timeout_ms: u64,
    /// What bundles may take on disk in all, in bytes.
    pub(crate) disk_allowed_bytes: u64,
    pub(crate) gate: Gate,
    pub(crate) link: LinkState,
    pub(crate) requests: mpsc::Sender<ChunkRequest>,
    /// Takes what came of labels from the centre.
    pub(crate) receipts: mpsc::Sender<FeedbackReceipt>,
    /// Told when the controller asks for another certificate to be fetched.
    pub(crate) renew: Arc<Notify>,
    pub(crate) samples: Samples,
    /// Which program this process is.
    pub(crate) program: RunningProgram,
    /// The configuration's file, for a program that is tried; none where all is as it comes.
    pub(crate) config_file: Option<PathBuf>,
    /// Told when the agent is to start again with another program.
    pub(crate) restart: Arc<Notify>,
}

/// Why the updater cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdaterError {
    /// The record cannot be used.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// A folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// No thread could be started.
    #[error("the system gives no thread for updates")]
    Thread(#[source] std::io::Error),
}

pub(crate) struct Updater {
    parts: Parts,
    machine: Machine,
    records: Records,
    slots: SlotFiles,
    loaded: BTreeMap<Slot, Loaded>,
    download: Option<Download>,
    program: ProgramTrack,
    /// What was wrong with the record of programs.
    program_alarm: Option<String>,
    /// The manifest that came with the offer being handled.
    offered: Option<(Digest, Envelope)>,
    refusals: Refusals,
    self_tests: Ration,
    /// Whether one is running.
    self_testing: bool,
    /// The update whose model is being tested, and since when, by `clock`.
    testing: Option<(u64, u64)>,
    /// Requests for chunks so far.
    asked: u64,
    link_epoch: u64,
    clock: Steady,
    inbox: SyncSender<Input>,
    stop: Arc<AtomicBool>,
    heartbeat: Heartbeat,
    /// Told once what can serve serves.
    ready: Option<oneshot::Sender<()>>,
    /// When what has not reached the outbox is brought to it again, by `clock`.
    tell_again_ms: u64,
}

/// A running updater.
pub(crate) struct Running {
    pub(crate) heartbeat: Heartbeat,
    inbox: SyncSender<Input>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Tells the updater to end, and waits until it has.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.inbox.try_send(Input::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the updater ended with a panic");
        }
    }

    /// Tells the updater that the configuration has changed; false when it has no room for that at the moment.
    pub(crate) fn settings(&self, config: &Arc<Config>) -> bool {
        self.inbox.try_send(Input::Settings(Arc::clone(config))).is_ok()
    }

    /// What asks the updater to tell the controller how it stands.
    pub(crate) fn reporter(&self) -> impl Fn() + use<> {
        let inbox = self.inbox.clone();
        // Where there is no room for it, the next report says the same.
        move || drop(inbox.try_send(Input::Report))
    }

    /// Whether the updater has ended, which it must not by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Updater {
    /// Reads what is stored. Nothing is loaded yet.
    ///
    /// # Errors
    /// [`UpdaterError`] when the record cannot be used.
    pub(crate) fn open(parts: Parts, inbox: SyncSender<Input>, crashed: bool) -> Result<Self, UpdaterError> {
        let mut records = Records::open(&parts.data_dir)?;
        let record = records.load()?;
        let clock = Steady::start();
        let (program, program_alarm) = ProgramTrack::open(&parts.data_dir, &parts.program);
        let updater = Self {
            program,
            program_alarm,
            slots: SlotFiles::new(&parts.data_dir),
            machine: Machine::new(record),
            records,
            loaded: BTreeMap::new(),
            download: None,
            offered: None,
            refusals: Refusals::default(),
            self_tests: Ration::new(SELF_TESTS_PER_HOUR, 3_600_000),
            self_testing: false,
            testing: None,
            asked: 0,
            link_epoch: 0,
            clock,
            inbox,
            stop: Arc::new(AtomicBool::new(false)),
            heartbeat: Heartbeat::new("the updater"),
            ready: None,
            tell_again_ms: 0,
            parts,
        };
        let exposed = updater.machine.record().exposed_bundle();
        updater.tell(DeviceEventKind::Started, exposed.as_ref(), &format!("start {}", updater.parts.starts));
        if crashed {
            updater.tell(DeviceEventKind::Crashed, exposed.as_ref(), "the agent had not been stopped in order");
        }
        Ok(updater)
    }

    /// Runs on a thread of its own. `ready` is told once the committed bundle serves, or cannot.
    ///
    /// # Errors
    /// [`UpdaterError::Thread`].
    pub(crate) fn start(mut self, input: Receiver<Input>, ready: oneshot::Sender<()>) -> Result<Running, UpdaterError> {
        let (inbox, stop, heartbeat) = (self.inbox.clone(), Arc::clone(&self.stop), self.heartbeat.clone());
        let thread = std::thread::Builder::new()
            .name("updater".to_owned())
            .spawn(move || {
                self.ready = Some(ready);
                self.heartbeat.beat(self.parts.load_within_ms);
                self.dispatch(Event::Started);
                self.report();
                if !self.stopping() {
                    self.clear_slots();
                }
                self.is_ready();
                if !self.stopping() {
                    let alarm = self.program_alarm.take();
                    self.begin_program(alarm);
                }
                self.run(&input);
            })
            .map_err(UpdaterError::Thread)?;
        Ok(Running { heartbeat, inbox, stop, thread })
    }

    fn run(&mut self, input: &Receiver<Input>) {
        while !self.stopping() {
            self.heartbeat.beat(WORK_MS);
            self.look_at_link();
            self.check_assignment_date();
            self.tell_again();
            self.give_test_up();
            if self.parts.samples.has_news() {
                self.report();
            }
            let fetch_ms = self.drive_download();
            let now_ms = self.clock.now_ms();
            let is_watching = self.machine.is_watching() || self.program.machine.is_watching();
            let watch_ms = is_watching.then_some(now_ms + WATCH_MS);
            let switch_ms = self.switch_when_due();
            let wake_ms =
                [fetch_ms, watch_ms, switch_ms].into_iter().flatten().min().unwrap_or(u64::MAX).min(now_ms + IDLE_MS);
            match input.recv_timeout(Duration::from_millis(wake_ms.saturating_sub(now_ms))) {
                Ok(Input::Told(told)) => self.told(&told),
                Ok(Input::Done(done)) => self.done(done),
                Ok(Input::Settings(config)) => self.settings(&config),
                Ok(Input::Report) => self.report(),
                Ok(Input::Wake) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.machine.is_watching() {
                self.dispatch(Event::Tick { counts: self.parts.host.counts() });
            }
            self.watch_program();
        }
        self.heartbeat.end();
        self.dispatch(Event::Stopping);
        self.program_event(ProgramEvent::Stopping);
    }

    /// Goes on with other settings: chunks under way are not affected.
    fn settings(&mut self, config: &Config) {
        if let Some(alarm) = self.parts.gate.change(&config.delivery) {
            self.parts.outbox.alarm(&alarm);
        }
        self.parts.attributes = attributes::all(&self.parts.system, self.data_dir(), &config.attributes);
        self.parts.disk_allowed_bytes = config.storage.max_bytes;
        self.parts.chunk_timeout_ms = config.broker.chunk_timeout_ms;
        self.report();
    }

    /// Lets what is ready take its part when its time has come; says when to look again, by the updater's clock. A time that a signed
    /// document has proved to be past counts also where the clock cannot be believed.
    fn switch_when_due(&mut self) -> Option<u64> {
        let (generation, at_ms) = self.machine.switch_at()?;
        let ahead_ms = at_ms.saturating_sub(self.parts.trust.now_ms());
        if ahead_ms == 0 {
            self.dispatch(Event::Due { generation });
            return None;
        }
        Some(self.clock.now_ms().saturating_add(ahead_ms))
    }

    fn is_ready(&mut self) {
        if let Some(ready) = self.ready.take() {
            // Whoever waited may have been told to stop.
            let _ = ready.send(());
        }
    }

    /// Brings to the outbox what it did not take before.
    fn tell_again(&mut self) {
        let now_ms = self.clock.now_ms();
        if self.machine.record().untold.is_empty() || now_ms < self.tell_again_ms {
            return;
        }
        self.tell_again_ms = now_ms.saturating_add(IDLE_MS);
        // Ended early by a stop, it is told at the next start.
        let _ = self.tell_untold();
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn look_at_link(&mut self) {
        let epoch = self.parts.link.epoch();
        if epoch == self.link_epoch {
            return;
        }
        self.link_epoch = epoch;
        let connected = epoch % 2 == 1;
        for download in [&mut self.download, &mut self.program.download].into_iter().flatten() {
            download.connection(connected);
        }
        self.parts.gate.nothing_under_way();
        if connected {
            self.check_root_date();
        }
    }

    /// Asks for chunks and makes durable what came; says when to look again, by the updater's clock.
    fn drive_download(&mut self) -> Option<u64> {
        let before = self.parts.gate.held_back();
        // Models go first: a program that runs can wait for its successor.
        let track = if self.download.is_some() { Track::Model } else { Track::Program };
        let again_ms = self.next_chunks(track);
        if self.parts.gate.held_back() != before {
            self.report();
        }
        again_ms
    }

    fn next_chunks(&mut self, track: Track) -> Option<u64> {
        loop {
            match self.turn(track)? {
                Turn::Pause(again_ms) => return again_ms,
                Turn::Asked => {}
                Turn::Durable { generation, chunks } => {
                    let now_ms = self.clock.now_ms();
                    match track {
                        Track::Model => self.dispatch(Event::ChunksDurable { generation, chunks }),
                        Track::Program => self.program_event(ProgramEvent::ChunksDurable { generation, chunks }),
                    }
                    passing!(BitmapStored);
                    // What is copied needs no answer from outside: between two windows the updater looks up from it.
                    return Some(now_ms);
                }
                Turn::Obstructed { generation, reason } => match track {
                    Track::Model => self.dispatch(Event::Obstructed { generation, reason }),
                    Track::Program => self.program_event(ProgramEvent::Obstructed { generation, reason }),
                },
            }
        }
    }

    /// One step of the download of `track`, if there is one.
    fn turn(&mut self, track: Track) -> Option<Turn> {
        let now_ms = self.clock.now_ms();
        let is_clock_believed = self.parts.trust.protection() == FreezeProtection::Full;
        let (download, rollout, is_serving) = match track {
            Track::Model => {
                let rollout = self.machine.record().update.as_ref().map(|update| update.delivery);
                (self.download.as_mut()?, rollout, self.machine.is_serving())
            }
            Track::Program => {
                let rollout = self.program.machine.record().update.as_ref().map(|update| update.delivery);
                // There is always a program that does its work meanwhile.
                (self.program.download.as_mut()?, rollout, true)
            }
        };
        // Where nothing serves there is nothing to spare.
        let rollout = rollout.unwrap_or_default();
        let rollout = if is_serving { slowed(rollout, self.parts.host.pressed().level()) } else { rollout };
        let asking = Asking { rollout, now_ms, is_clock_believed, is_serving };
        let generation = download.generation;
        let (step, copied) = match download.next(&mut self.parts.gate, &asking) {
            Ok(next) => next,
            Err(error) => return Some(Turn::Obstructed { generation, reason: with_source(&error) }),
        };
        self.parts.metrics.chunks_copied(copied);
        Some(match step {
            Step::WaitUntil(at_ms) => Turn::Pause(Some(at_ms)),
            Step::Disconnected | Step::Done => Turn::Pause(None),
            Step::Request { first, wanted, accepts } => {
                self.asked += 1;
                let manifest = download.manifest;
                let request = ChunkRequest { manifest, first, wanted, accepts, number: self.asked };
                // One that finds no room is asked for again when its time is up.
                let _ = self.parts.requests.try_send(request);
                Turn::Asked
            }
            Step::Flush => match download.flush() {
                Ok(chunks) => Turn::Durable { generation, chunks },
                Err(error) => Turn::Obstructed { generation, reason: with_source(&error) },
            },
            Step::GiveUp { chunk } => {
                let reason = format!("chunk {chunk} came with wrong bytes over and over");
                Turn::Obstructed { generation, reason }
            }
        })
    }

    /// Runs `work` on a thread of its own, if there is one to be had; what it gives comes back as an input.
    fn apart(&self, name: &str, work: impl FnOnce() -> Done + Send + 'static) -> bool {
        let inbox = self.inbox.clone();
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // The updater may have ended meanwhile.
            let _ = inbox.send(Input::Done(work()));
        });
        if let Err(error) = &spawned {
            tracing::error!(%error, name, "no thread could be started; it is tried again at the next start");
        }
        spawned.is_ok()
    }

    /// Runs the test of a model [`apart`](Self::apart); it is counted while it lasts.
    fn test_apart(&self, name: &str, test: impl FnOnce() -> Done + Send + 'static) -> bool {
        let under_way = self.parts.tests.begin();
        self.apart(name, move || {
            let done = test();
            drop(under_way);
            done
        })
    }

    /// Takes a model that does not come to the end of its test for a bad one. Its thread cannot be ended: the watchdog starts the agent
    /// again, which does not try that model any more.
    fn give_test_up(&mut self) {
        let allowed_ms = self.parts.load_within_ms;
        let is_late = |since_ms: u64| self.clock.now_ms().saturating_sub(since_ms) > allowed_ms;
        let Some((generation, _)) = self.testing.take_if(|(_, since_ms)| is_late(*since_ms)) else { return };
        let seconds = allowed_ms / 1_000;
        let reason = format!(
            "loading it and running its golden examples took longer than {seconds} s: see [serve] load-within-ms"
        );
        self.dispatch(Event::Tested { generation, result: Err(reason) });
    }

    /// Hands `event` to the machine and carries its effects out, and those of what follows from them.
    fn dispatch(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.machine.handle(event, self.clock.now_ms()) {
                match self.carry_out(effect) {
                    Ok(follows) => events.extend(follows),
                    // It is no failure of the update, which goes on at the next start from the record as it is.
                    Err(_) if self.stopping() => return,
                    Err(reason) => {
                        let generation = self.machine.record().update.as_ref().map_or(0, |u| u.generation);
                        events.push_back(Event::Obstructed { generation, reason });
                        break;
                    }
                }
            }
        }
    }

    /// Tells about something treated as if it had not come, if that is worth telling.
    fn refuse(&mut self, generation: u64, bundle: Option<BundleRef>, reason: &str) {
        let reason = bounded_text(reason);
        if self.refusals.tell(&reason, self.clock.now_ms()) {
            tracing::warn!(device = %self.parts.device, generation, %reason, "refused");
            self.put(DeviceEventKind::Refused, generation, bundle, &reason);
        }
    }

    fn tell(&self, kind: DeviceEventKind, about: Option<&InstalledBundle>, detail: &str) {
        self.put(kind, about.map_or(0, |b| b.generation), about.map(|b| b.bundle.clone()), detail);
    }

    fn put(&self, kind: DeviceEventKind, generation: u64, bundle: Option<BundleRef>, detail: &str) {
        let event = DeviceEvent {
            at_ms: wall_ms(),
            kind,
            generation,
            bundle,
            detail: bounded_text(detail),
            track: Track::Model,
        };
        self.parts.outbox.note(&event);
    }

    /// Removes what belongs to no bundle from the folder of the slots. The record must be on disk.
    fn clear_slots(&self) {
        garbage::clear_slots(self.data_dir(), &self.records.kept(self.machine.record()));
    }

    fn data_dir(&self) -> &Path {
        &self.parts.data_dir
    }
}

/// The committed bundle, for an agent that can do nothing but serve it; none where nothing is committed.
///
/// # Errors
/// Why it cannot be loaded.
pub(crate) fn load_committed(data_dir: &Path) -> Result<Option<ServedModel>, String> {
    let mut records = Records::open(data_dir).map_err(|error| with_source(&error))?;
    let record = records.load().map_err(|error| with_source(&error))?;
    let Some((pointer, committed)) = record.committed.zip(record.committed_bundle()) else { return Ok(None) };
    let manifest = records.manifest(&committed.manifest).map_err(|error| with_source(&error))?;
    let (_, manifest) =
        manifest.ok_or_else(|| format!("the manifest of {} is missing or damaged", committed.bundle))?;
    let slots = SlotFiles::new(data_dir);
    let load =
        || model::load(&slots, pointer.slot, committed.manifest, &manifest, None).map_err(|damage| damage.reason);
    guarded(load).map(|(loaded, _)| Some(loaded.served(pointer.generation)))
}

/// Turns a panic of `work` into its error.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the test of the model ended with a panic".to_owned()))
}

#[cfg(test)]
mod tests;
