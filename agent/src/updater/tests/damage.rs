//! Full disks, damaged files and hostile messages: each has a reason that is told, and the incumbent serves on.

use proptest::prelude::*;

use super::*;
use crate::tiny_disk::TinyDisk;

/// A rig that has committed `bundle` under generation 1.
fn committed(data_dir: &Path, bundle: &Bundle) -> Rig {
    let mut rig = Rig::start(data_dir);
    rig.assign(1, Some(bundle));
    commits(&mut rig, 1, bundle);
    rig
}

/// Waits until all is done that an update brings with it, the removal of what is no longer needed at last.
fn commits(rig: &mut Rig, generation: u64, bundle: &Bundle) {
    let unneeded = rig.data_dir.join("slots/unneeded");
    fs::write(&unneeded, "x").unwrap();
    rig.until_state(UpdateState::Committed, generation, Some(bundle));
    rig.until("all is told", None, |rig| rig.has_event(DeviceEventKind::Committed, ""));
    rig.until("all is tidied", None, |_| !unneeded.exists());
}

fn record_of(data_dir: &Path) -> String {
    let file = fs::read_to_string(data_dir.join("slots/record.json")).unwrap();
    // The seal would not fit what a test makes of it.
    file.lines().next().unwrap().to_owned()
}

#[test]
fn on_a_full_disk_the_committed_bundle_serves_a_stop_works_and_nothing_is_lost() {
    let name = "updater::tests::damage::on_a_full_disk_the_committed_bundle_serves_a_stop_works_and_nothing_is_lost";
    TinyDisk::run(name, 24, |disk| {
        let bundle = good("1.0.0");
        committed(disk.dir(), &bundle).stop();
        // An event that had not reached the outbox when the agent died.
        let untold = r#""untold":[{"kind":"committed","generation":1,"bundle":null,"detail":"left from before"}]"#;
        let record = record_of(disk.dir()).replace("\"untold\":[]", untold);
        assert!(record.contains("left from before"));
        fs::write(disk.dir().join("slots/record.json"), record).unwrap();
        disk.fill();

        let rig = Rig::start(disk.dir());
        assert_eq!(rig.serving(), Some(bundle.digest));
        rig.stop();
        let mut rig = Rig::start(disk.dir());
        assert_eq!(rig.serving(), Some(bundle.digest));
        assert!(rig.events().is_empty());

        disk.empty();
        rig.until("room is used", None, |rig| {
            rig.outbox.retry();
            rig.has_event(DeviceEventKind::Started, "")
                && rig.has_event(DeviceEventKind::Committed, "left from before")
                && record_of(disk.dir()).contains("\"untold\":[]")
        });
        assert!(rig.has_event(DeviceEventKind::Alarm, "is full"));
        assert!(rig.state().is_some_and(|state| state.committed.is_some()));
    });
}

#[test]
fn on_a_full_disk_the_bundle_before_serves_where_the_committed_one_has_rotted() {
    let name = "updater::tests::damage::on_a_full_disk_the_bundle_before_serves_where_the_committed_one_has_rotted";
    TinyDisk::run(name, 24, |disk| {
        let (bundle, next) = (good("1.0.0"), good("1.1.0"));
        let mut rig = committed(disk.dir(), &bundle);
        rig.assign(2, Some(&next));
        rig.until_state(UpdateState::Committed, 2, Some(&next));
        rig.stop();
        fs::write(disk.dir().join("slots/b/files").join(MODEL_PATH), "rotten").unwrap();
        disk.fill();
        let mut rig = Rig::start(disk.dir());
        assert_eq!(rig.serving(), Some(bundle.digest));
        disk.empty();
        rig.until("it is told", None, |rig| {
            rig.outbox.retry();
            rig.has_event(DeviceEventKind::Reverted, "is damaged in")
        });
    });
}

#[test]
fn an_update_that_meets_a_full_disk_fails_with_the_reason_and_the_incumbent_serves() {
    let name =
        "updater::tests::damage::an_update_that_meets_a_full_disk_fails_with_the_reason_and_the_incumbent_serves";
    TinyDisk::run(name, 24, |disk| {
        let (bundle, next) = (good("1.0.0"), good("1.1.0"));
        let rig = committed(disk.dir(), &bundle);
        disk.fill();
        rig.assign(2, Some(&next));
        assert_eq!(rig.serving(), Some(bundle.digest));
        // Stopped while it waits for room, it stops.
        rig.stop();
        assert!(!record_of(disk.dir()).contains("1.1.0"));

        let mut rig = Rig::start(disk.dir());
        assert_eq!(rig.serving(), Some(bundle.digest));
        rig.assign(2, Some(&next));
        disk.empty();
        let reached = |rig: &Rig| {
            rig.outbox.retry();
            rig.state().is_some_and(|s| s.generation == 2 && s.update.state == UpdateState::Committed)
                || rig.has_event(DeviceEventKind::Failed, "bytes of disk")
        };
        rig.until("the update ends", Some(&next), reached);
        assert!(rig.serving().is_some());
    });
}

