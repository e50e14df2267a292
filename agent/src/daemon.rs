//! The life of the agent: what starts in which order, and what ends how.
//!
//! Serving comes first: the committed model answers before the network is looked at, and goes on whatever the network does.
//! At the end everything that waits is made durable, the controller is told, and only then is the end noted as one in order.

use std::convert::Infallible;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_agent_core::outbox::Bounds;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::boot::Boot;
use crate::causes::with_source;
use crate::condition::{Condition, Known};
use crate::config::{Config, ConfigError, TokenPlaces};
use crate::feedback::Feedback;
use crate::files::{self, FileError};
use crate::heartbeat::{Heartbeat, Vitals, Watchdog};
use crate::host::{HostLimits, ModelHost};
use crate::identity::{EnrolError, Enrolled, Identity, IdentityError, IdentityStore, Renewer, enrol};
use crate::metered::Metered;
use crate::metrics::Metrics;
use crate::monitor::Monitor;
use crate::mqtt::{self, Inbox, Link, LinkState};
use crate::outbox::Outbox;
use crate::pressure::Watcher;
use crate::program::{Handover, Running};
use crate::reload::{Reloader, Source};
use crate::samples::{Samples, Uploader};
use crate::serve::{ServeError, serve};
use crate::system::System;
use crate::telemetry::Pump;
use crate::time::{EffectiveTime, Steady, wall_ms};
use crate::trust_store::{TrustStore, TrustStoreError};
use crate::updater::{self, Gate, INBOX, Input, Parts, Running as RunningUpdater, Updater, UpdaterError};
use crate::{attributes, endpoints, garbage, notify};

