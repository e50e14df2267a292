//! Devices whose disk is full to the last byte, or lets nobody write, while they are in the middle of an update.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context as _, ensure};
use muster_tests::fleet::PATIENCE;
use muster_tests::small_disk::SmallDisk;
use muster_tests::wait;

use crate::Outcome;
use crate::folder::Record;
use crate::plan::End;
use crate::stage::{Stage, Taken};
use crate::subject::{Goal, Subject};

/// Room for both slots, the outbox and what each of them keeps free.
const MEBIBYTES: u32 = 48;

/// A device on a disk of its own; none where the system lets this user mount nothing.
pub(crate) async fn device(stage: &mut Stage, id: &str) -> anyhow::Result<Option<(Taken, SmallDisk)>> {
    let home = stage.fleet.folder.join(id);
    let Some(disk) = SmallDisk::mount(&stage.fleet.folder.join(format!("disk-of-{id}")), MEBIBYTES)? else {
        println!("SKIPPED {id}: this system does not let this user mount a file system in a namespace (unshare -Urm)");
        return Ok(None);
    };
    fs::create_dir_all(&home)?;
    symlink(disk.dir(), home.join("data"))?;
    Ok(Some((stage.device(id).await?, disk)))
}

/// Fills the disk in the middle of `times` updates.
pub(crate) async fn run_full(mut subject: Subject, mut disk: SmallDisk, times: u64) -> Outcome {
    run(&mut subject, &mut disk, times, "is full", |disk, on| if on { disk.fill() } else { disk.empty() }).await
}

/// Makes the disk read-only in the middle of `times` updates.
pub(crate) async fn run_read_only(mut subject: Subject, mut disk: SmallDisk, times: u64) -> Outcome {
    run(&mut subject, &mut disk, times, "Read-only file system", SmallDisk::set_read_only).await
}

async fn run(
    subject: &mut Subject,
    disk: &mut SmallDisk,
    times: u64,
    words: &str,
    mut set: impl FnMut(&mut SmallDisk, bool) -> anyhow::Result<()>,
) -> Outcome {
    let (mut half_way, mut repeated) = (0, 0);
    for _ in 0..times {
        if subject.life.is_none() {
            subject.begin(End::Open)?;
        }
        subject.live(Goal::Answer).await?;
        let (rollout, generation) = subject.next_update().await?;
        let data = subject.data();
        // Anywhere in the update, and often where chunks are on their way.
        if subject.random.chance(60) {
            let record = wait::until("chunks are on their way", PATIENCE, async || {
                let record = Record::read(&data)?;
                Ok((record.is_half_fetched() || record.missing().is_none()).then_some(record))
            })
            .await?;
            half_way += u64::from(record.is_half_fetched());
        } else {
            tokio::time::sleep(subject.random.within_ms(600)).await;
        }
        subject.life.as_mut().context("nobody lives")?.kill()?;
        subject.bury()?;
        set(disk, true)?;
        // Twice, as the first start may have written what the second reads.
        for _ in 0..2 {
            subject.begin(End::Open)?;
            subject.live(Goal::Answer).await.with_context(|| format!("with {words:?}"))?;
            let log = fs::read(subject.home.join("agent.log"))?;
            let from = subject.life.as_ref().map_or(0, |life| usize::try_from(life.log_from).unwrap_or_default());
            let said = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned();
            ensure!(said.contains(words), "{} does not say {words:?}: {said}", subject.id);
            subject.life.as_mut().context("nobody lives")?.kill()?;
            subject.bury()?;
            if subject.is_at_its_last_try() {
                break;
            }
        }
        set(disk, false)?;
        subject.begin(End::Open)?;
        let rollout = subject.see_through(rollout, generation, &mut repeated).await?;
        subject.live(Goal::Quiet).await?;
        subject.reckon(true).await?;
        subject.stage.end_rollout(&rollout).await?;
    }
    Ok(format!("{times} updates, {half_way} of them stopped half-way, {repeated} brought out again"))
}