/// A file where a folder belongs refuses everything, like a disk that takes nothing.
#[test]
fn what_cannot_be_stored_fails_the_update_and_names_the_file() {
    for obstacle in ["slots/manifests", "slots/b"] {
        let folder = tempfile::tempdir().unwrap();
        let (bundle, next) = (good("1.0.0"), good("1.1.0"));
        let mut rig = committed(folder.path(), &bundle);
        let path = folder.path().join(obstacle);
        let aside = folder.path().join("aside");
        if path.exists() {
            fs::rename(&path, &aside).unwrap();
        }
        fs::write(&path, "in the way").unwrap();
        rig.assign(2, Some(&next));
        let state = rig.until_state(UpdateState::Failed, 2, Some(&next));
        let reason = state.update.reason.unwrap();
        assert!(reason.contains(obstacle) && reason.contains("os error"), "{reason}");
        assert_eq!(rig.serving(), Some(bundle.digest));
        // With the obstacle gone, the next assignment works. Where it belonged to no bundle, the agent removes it by itself.
        drop(fs::remove_file(&path));
        if aside.exists() {
            fs::rename(&aside, &path).unwrap();
        }
        rig.assign(3, Some(&next));
        rig.until_state(UpdateState::Committed, 3, Some(&next));
    }
}

#[test]
fn a_record_that_cannot_be_written_holds_the_update_up_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, next) = (good("1.0.0"), good("1.1.0"));
    let mut rig = committed(folder.path(), &bundle);
    let obstacle = folder.path().join("slots/record.json.new");
    fs::create_dir(&obstacle).unwrap();
    rig.asked.clear();
    rig.assign(2, Some(&next));
    rig.until("the manifest is stored", None, |_| {
        folder.path().join(format!("slots/manifests/{}.json", next.digest)).exists()
    });
    assert_eq!(rig.serving(), Some(bundle.digest));
    assert!(rig.asked.is_empty() && rig.state().unwrap().generation == 1, "nothing goes on that is not written down");
    fs::remove_dir(&obstacle).unwrap();
    commits(&mut rig, 2, &next);
    fs::create_dir(&obstacle).unwrap();
    rig.assign(3, Some(&bundle));
    rig.stop();
    assert!(record_of(folder.path()).contains("\"generation\":2"));
}

#[test]
fn a_damaged_record_is_told_once_and_what_it_said_before_serves() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = good("1.0.0");
    committed(folder.path(), &bundle).stop();
    fs::write(folder.path().join("slots/record.json"), "torn").unwrap();
    let told = |rig: &Rig| {
        rig.events().iter().filter(|e| e.kind == DeviceEventKind::Alarm && e.detail.contains("was damaged")).count()
    };
    let mut rig = Rig::start(folder.path());
    assert_eq!(rig.serving(), Some(bundle.digest));
    rig.until("it is told", None, |rig| told(rig) == 1 && record_of(&rig.data_dir).contains("\"untold\":[]"));
    rig.stop();
    assert_eq!(told(&Rig::start(folder.path())), 1);
}

#[test]
fn a_lost_manifest_of_the_committed_bundle_comes_again_with_the_assignment() {
    for damage in [None, Some(&b"rubbish"[..]), Some(&[b' '; 9_000_000])] {
        let folder = tempfile::tempdir().unwrap();
        let bundle = good("1.0.0");
        committed(folder.path(), &bundle).stop();
        let path = folder.path().join(format!("slots/manifests/{}.json", bundle.digest));
        match damage {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let mut rig = Rig::start(folder.path());
        assert_eq!(rig.serving(), None);
        assert!(rig.has_event(DeviceEventKind::Alarm, "missing or damaged"), "{:#?}", rig.events());
        rig.assign(1, Some(&bundle));
        rig.until("it serves again", None, |rig| rig.serving() == Some(bundle.digest));
        rig.until("it says so", None, |rig| rig.state().is_some_and(|s| s.running.is_some()));
        assert!(rig.asked.is_empty(), "its files were there all the time");
        rig.stop();
        assert_eq!(Rig::start(folder.path()).serving(), Some(bundle.digest));
    }
}

#[test]
fn a_lost_manifest_comes_with_another_assignment_too() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = good("1.0.0");
    committed(folder.path(), &bundle).stop();
    fs::write(folder.path().join(format!("slots/manifests/{}.json", bundle.digest)), "{}").unwrap();
    let mut rig = Rig::start(folder.path());
    rig.assign(2, Some(&bundle));
    rig.until_state(UpdateState::Committed, 2, None);
    assert_eq!(rig.serving(), Some(bundle.digest));
}

