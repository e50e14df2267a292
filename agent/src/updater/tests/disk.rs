//! What bundles take on disk: what no bundle needs is removed, and one that would take too much is refused before it is fetched.

use super::*;

fn left_in(data_dir: &Path, folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(data_dir.join("slots").join(folder));
    let mut paths: Vec<PathBuf> =
        entries.into_iter().flatten().map(|entry| entry.unwrap().file_name().into()).collect();
    paths.sort();
    paths
}

#[test]
fn what_belongs_to_no_bundle_goes_after_an_update_and_at_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, next) = (good("1.0.0"), good("1.1.0"));
    let mut rig = Rig::start(folder.path());
    rig.assign(1, Some(&bundle));
    rig.until_state(UpdateState::Committed, 1, Some(&bundle));
    rig.assign(2, Some(&next));
    let begun = |rig: &Rig| rig.state().is_some_and(|s| s.generation == 2 && s.update.chunks_done > 0);
    rig.until("some of it", Some(&next), begun);
    assert_eq!(left_in(folder.path(), "manifests").len(), 2);

    // Called off half-way, it leaves nothing.
    rig.assign(3, Some(&bundle));
    rig.until_state(UpdateState::Committed, 3, None);
    let whole = ["a", "manifests", "record.json", "record.json.before"].map(PathBuf::from);
    let tidy = |_: &Rig| left_in(folder.path(), "") == whole && left_in(folder.path(), "manifests").len() == 1;
    rig.until("what was fetched goes", None, tidy);
    rig.stop();

    fs::write(folder.path().join("slots/a/files/extra/old.bin"), "x").unwrap();
    fs::create_dir_all(folder.path().join("slots/b/files")).unwrap();
    fs::write(folder.path().join("slots/record.json.new"), "x").unwrap();
    let mut rig = Rig::start(folder.path());
    rig.until("what was left goes", None, |rig| tidy(rig) && left_in(folder.path(), "a/files/extra").len() == 1);
    assert_eq!(rig.serving(), Some(bundle.digest));
    // What is kept is enough for the next start and the next update.
    rig.assign(4, Some(&next));
    rig.until_state(UpdateState::Committed, 4, Some(&next));
    rig.assign(5, Some(&bundle));
    let asked = rig.asked.len();
    rig.until_state(UpdateState::Committed, 5, None);
    assert_eq!(rig.asked.len(), asked, "the bundle before is still there");
}

#[test]
fn a_bundle_beyond_the_quota_is_refused_before_it_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, next) = (good("1.0.0"), good("1.1.0"));
    let size: usize = bundle.chunks.iter().map(Vec::len).sum();
    let mut rig = Rig::start_within(folder.path(), 3 * size as u64 / 2);
    rig.assign(1, Some(&bundle));
    rig.until_state(UpdateState::Committed, 1, Some(&bundle));
    let asked = rig.asked.len();
    rig.assign(2, Some(&next));
    let reason = rig.until_state(UpdateState::Failed, 2, Some(&next)).update.reason.unwrap();
    let allowed = format!("storage.max-bytes allows {}", 3 * size / 2);
    assert!(reason.contains(&allowed) && reason.contains(&format!("beside the {size}")), "{reason}");
    assert_eq!((rig.serving(), rig.asked.len()), (Some(bundle.digest), asked));
    assert_eq!(left_in(folder.path(), "manifests").len(), 1);
}

#[test]
fn a_bundle_that_never_served_makes_room_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (wrong, next) = (digits("1.0.0", "1.2.0", |_| {}), good("1.1.0"));
    let size: usize = wrong.chunks.iter().map(Vec::len).sum();
    let mut rig = Rig::start_within(folder.path(), 3 * size as u64 / 2);
    rig.assign(1, Some(&wrong));
    rig.until_state(UpdateState::Failed, 1, Some(&wrong));
    rig.assign(2, Some(&next));
    rig.until_state(UpdateState::Committed, 2, Some(&next));
    assert!(left_in(folder.path(), "a").is_empty());
    assert_eq!(rig.serving(), Some(next.digest));
}
