//! A card that takes long to say that it has what was written, as SD cards do when they tidy up: nobody waits for it but who has to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use muster_shared::rollout::RolloutStatus;

use crate::stage::{self, PACE};

/// Bytes that lie beside the second model.
const NOISE_BYTES: usize = 300_000;
/// What every flush waits for, and notes.
const SLOW_FLUSHES: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wait_for_the_card(void) {
    int log = open(getenv("FLUSHES"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log >= 0) {
        (void)!write(log, ".", 1);
        close(log);
    }
    usleep(150000);
}

int fsync(int file) { wait_for_the_card(); return syscall(SYS_fsync, file); }
int fdatasync(int file) { wait_for_the_card(); return syscall(SYS_fdatasync, file); }
int sync_file_range(int file, off64_t offset, off64_t count, unsigned int flags) {
    wait_for_the_card();
    return syscall(SYS_sync_file_range, file, offset, count, flags);
}
"#;

/// A program in `folder` that is `agent` on such a card, and where its flushes are noted, a byte for each.
fn on_a_slow_card(folder: &Path, agent: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let library = stage::library(folder, SLOW_FLUSHES)?;
    let flushes = folder.join("flushes");
    let script = format!("FLUSHES={flushes:?} LD_PRELOAD={library:?} exec {agent:?} \"$@\"");
    Ok((stage::agent_by(folder, &script)?, flushes))
}

#[test]
fn a_slow_card_costs_no_answer_and_the_whole_work_is_done() {
    stage::run(async |binaries, folder| {
        let (agent, flushes) = on_a_slow_card(&folder, &binaries.agent)?;
        let mut fleet = stage::fleet_of(binaries, &folder, agent, 2_000, "").await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        stage::kill_and_restart(&mut fleet, &traffic).await?;
        fleet.release_large_digits("1.1.0", NOISE_BYTES).await?;
        let rollout = fleet.roll_out(&[&["--bundle", "digits@1.1.0", "--selector", "*"], &PACE[..]].concat()).await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        ensure!(fs::metadata(&flushes)?.len() > 20, "the agent flushes nothing, so this test shows nothing");
        stage::ensure_all_answered(&traffic)
    });
}