#[test]
fn a_signed_bundle_that_is_no_model_fails_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = good("1.0.0");
    let mut rig = committed(folder.path(), &bundle);
    let golden = fixture("golden-1.0.0.json");
    let cases: [(&str, Vec<u8>, &str); 5] = [
        (MODEL_PATH, b"no model at all".to_vec(), "the model cannot be loaded"),
        (MODEL_PATH, Vec::new(), "the model"),
        (MODEL_PATH, fixture("digits-1.0.0.onnx")[..400].to_vec(), "the model cannot be loaded"),
        (GOLDEN_PATH, b"[".to_vec(), "golden examples are not readable"),
        (GOLDEN_PATH, golden[..golden.len() / 2].to_vec(), "golden examples are not readable"),
    ];
    for (generation, (path, content, words)) in (2..).zip(cases) {
        let broken = bundle_of("1.1.0", path, &content);
        rig.assign(generation, Some(&broken));
        let reason = rig.until_state(UpdateState::Failed, generation, Some(&broken)).update.reason.unwrap();
        assert!(reason.contains(words), "{path}: {reason}");
        assert_eq!(rig.serving(), Some(bundle.digest));
    }
}

/// A genuine bundle in which the file at `path` holds `content`.
fn bundle_of(version: &str, path: &str, content: &[u8]) -> Bundle {
    let mut files = vec![(MODEL_PATH, fixture("digits-1.0.0.onnx")), (GOLDEN_PATH, fixture("golden-1.0.0.json"))];
    for file in &mut files {
        if file.0 == path {
            file.1 = content.to_vec();
        }
    }
    let mut described = Vec::new();
    let bundle = digits("1.0.0", "1.0.0", |manifest| {
        manifest.version = version.parse().unwrap();
        described = files.iter().map(|(path, content)| BundleFile::describe(*path, content)).collect();
        manifest.files = described.clone();
    });
    let chunks = files.iter().flat_map(|(_, content)| content.chunks(65_536).map(<[u8]>::to_vec)).collect();
    Bundle { chunks, ..bundle }
}

fn down() -> impl Strategy<Value = Down> {
    prop::sample::select(vec![Down::Assignment, Down::Chunk, Down::Root, Down::Command, Down::Ack, Down::Feedback])
}

/// What is done to a good message.
#[derive(Debug, Clone)]
struct Damage {
    at: prop::sample::Index,
    byte: u8,
    cut: bool,
}

fn damage() -> impl Strategy<Value = Damage> {
    (any::<prop::sample::Index>(), any::<u8>(), any::<bool>()).prop_map(|(at, byte, cut)| Damage { at, byte, cut })
}

/// One rig takes everything, as a device would; at the end it still does what it is told.
#[test]
fn whatever_comes_in_the_updater_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = good("1.0.0");
    let mut rig = committed(folder.path(), &bundle);
    let frame = ChunkFrame { manifest: bundle.digest, index: 3, encoding: ChunkEncoding::Plain, bytes: &[3; 900] };
    let roots = muster_shared::messages::RootDelivery { roots: vec![root(2, u64::MAX)] };
    let feedback = serde_json::json!({"batch": Digest::of(b"b"), "items": [{"id": "a", "label": 1}]});
    let good_messages = [
        // Of an earlier generation, so that damage to a mere hint changes nothing.
        (Down::Assignment, delivery(0, Some(&bundle), |_| {})),
        (Down::Chunk, frame.encode()),
        (Down::Root, serde_json::to_vec(&roots).unwrap()),
        (Down::Command, br#"{"command":"self-test"}"#.to_vec()),
        (Down::Feedback, feedback.to_string().into_bytes()),
    ];
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let anything = (down(), prop::collection::vec(any::<u8>(), 0..300), 0..good_messages.len(), damage());
    runner
        .run(&anything, |(kind, bytes, which, damage)| {
            rig.tell(kind, bytes);
            let (kind, mut bytes) = good_messages[which].clone();
            let at = damage.at.index(bytes.len());
            if damage.cut {
                bytes.truncate(at);
            } else {
                bytes[at] = damage.byte;
            }
            rig.tell(kind, bytes);
            Ok(())
        })
        .unwrap();
    assert!(!rig.running.as_ref().unwrap().has_ended());
    let next = good("1.1.0");
    rig.assign(2, Some(&next));
    rig.until_state(UpdateState::Committed, 2, Some(&next));
    assert_eq!(rig.serving(), Some(next.digest));
}
