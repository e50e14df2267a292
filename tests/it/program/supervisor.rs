//! What systemd does for the service: it starts the agent again whenever it has ended, ends one that does not say in time that it is ready,
//! and bounds its memory. With a watchdog it ends one that does not show that it lives, too, as the service's unit asks for.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// How long the agent may take until it is ready (`TimeoutStartSec=`).
const START: Duration = Duration::from_secs(6);
/// After how long without a sign of life it is ended, once it was ready (`WatchdogSec=`).
const WATCHDOG: Duration = Duration::from_secs(10);
/// How long it may take to stop (`TimeoutStopSec=`).
const STOP: Duration = Duration::from_secs(10);
/// How much room for addresses it may have, in KiB: `MemoryMax=` would need a control group.
const MEMORY_KIB: u64 = 2_500_000;
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);
const SIGKILL: i32 = 9;
/// What it ends with where it cannot become the packaged program itself.
const ANOTHER_PROGRAM: i32 = 75;

/// Keeps an agent running until it is dropped.
pub(super) struct Supervisor {
    stop: Arc<AtomicBool>,
    starts: Arc<AtomicU64>,
    /// How often it became the packaged program without ending, and how often it ended with status 75 for that.
    handovers: Arc<AtomicU64>,
    left: Arc<AtomicU64>,
    deaths: Arc<AtomicU64>,
    /// Where the next start is to die, as `MUSTER_AGENT_CRASH_AT` says it; taken by that start.
    crash_at: Arc<Mutex<Option<String>>>,
    pid: Arc<AtomicU64>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Supervisor {
    /// Keeps `agent` running with the configuration in `folder`, with a watchdog where `watches`.
    ///
    /// # Errors
    /// When there is no socket for its notifications.
    pub(super) fn start(agent: &Path, folder: &Path, watches: bool) -> anyhow::Result<Self> {
        let path = folder.join("notify.sock");
        let socket = UnixDatagram::bind(&path).with_context(|| format!("{}", path.display()))?;
        socket.set_read_timeout(Some(LOOK))?;
        let log = File::options().create(true).append(true).open(folder.join("agent.log"))?;
        let (stop, starts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (crash_at, pid): (Arc<Mutex<Option<String>>>, Arc<AtomicU64>) = Default::default();
        let (deaths, handovers, left) =
            (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (handed, gone) = (handovers.clone(), left.clone());
        let (stops, counted, planned, lives) = (stop.clone(), starts.clone(), crash_at.clone(), pid.clone());
        let died = deaths.clone();
        let (agent, config) = (agent.to_path_buf(), folder.join("agent.toml"));
        let thread = std::thread::spawn(move || -> anyhow::Result<()> {
            while !stops.load(Ordering::Acquire) {
                let mut command = Command::new("sh");
                command
                    .args(["-c", "ulimit -v \"$0\" && exec \"$@\""])
                    .arg(MEMORY_KIB.to_string())
                    .arg(&agent)
                    .arg("--config")
                    .arg(&config)
                    .env("NOTIFY_SOCKET", &path)
                    .stdin(Stdio::null())
                    .stdout(log.try_clone()?)
                    .stderr(log.try_clone()?);
                if watches {
                    command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
                }
                if let Some(plan) = planned.lock().ok().and_then(|mut plan| plan.take()) {
                    command.env("MUSTER_AGENT_CRASH_AT", plan);
                }
                let mut child = command.spawn()?;
                lives.store(u64::from(child.id()), Ordering::Release);
                counted.fetch_add(1, Ordering::AcqRel);
                let (mut ready, mut asked, began, mut alive) = (false, None::<Instant>, Instant::now(), Instant::now());
                let status = loop {
                    if let Some(status) = child.try_wait()? {
                        break status;
                    }
                    let mut said = [0; 512];
                    if let Ok(length) = socket.recv(&mut said) {
                        for line in said[..length].split(|byte| *byte == b'\n') {
                            match line {
                                b"READY=1" if !ready => (ready, alive) = (true, Instant::now()),
                                b"WATCHDOG=1" => alive = Instant::now(),
                                // No settings are read again in these tests.
                                b"RELOADING=1" => drop(handed.fetch_add(1, Ordering::AcqRel)),
                                _ => {}
                            }
                        }
                    }
                    if stops.load(Ordering::Acquire) && asked.is_none() {
                        asked = Some(Instant::now());
                        Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
                    }
                    let late = !ready && began.elapsed() > START;
                    let stuck = watches && ready && alive.elapsed() > WATCHDOG;
                    if late || stuck || asked.is_some_and(|at| at.elapsed() > STOP) {
                        child.kill()?;
                    }
                };
                gone.fetch_add(u64::from(status.code() == Some(ANOTHER_PROGRAM)), Ordering::AcqRel);
                died.fetch_add(u64::from(status.signal() == Some(SIGKILL)), Ordering::AcqRel);
            }
            Ok(())
        });
        Ok(Self { stop, starts, handovers, left, deaths, crash_at, pid, thread: Some(thread) })
    }

    /// How often it was started.
    pub(super) fn starts(&self) -> u64 {
        self.starts.load(Ordering::Acquire)
    }

    /// How often it became the packaged program without ending.
    pub(super) fn handovers(&self) -> u64 {
        self.handovers.load(Ordering::Acquire)
    }

    /// How often it ended to be started with another program.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// How often it was ended by SIGKILL.
    pub(super) fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Acquire)
    }

    /// Has the next start die when it reaches `step`.
    ///
    /// # Errors
    /// When the supervisor has died.
    pub(super) fn plan_death(&self, step: &str) -> anyhow::Result<()> {
        *self.crash_at.lock().map_err(|_| anyhow::anyhow!("the supervisor has died"))? = Some(format!("{step}:1"));
        Ok(())
    }

    /// Ends it as a power cut would; it is started again.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn cut(&self) -> anyhow::Result<()> {
        let pid = self.pid.load(Ordering::Acquire).to_string();
        Command::new("kill").args(["-KILL", &pid]).status()?;
        Ok(())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
