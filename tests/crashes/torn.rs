//! A device whose files are torn between its lives: cut, zeroed or changed at their ends.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use muster_tests::fleet::PATIENCE;
use muster_tests::wait;

use crate::Outcome;
use crate::folder;
use crate::plan::{End, Plan};
use crate::random::Random;
use crate::subject::{Goal, Stop, Subject};

/// The block a disk writes at once, in bytes.
const BLOCK_BYTES: u64 = 4_096;

/// Files whose loss is told by name at the next start. What the outbox's log loses is told by number, if a message is among it; files of
/// bundles are looked at when they are loaded or built upon; the rest means nothing once it is written anew.
const TOLD: [&str; 2] = ["slots/record.json", "trust/barrier.json"];

/// Tears files `times` times.
pub(crate) async fn run(mut subject: Subject, times: u64) -> Outcome {
    let (mut torn, mut repeated) = (0, 0);
    subject.falls_back = true;
    // One bundle at a time: a device that has lost both has nothing left to serve.
    let mut whole_from = 0;
    while torn < times {
        let (rollout, generation) = subject.next_update().await?;
        let deaths = subject.random.below(4);
        for _ in 0..deaths {
            if subject.life.is_none() {
                subject.begin(End::Open)?;
            }
            let end = Plan::at_random(&mut subject.random);
            subject.life.as_mut().context("nobody lives")?.end_with(end);
            // Reached is as good a moment as any other.
            while subject.live(Goal::Quiet).await? != Stop::Died {}
            subject.bury()?;
            if subject.is_at_its_last_try() {
                break;
            }
            let bundles = subject.updates >= whole_from;
            let damage = tear(&subject.data(), &mut subject.random, bundles)?;
            if damage.is_of_the_slots() {
                subject.forget_missing();
            }
            if damage.is_of_a_bundle() {
                // By then both slots hold others.
                whole_from = subject.updates + 3;
            }
            torn += 1;
            subject.begin(End::Open)?;
            subject.live(Goal::Answer).await.with_context(|| format!("after {damage:?}"))?;
            damage.ensure_told(&subject).await.with_context(|| format!("after {damage:?}"))?;
        }
        if subject.life.is_none() {
            subject.begin(End::Open)?;
        }
        let rollout = subject.see_through(rollout, generation, &mut repeated).await?;
        subject.live(Goal::Quiet).await?;
        subject.reckon(false).await?;
        subject.stage.end_rollout(&rollout).await?;
    }
    Ok(format!("{torn} files torn in {} updates, {repeated} of which had to be brought out again", subject.updates))
}

/// What was done to a file.
#[derive(Debug)]
struct Damage {
    path: PathBuf,
    #[expect(dead_code, reason = "shown where something is wrong")]
    how: String,
    changed: bool,
}

impl Damage {
    fn is_of_a_bundle(&self) -> bool {
        is_of_a_bundle(&self.path)
    }

    /// Whether it may be of chunks that were durable, or of the record of which ones were.
    fn is_of_the_slots(&self) -> bool {
        self.path.starts_with("slots")
    }

    /// Waits until the log names the file: an agent answers before it has looked at every one.
    async fn ensure_told(&self, subject: &Subject) -> anyhow::Result<()> {
        let path = self.path.to_string_lossy();
        if !self.changed || !TOLD.contains(&path.as_ref()) {
            return Ok(());
        }
        let from = subject.life.as_ref().map_or(0, |life| usize::try_from(life.log_from).unwrap_or_default());
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let said = || -> anyhow::Result<String> {
            let log = fs::read(subject.home.join("agent.log"))?;
            Ok(String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned())
        };
        wait::until_explained(
            &format!("{} names {name}", subject.id),
            PATIENCE,
            async || Ok(said()?.contains(name.as_ref()).then_some(())),
            async || said().unwrap_or_default(),
        )
        .await
    }
}

fn is_of_a_bundle(path: &Path) -> bool {
    ["slots/a", "slots/b", "slots/manifests"].iter().any(|folder| path.starts_with(folder))
}

/// Tears one of the files in `data`, whichever; of those of `bundles` only where that is asked for.
fn tear(data: &Path, random: &mut Random, bundles: bool) -> anyhow::Result<Damage> {
    // Who the device is, and the root of its trust, come from nowhere else: what it does without them is another test's matter.
    let spared = |path: &Path| {
        ["identity", "trust/root-", "lock", "endpoints.json"].iter().any(|s| path.to_string_lossy().starts_with(s))
    };
    let files: Vec<PathBuf> = folder::files(data)?
        .into_iter()
        .filter(|path| bundles || !is_of_a_bundle(path))
        .filter(|path| !spared(path) && !path.to_string_lossy().contains(".damaged"))
        .filter(|path| fs::metadata(data.join(path)).is_ok_and(|meta| meta.len() > 0))
        .collect();
    // The log of the outbox is what is written most.
    let log = PathBuf::from("outbox/db");
    let path = if random.chance(30) { Some(&log) } else { random.pick(&files) };
    let path = path.context("there is nothing to tear")?.clone();
    let full = data.join(&path);
    let before = fs::read(&full)?;
    let length = before.len() as u64;
    let tail = random.below(length.min(4 * BLOCK_BYTES)) + 1;
    let file = File::options().read(true).write(true).open(&full)?;
    let how = match random.below(3) {
        0 => {
            file.set_len(length - tail)?;
            format!("{tail} of {length} bytes cut off")
        }
        1 => {
            let zeros = vec![0; usize::try_from(tail)?];
            file.write_all_at(&zeros, length - tail)?;
            format!("the last {tail} of {length} bytes zeroed")
        }
        _ => {
            let at = length - tail;
            let byte = before[usize::try_from(at)?] ^ (1 << random.below(8));
            file.write_all_at(&[byte], at)?;
            format!("one bit changed {tail} bytes before the end of {length}")
        }
    };
    let after = fs::read(&full)?;
    let changed = after != before && !is_whole_without_its_seal(&before, &after);
    Ok(Damage { path, how, changed })
}

/// Whether `after` is what the sealed file `before` held, only without its seal. Agents take that for a file from before there were seals:
/// nothing of it is lost.
fn is_whole_without_its_seal(before: &[u8], after: &[u8]) -> bool {
    const SEAL: &[u8] = b"\nsha256 ";
    let end = before.windows(SEAL.len()).rposition(|window| window == SEAL);
    // With the end of the line or without.
    before.starts_with(after) && end.is_some_and(|end| (end..=end + 1).contains(&after.len()))
}