/// Chunk requests that may wait for the link.
const REQUESTS: usize = 8;
/// Receipts for labels that may wait for the link.
const RECEIPTS: usize = 8;
/// Pause between attempts to hand changed settings to an updater that has no room for them.
const HAND_AGAIN: Duration = Duration::from_millis(200);
/// How often it is looked whether every part still runs.
const LOOK: Duration = Duration::from_secs(5);
/// Pause between attempts to write the papers an enrolment brought.
const WRITE_AGAIN: Duration = Duration::from_secs(2);
/// How long requests under way may take when the agent stops.
const DRAIN: Duration = Duration::from_millis(1_500);
/// How long the farewell to the controller may take.
const FAREWELL: Duration = Duration::from_millis(2_200);
/// What a stop may take, with a second for what is written at the end.
const STOP: Duration = Duration::from_secs(5);
/// How long an enrolled agent may take until it is ready, in milliseconds, as the unit's `TimeoutStartSec=`. In a process that was handed over the
/// service manager does not count that, and its watchdog must not be fed for longer.
const READY_WITHIN_MS: u64 = 300_000;
const _: () = assert!(DRAIN.as_millis() + FAREWELL.as_millis() + 1_000 <= STOP.as_millis());

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file or folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The device could not join.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// There is nothing to join with.
    #[error(
        "this device is not enrolled: run `muster-agent enrol --token-file FILE`, or set enrolment-token-file to a file with what `muster token create` printed"
    )]
    NoToken,
    /// Trust cannot be established.
    #[error(transparent)]
    Trust(#[from] TrustStoreError),
    /// The updater cannot start.
    #[error(transparent)]
    Updater(#[from] UpdaterError),
    /// The inference endpoint cannot start.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Signals cannot be heard.
    #[error("signals cannot be handled")]
    Signals(#[source] std::io::Error),
    /// A part that must not end has ended.
    #[error("{0} ended by itself: the agent has to start again")]
    Ended(&'static str),
}

/// Why the agent has ended in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to.
    ByRequest,
    /// Another program is to take its place: in this process, or in another where there is no handover.
    ForAnotherProgram(Option<Handover>),
}

/// A link to be run, and what tells it of another certificate.
type LinkParts = (watch::Sender<u64>, Link);

/// The two signals that end the agent in order.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// The signal that has the configuration read again. One that comes before anything heeds it is heeded later.
fn hangup() -> Result<Signal, DaemonError> {
    signal(SignalKind::hangup()).map_err(DaemonError::Signals)
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(DaemonError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What exists from the start on, enrolled or not.
struct Base {
    config: Config,
    system: System,
    started: Steady,
    boot: Boot,
    time: EffectiveTime,
    link: LinkState,
    vitals: Vitals,
    /// Of an enrolled agent that is not ready yet.
    starting: Heartbeat,
    condition: Condition,
    /// The configuration in force, which changes.
    settings: watch::Sender<Arc<Config>>,
    /// The controller asks for another certificate.
    renew: Arc<Notify>,
    /// Which program this process is.
    program: Running,
    /// The configuration's file.
    config_file: Option<PathBuf>,
    /// Another program is to run.
    restart: Arc<Notify>,
    metrics: Metrics,
    monitor: Monitor,
    host: ModelHost,
    outbox: Outbox,
    samples: Samples,
    store: IdentityStore,
    /// Kept until the end.
    _lock: File,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// [`DaemonError`] when it cannot start, or cannot go on.
pub(crate) async fn run(config: Config, source: Source, program: Running) -> Result<Ended, DaemonError> {
    let (mut signals, hangup) = (Signals::new()?, hangup()?);
    let base = tokio::task::block_in_place(|| Base::open(config, &source, program))?;
    let (stop_serving, serving_stops) = watch::channel(false);
    let serving =
        serve(&base.config.serve, base.host.clone(), base.metrics.clone(), base.condition.clone(), serving_stops)
            .await?;
    let turning = tokio::spawn(base.vitals.clone().show_turns());
    let watchdog = Watchdog::start(base.vitals.clone(), tokio::runtime::Handle::current());
    let joined = tokio::select! {
        joined = base.join() => joined,
        () = signals.stop() => {
            let _ = stop_serving.send(true);
            return Ok(Ended::ByRequest);
        }
    };
    let (identity, updater, link, is_ready) = match joined {
        Ok(joined) => joined,
        Err(error) => {
            base.starting.end();
            base.serve_alone(&error, &mut signals, serving.join).await;
            let _ = stop_serving.send(true);
            return Err(error);
        }
    };
    let mut serving_join = serving.join;
    // Loading a large model takes its time, in which the agent can be told to stop like at any other.
    let stopped = tokio::select! {
        // An updater that ended instead is noticed below.
        _ = is_ready => false,
        () = signals.stop() => true,
    };
    let (stop_link, link_stops) = watch::channel(false);
    let (renewed, link) = link;
    let link = tokio::spawn(mqtt::run(link, link_stops.clone()));
    let renewing = tokio::spawn(base.renewer(&identity, renewed).run());
    let keeping =
        base.samples.start().inspect_err(|error| tracing::error!(%error, "no thread for samples: none is kept")).ok();
    let uploading = tokio::spawn(base.uploader(&identity).run());
    let watching = tokio::spawn(base.watcher(updater.reporter()).run());
    let pump = base.pump();
    let pumping = tokio::spawn(pump.clone().run(link_stops));
    let status = format!("{} answers on {}", identity.device, serving.local_addr);
    let reloader = Reloader { source, settings: base.settings.clone(), condition: base.condition.clone() };
    let reloading = tokio::spawn(reloader.run(hangup, status.clone()));
    let data_dir = base.config.data_dir.clone();
    let publishing = tokio::spawn(endpoints::publish(data_dir.clone(), identity.device.clone(), serving.local_addr));
    base.starting.end();
    let mut for_another_program = false;
    let ended = if stopped {
        None
    } else {
        notify::ready(&status);
        let parts = [(&link, "the broker link"), (&pumping, "the pump of telemetry"), (&turning, "the sign of life")];
        tokio::select! {
            () = signals.stop() => None,
            () = base.restart.notified() => {
                for_another_program = true;
                None
            }
            _ = &mut serving_join => Some("the inference endpoint"),
            ended = watch_over(&updater, parts) => Some(ended),
            never = hand_settings(&updater, base.settings.subscribe()) => match never {},
        }
    };
    tracing::info!(device = %identity.device, "stopping");
    let handover = for_another_program.then(|| Handover::of(&base.program)).flatten();
    // One that says it stops is ended, whatever it has become by then.
    if handover.is_some() {
        notify::reloading()
    } else {
        notify::stopping()
    }
    if let Some(watchdog) = &watchdog {
        watchdog.feed_no_more();
    }
    turning.abort();
    reloading.abort();
    renewing.abort();
    uploading.abort();
    watching.abort();
    publishing.abort();
    let _ = publishing.await;
    if let Err(error) = endpoints::withdraw(&data_dir) {
        tracing::warn!(error = %with_source(&error), "endpoints.json stays");
    }
    let _ = stop_serving.send(true);
    // The updater first: it notes a trial under way, which is no sign against the model.
    let updater_ended = tokio::task::spawn_blocking(move || updater.stop());
    let drained = tokio::time::timeout(DRAIN, async {
        let _ = updater_ended.await;
        if ended != Some("the inference endpoint") {
            let _ = serving_join.await;
        }
    });
    if drained.await.is_err() {
        tracing::warn!("not everything under way came to its end");
    }
    pumping.abort();
    base.host.feedback().forget_all();
    pump.close_all();
    if let Some(keeping) = keeping {
        tokio::task::block_in_place(|| keeping.stop());
    }
    let _ = stop_link.send(true);
    farewell(link).await;
    if let Some(part) = ended {
        return Err(DaemonError::Ended(part));
    }
    if let Err(error) = tokio::task::block_in_place(|| base.boot.ended_in_order()) {
        tracing::warn!(error = %with_source(&error), "this end was in order, and the next start will take it for a crash");
    }
    // Told to stop meanwhile, it must not live on as another.
    let told_to_stop = tokio::time::timeout(Duration::ZERO, signals.stop()).await.is_ok();
    Ok(if for_another_program && !told_to_stop { Ended::ForAnotherProgram(handover) } else { Ended::ByRequest })
}

/// Puts the papers that an enrolment brought into force; the device is enrolled once this returns.
///
/// # Errors
/// [`DaemonError::Trust`] or [`DaemonError::Identity`] when they cannot be stored.
pub(crate) fn keep_papers(
    data_dir: &Path,
    store: &IdentityStore,
    enrolled: &Enrolled,
) -> Result<Identity, DaemonError> {
    TrustStore::install(data_dir, enrolled.roots(), enrolled.root_sha256())?;
    Ok(enrolled.commit(store)?)
}

async fn farewell(mut link: JoinHandle<()>) {
    if tokio::time::timeout(FAREWELL, &mut link).await.is_err() {
        link.abort();
    }
}

/// Ends when the updater or one of `parts` does, which none must.
async fn watch_over(updater: &RunningUpdater, parts: [(&JoinHandle<()>, &'static str); 3]) -> &'static str {
    loop {
        if updater.has_ended() {
            return "the updater";
        }
        if let Some((_, name)) = parts.iter().find(|(part, _)| part.is_finished()) {
            return name;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Hands changed settings to the updater; never ends.
async fn hand_settings(updater: &RunningUpdater, mut settings: watch::Receiver<Arc<Config>>) -> Infallible {
    settings.mark_unchanged();
    loop {
        if settings.changed().await.is_err() {
            return std::future::pending().await;
        }
        let next = Arc::clone(&settings.borrow_and_update());
        while !updater.settings(&next) {
            tokio::time::sleep(HAND_AGAIN).await;
        }
    }
}

impl Base {
    fn open(config: Config, source: &Source, program: Running) -> Result<Self, DaemonError> {
        let (started, started_at_ms) = (Steady::start(), wall_ms());
        files::make_folder(&config.data_dir)?;
        let lock = files::lock(&config.data_dir)?;
        if let Err(error) = endpoints::withdraw(&config.data_dir) {
            tracing::warn!(error = %with_source(&error), "endpoints.json of an earlier start stays");
        }
        garbage::clear_left_over(&config.data_dir, config.outbox.max_bytes);
        let (boot, alarms) = Boot::begin(&config.data_dir.join("run"));
        let metrics = Metrics::new();
        let bounds = Bounds { max_bytes: config.outbox.max_bytes, max_events: config.outbox.max_events };
        let outbox = Outbox::open(&config.data_dir, bounds, metrics.clone());
        alarms.iter().for_each(|alarm| outbox.alarm(alarm));
        let monitor = Monitor::new(config.monitor.window_ms);
        let feedback = Feedback::new(&config.feedback, metrics.clone());
        let limits = HostLimits { max_concurrency: config.serve.max_concurrency, max_queue: config.serve.max_queue };
        let time = EffectiveTime::default();
        let samples = Samples::new(&config.data_dir, config.samples.clone(), time.clone());
        let host = ModelHost::with_beside(limits, config.beside.limits(), monitor.clone(), feedback);
        host.offer_to(samples.clone());
        let link = LinkState::default();
        let vitals = Vitals::new(host.clone(), &config.serve);
        vitals.watch(link.heartbeat().clone());
        let starting = Heartbeat::new("the start");
        vitals.watch(starting.clone());
        let condition = Condition::new(Known {
            started_at_ms,
            starts: boot.starts,
            crashed: boot.crashed,
            data_dir: config.data_dir.clone(),
            outbox: outbox.clone(),
            link: link.clone(),
            time: time.clone(),
            vitals: vitals.clone(),
        });
        condition.configure(|configuration| {
            configuration.file.clone_from(&source.file);
            configuration.loaded_at_ms = started_at_ms;
        });
        Ok(Self {
            system: System::default(),
            started,
            boot,
            time,
            link,
            vitals,
            starting,
            condition,
            settings: watch::Sender::new(Arc::new(config.clone())),
            renew: Arc::default(),
            program,
            config_file: source.file.clone(),
            restart: Arc::default(),
            host,
            metrics,
            monitor,
            outbox,
            samples,
            store: IdentityStore::new(&config.data_dir),
            _lock: lock,
            config,
        })
    }

    /// Finds out who this device is, enrolling it where it is not yet, and starts what keeps its bundle up to date. The receiver
    /// tells when the committed bundle serves, or cannot.
    async fn join(&self) -> Result<(Identity, RunningUpdater, LinkParts, oneshot::Receiver<()>), DaemonError> {
        let identity = match self.store.load()? {
            Some(identity) => identity,
            None => {
                notify::ready("waiting to be enrolled");
                self.enrol().await?
            }
        };
        self.starting.beat(READY_WITHIN_MS);
        let (updater, link, is_ready) = tokio::task::block_in_place(|| self.start_updater(&identity))?;
        Ok((identity, updater, link, is_ready))
    }

    /// Serves the committed bundle until a stop, where there is one, although `reason` keeps the device from its controller: whoever
    /// asks it for answers is not to blame for a damaged file.
    async fn serve_alone(&self, reason: &DaemonError, signals: &mut Signals, serving_ends: JoinHandle<()>) {
        let served = match tokio::task::block_in_place(|| updater::load_committed(&self.config.data_dir)) {
            Ok(Some(served)) => served,
            Ok(None) => return,
            Err(why) => return tracing::error!(%why, "the committed bundle cannot be served either"),
        };
        tracing::error!(
            bundle = %served.bundle,
            reason = %with_source(reason),
            "this device is out of reach of its controller; what it has committed serves on, until that is repaired and the agent is started again"
        );
        self.host.activate(served, wall_ms());
        let (_stop, stops) = watch::channel(false);
        let pump = self.pump();
        let pumping = tokio::spawn(pump.clone().run(stops));
        notify::ready("serving without a controller: see the log");
        tokio::select! {
            () = signals.stop() => {}
            _ = serving_ends => {}
        }
        notify::stopping();
        pumping.abort();
        self.host.feedback().forget_all();
        pump.close_all();
    }

    async fn enrol(&self) -> Result<Identity, DaemonError> {
        let token = self.config.enrolment_token(&TokenPlaces::of_environment())?.ok_or(DaemonError::NoToken)?;
        tracing::info!(url = %token.url, "enrolling");
        let (wish, provisioned) = (self.config.device_id.as_ref(), self.config.provisioned.as_ref());
        let enrolled = enrol(&self.store, &token, wish, provisioned, &self.time).await?;
        let keep = || keep_papers(&self.config.data_dir, &self.store, &enrolled);
        let mut said = false;
        let identity = loop {
            match tokio::task::block_in_place(keep) {
                // The token may be spent by now, so papers that cannot be written are not thrown away.
                Err(
                    error @ (DaemonError::Trust(TrustStoreError::File(_))
                    | DaemonError::Identity(IdentityError::File(_))),
                ) => {
                    if !said {
                        tracing::error!(error = %with_source(&error), "the device's papers cannot be written; trying again");
                        said = true;
                    }
                    tokio::time::sleep(WRITE_AGAIN).await;
                }
                ended => break ended?,
            }
        };
        tracing::info!(device = %identity.device, "enrolled");
        Ok(identity)
    }

    /// Starts the updater, with the link to be run. What comes with them tells when the committed bundle serves, or cannot.
    fn start_updater(
        &self,
        identity: &Identity,
    ) -> Result<(RunningUpdater, LinkParts, oneshot::Receiver<()>), DaemonError> {
        let data_dir: PathBuf = self.config.data_dir.clone();
        let (trust, alarms) = TrustStore::open(&data_dir, identity.root_sha256, self.time.clone())?;
        alarms.iter().for_each(|alarm| self.outbox.alarm(alarm));
        let (gate, alarm) = Gate::new(&self.config.delivery);
        alarm.iter().for_each(|alarm| self.outbox.alarm(alarm));
        let (inbox, input) = std::sync::mpsc::sync_channel(INBOX);
        let (ask, requests) = mpsc::channel(REQUESTS);
        let (receive, receipts) = mpsc::channel(RECEIPTS);
        let state = self.link.clone();
        let (host, port) = (&self.config.broker.host, self.config.broker.port);
        let host = host.as_deref().unwrap_or(&identity.broker_host);
        self.condition.enrolled(identity.device.clone(), format!("{host}:{}", port.unwrap_or(identity.broker_port)));
        let parts = Parts {
            data_dir,
            device: identity.device.clone(),
            trust,
            host: self.host.clone(),
            outbox: self.outbox.clone(),
            metrics: self.metrics.clone(),
            attributes: attributes::all(&self.system, &self.config.data_dir, &self.config.attributes),
            system: self.system.clone(),
            starts: self.boot.starts,
            tests: self.vitals.tests(),
            load_within_ms: self.config.serve.load_within_ms,
            chunk_timeout_ms: self.config.broker.chunk_timeout_ms,
            disk_allowed_bytes: self.config.storage.max_bytes,
            gate,
            link: state.clone(),
            requests: ask,
            receipts: receive,
            renew: Arc::clone(&self.renew),
            samples: self.samples.clone(),
            program: self.program.clone(),
            config_file: self.config_file.clone(),
            restart: Arc::clone(&self.restart),
        };
        self.samples.restore(&identity.device, parts.trust.root());
        let wake = inbox.clone();
        self.samples.on_news(move || drop(wake.try_send(Input::Wake)));
        let updater = Updater::open(parts, inbox.clone(), self.boot.crashed)?;
        if let Err(error) = self.boot.runs() {
            self.outbox.alarm(&format!("a crash from now on will not be noticed: {}", with_source(&error)));
        }
        passing!(RunNoted);
        let (ready, is_ready) = oneshot::channel();
        let running = updater.start(input, ready)?;
        self.vitals.watch(running.heartbeat.clone());
        let (renewed, renewals) = watch::channel(0);
        let link = Link {
            identity: identity.clone(),
            store: self.store.clone(),
            time: self.time.clone(),
            config: self.config.broker.clone(),
            settings: self.settings.subscribe(),
            outbox: self.outbox.clone(),
            metrics: self.metrics.clone(),
            inbox: Inbox::new(inbox, |told| told.map_or(Input::Wake, Input::Told)),
            requests,
            receipts,
            state,
            did_good: false,
            metered: Metered::new(&self.config.delivery),
            renewed: renewals,
        };
        Ok((running, (renewed, link), is_ready))
    }

    fn api_url(&self, identity: &Identity) -> Option<String> {
        // Devices that enrolled before the address was kept may still have their token.
        let token = || self.config.enrolment_token(&TokenPlaces::of_environment()).ok().flatten();
        identity.api_url.clone().or_else(|| token().map(|token| token.url))
    }

    fn uploader(&self, identity: &Identity) -> Uploader {
        Uploader {
            samples: self.samples.clone(),
            identity: identity.clone(),
            store: self.store.clone(),
            time: self.time.clone(),
            api_url: self.api_url(identity),
            settings: self.settings.subscribe(),
            pressed: self.host.pressed().clone(),
        }
    }

    fn watcher<T: Fn()>(&self, tell: T) -> Watcher<T> {
        Watcher {
            system: self.system.clone(),
            pressed: self.host.pressed().clone(),
            metrics: self.metrics.clone(),
            tell,
        }
    }

    fn renewer(&self, identity: &Identity, renewed: watch::Sender<u64>) -> Renewer {
        Renewer {
            api_url: self.api_url(identity),
            identity: identity.clone(),
            store: self.store.clone(),
            time: self.time.clone(),
            asked: Arc::clone(&self.renew),
            renewed,
        }
    }

    fn pump(&self) -> Pump {
        Pump {
            monitors: [self.monitor.clone(), self.host.beside_monitor().clone()],
            outbox: self.outbox.clone(),
            data_dir: self.config.data_dir.clone(),
            started: self.started,
            system: self.system.clone(),
            pressed: self.host.pressed().clone(),
            program: self.program.known_as.clone(),
        }
    }
}
