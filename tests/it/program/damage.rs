//! The file of the committed program is damaged: the package's program runs in its place, and the same bundle brings it back.

use anyhow::ensure;
use muster_shared::bundle::PROGRAM_PATH;
use muster_shared::messages::UpdateState;

use super::{GOOD, version, with_scene};

#[test]
fn a_committed_program_whose_file_is_damaged_is_mended_when_it_is_asked_for_again() {
    with_scene(async |mut scene| {
        let digest = scene.assign("0.2.0", GOOD).await?;
        scene.ended(UpdateState::Committed).await?;
        let fetched = scene.broker.known().sent.get(&digest).copied().unwrap_or_default();

        let path = scene.folder.join("data/program/a/files").join(PROGRAM_PATH);
        let mut file = std::fs::read(&path)?;
        file.last_mut().into_iter().for_each(|last| *last ^= 1);
        std::fs::write(&path, file)?;
        scene.supervisor.cut()?;
        let report = scene.until("the package's program runs", |report| report.running.is_none()).await?;
        ensure!(report.committed.is_some_and(|committed| committed.manifest == digest), "it is not committed any more");

        scene.assign("0.2.0", GOOD).await?;
        let report = scene.ended(UpdateState::Committed).await?;
        ensure!(version(&report).as_deref() == Some("0.2.0"), "{report:?}");
        let mended = scene.broker.known().sent.get(&digest).copied().unwrap_or_default() - fetched;
        ensure!(0 < mended && mended < fetched, "{mended} chunks were fetched again of {fetched}");
        Ok(())
    });
}
