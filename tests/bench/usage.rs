//! What a process uses, as Linux tells under `/proc`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident: what it shares with others is counted in full.
    pub(crate) resident_bytes: u64,
    /// Proportional: what it shares is divided among those who share it.
    pub(crate) pss_bytes: u64,
    /// Of the proportional part, its own data.
    pub(crate) anonymous_bytes: u64,
    /// Of the proportional part, code and other mapped files.
    pub(crate) file_bytes: u64,
}

/// What a process has used up so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    at: Instant,
    cpu: Duration,
    written_bytes: u64,
    handed_bytes: u64,
}

impl Spent {
    /// Processor time since the process began.
    pub(crate) fn cpu(&self) -> Duration {
        self.cpu
    }
}

/// What a process used up over a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    /// How long the time was.
    pub(crate) wall: Duration,
    /// Processor time, of all cores together.
    pub(crate) cpu: Duration,
    /// Bytes it caused to be written to a disk: whole pages, and one that is changed twice before it is written counts once.
    pub(crate) written_bytes: u64,
    /// Bytes it handed to the system to write anywhere, sockets and logs included.
    pub(crate) handed_bytes: u64,
}

impl Use {
    /// Processor time as a share of one core, in percent.
    pub(crate) fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }
}

fn read(process: u32, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{process}/{file}");
    std::fs::read_to_string(&path).with_context(|| path)
}

/// The number behind `name` in lines of the form `name: number`.
fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("the system does not tell {name}"))
}

/// What the system says under `name` about the thread that asks.
///
/// # Errors
/// When it does not tell.
pub(crate) fn thread_status(name: &str) -> anyhow::Result<String> {
    let path = "/proc/thread-self/status";
    let text = std::fs::read_to_string(path).context(path)?;
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(found.with_context(|| format!("{path} does not tell {name}"))?.trim().to_owned())
}

/// Memory of `process` now.
///
/// # Errors
/// When it has ended, or the system does not tell.
pub(crate) fn memory(process: u32) -> anyhow::Result<Memory> {
    let text = read(process, "smaps_rollup")?;
    let bytes = |name| field(&text, name).map(|kibibytes| kibibytes * 1024);
    Ok(Memory {
        resident_bytes: field(&read(process, "status")?, "VmRSS")? * 1024,
        pss_bytes: bytes("Pss")?,
        anonymous_bytes: bytes("Pss_Anon")?,
        file_bytes: bytes("Pss_File")?,
    })
}

/// Makes [`peak_resident`] begin anew.
///
/// # Errors
/// When it has ended, or the system refuses.
pub(crate) fn forget_peak(process: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{process}/clear_refs");
    std::fs::write(&path, "5").with_context(|| path)
}

/// The most memory that `process` had resident since [`forget_peak`], in bytes.
///
/// # Errors
/// When it has ended, or the system does not tell.
pub(crate) fn peak_resident(process: u32) -> anyhow::Result<u64> {
    Ok(field(&read(process, "status")?, "VmHWM")? * 1024)
}

/// What `process` has used up until now.
///
/// # Errors
/// When it has ended, or the system does not tell.
pub(crate) fn spent(process: u32) -> anyhow::Result<Spent> {
    let stat = read(process, "stat")?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("/proc/{process}/stat says {stat:?}"))?;
    let io = read(process, "io")?;
    let (written_bytes, handed_bytes) = (field(&io, "write_bytes")?, field(&io, "wchar")?);
    Ok(Spent { at: Instant::now(), cpu: Duration::from_secs(ticks) / ticks_per_second(), written_bytes, handed_bytes })
}

/// User and system time in a `stat` line. The program's name before them may hold anything, brackets and spaces included.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let [user, system] = fields.get(11..13)? else {
        return None;
    };
    user.parse::<u64>().ok()?.checked_add(system.parse().ok()?)
}

fn ticks_per_second() -> u32 {
    u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100)
}

/// The smallest processor time that can be told from none.
pub(crate) fn cpu_resolution() -> Duration {
    Duration::from_secs(1) / ticks_per_second()
}

/// What `process` has used up since `before`.
///
/// # Errors
/// When it has ended, or the system does not tell.
pub(crate) fn since(process: u32, before: &Spent) -> anyhow::Result<Use> {
    let now = spent(process)?;
    Ok(Use {
        wall: now.at - before.at,
        cpu: now.cpu.saturating_sub(before.cpu),
        written_bytes: now.written_bytes.saturating_sub(before.written_bytes),
        handed_bytes: now.handed_bytes.saturating_sub(before.handed_bytes),
    })
}

/// What `process` uses up in `window`, left alone.
///
/// # Errors
/// When it has ended, or the system does not tell.
pub(crate) async fn over(process: u32, window: Duration) -> anyhow::Result<Use> {
    let before = spent(process)?;
    tokio::time::sleep(window).await;
    since(process, &before)
}

/// Bytes of all files in `folder`.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { folder_bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 120 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(150));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
        assert_eq!(cpu_ticks(""), None);
    }

    #[test]
    fn this_process_can_be_measured() {
        let own = std::process::id();
        let memory = memory(own).unwrap();
        assert!(memory.pss_bytes > 0 && memory.pss_bytes <= memory.resident_bytes + 4096 * 1024);
        let before = spent(own).unwrap();
        assert!(since(own, &before).unwrap().cpu_percent() >= 0.0);
    }
}
