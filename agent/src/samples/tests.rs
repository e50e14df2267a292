//! Samples on one device: real models, real files, real sealing; the statements are signed as the director signs them.

use std::path::Path;

use muster_inference::{Images, Tensor};
use muster_shared::collection::{
    Batch, CollectionStage, Collections, Phase, RecipientSecret, Rule, Sample, SampleLimits, Wanted, seal,
};
use muster_shared::ids::{CollectionId, DeviceId, Digest};
use muster_shared::profile::{Outliers, Profile};
use muster_shared::trust::{DocumentKind, Envelope, TrustedRoot, sign_document};
use proptest::prelude::*;
use tempfile::TempDir;

use super::orders::OrderError;
use super::store::{Found, State, Store};
use super::*;
use crate::config::SamplesConfig;
use crate::host::ServedModel;
use crate::host::fixtures::{column_of, digits, doubling, held_out};
use crate::time::EffectiveTime;
use crate::tiny_disk::TinyDisk;
use crate::trust_store::tests::{pin, root, signer};

fn device() -> DeviceId {
    DeviceId::new("press-7").unwrap()
}

fn secret() -> RecipientSecret {
    RecipientSecret::parse(&"5a".repeat(32)).unwrap()
}

fn allowing() -> SamplesConfig {
    SamplesConfig { allow: true, ..SamplesConfig::default() }
}

fn trusted() -> TrustedRoot {
    TrustedRoot::first(root(1, u64::MAX), Some(pin())).unwrap()
}

fn wanted(manifest: Digest, rule: Rule) -> Wanted {
    Wanted {
        collection: CollectionId::new("c1").unwrap(),
        manifests: vec![manifest],
        rule,
        limits: SampleLimits { max_count: 20, max_bytes: 1 << 20 },
        phase: Phase::Open,
        ends_ms: wall_ms() + 3_600_000,
        upload_by_ms: wall_ms() + 7_200_000,
        recipient: secret().public(),
    }
}

fn statement(generation: u64, collections: Vec<Wanted>) -> (Envelope, Collections) {
    let document = Collections {
        device: device(),
        generation,
        issued_at_ms: wall_ms(),
        expires_ms: wall_ms() + 86_400_000,
        collections,
    };
    (sign_document(DocumentKind::Collections, &document, [&signer()]).unwrap(), document)
}

struct Rig {
    folder: TempDir,
    samples: Samples,
    keeping: Option<Keeping>,
}

impl Rig {
    fn new(config: SamplesConfig) -> Self {
        Self::over(tempfile::tempdir().unwrap(), config)
    }

    fn over(folder: TempDir, config: SamplesConfig) -> Self {
        let samples = Samples::new(folder.path(), config, EffectiveTime::default());
        samples.restore(&device(), &trusted());
        let keeping = Some(samples.start().unwrap());
        Self { folder, samples, keeping }
    }

    /// Ends in order and starts again.
    fn restart(mut self) -> Self {
        self.keeping.take().unwrap().stop();
        Self::over(self.folder, allowing())
    }

    fn tell(&self, generation: u64, collections: Vec<Wanted>) -> Result<(), OrderError> {
        let (envelope, document) = statement(generation, collections);
        self.samples.accept(&envelope, document, trusted().director_epoch())
    }

    fn offer(&self, model: &ServedModel, id: usize, inputs: Vec<Tensor>) {
        let outputs = model.model.run(&inputs).unwrap();
        let id = format!("req-{id}");
        self.samples.offer(
            model,
            &Offered { id: &id, at_ms: wall_ms(), inputs: &inputs, images: &Images::NONE, outputs: &outputs },
        );
        // The queue is bounded: a test that wants every sample waits until there is room.
        self.until(|hot| hot.queue.is_empty());
    }

    fn until(&self, is: impl Fn(&Hot) -> bool) {
        while !is(&self.samples.hot()) {
            std::thread::yield_now();
        }
    }

    fn stage(&self) -> CollectionStage {
        self.samples.report().collections[0].stage
    }

    /// What would be uploaded, opened; every batch is taken for stored.
    fn uploaded(&self) -> Vec<Sample> {
        let id = CollectionId::new("c1").unwrap();
        let mut opened = Vec::new();
        while let Some((number, _, bytes)) = self.samples.next_batch(&id).unwrap() {
            let frames = Batch::frames(&bytes).unwrap();
            for frame in &frames {
                let content = seal::open(&secret(), &id, &device(), frame).unwrap();
                opened.push(Sample::from_bytes(&content).unwrap());
            }
            self.samples.batch_stored(&id, number, frames.len() as u64).unwrap();
        }
        opened
    }
}

fn images() -> Vec<Vec<f32>> {
    held_out().into_iter().map(|(_, pixels)| pixels).collect()
}

fn image(pixels: &[f32]) -> Vec<Tensor> {
    vec![Tensor::from_f32("image", vec![1, 64], pixels).unwrap()]
}

fn everything(rule: Rule) -> Wanted {
    wanted(Digest::of(b"1.1.0"), rule)
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

#[test]
fn what_was_sent_is_what_the_recipient_opens_and_nothing_of_it_lies_on_the_disk() {
    let rig = Rig::new(allowing());
    let model = digits("1.1.0", 3);
    rig.tell(1, vec![everything(Rule::Random { share: 1.0 })]).unwrap();
    let images = images();
    for (id, pixels) in images.iter().take(12).enumerate() {
        rig.offer(&model, id, image(pixels));
    }
    rig.until(|hot| hot.collections[0].under_way == 0);
    rig.samples.flush_all();
    let raw: Vec<u8> = images[3].iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
    let on_disk = files_below(&rig.folder.path().join("samples"));
    assert!(on_disk.iter().any(|path| path.extension().is_some_and(|end| end == "sealed")), "{on_disk:?}");
    for path in &on_disk {
        let bytes = std::fs::read(path).unwrap();
        let shows = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!shows(&raw[..128]) && !shows(b"req-3") && !shows(b"image"), "{}", path.display());
    }
    rig.tell(2, vec![Wanted { phase: Phase::Closed, ..everything(Rule::Random { share: 1.0 }) }]).unwrap();
    rig.until(|hot| hot.collections[0].stage == CollectionStage::Uploading);
    let opened = rig.uploaded();
    assert_eq!((opened.len(), rig.stage()), (12, CollectionStage::Uploaded));
    for sample in &opened {
        let at: usize = sample.id.strip_prefix("req-").unwrap().parse().unwrap();
        let expected = image(&images[at]);
        assert_eq!((sample.inputs[0].name.as_str(), &sample.inputs[0].shape), ("image", &vec![1, 64]));
        assert_eq!(sample.inputs[0].data, expected[0].data());
        let outputs = model.model.run(&expected).unwrap();
        assert_eq!(
            sample.outputs.iter().map(|t| t.data.clone()).collect::<Vec<_>>(),
            outputs.iter().map(|t| t.data().to_vec()).collect::<Vec<_>>()
        );
        assert_eq!((sample.manifest, sample.generation), (model.manifest, 3));
        let confidence = outputs.iter().find(|tensor| tensor.name() == "probabilities").unwrap();
        let largest = confidence.values().fold(f64::MIN, f64::max);
        assert_eq!(sample.confidence, [largest]);
    }
    // Uploaded, nothing is left but the note that it was.
    let left = files_below(&rig.folder.path().join("samples/c1"));
    assert_eq!(left.len(), 1, "{left:?}");
    let rig = rig.restart();
    let progress = rig.samples.report().collections.remove(0);
    assert_eq!((progress.stage, progress.uploaded, progress.held), (CollectionStage::Uploaded, 12, 0));
    // Deleted, not even that.
    rig.tell(3, vec![]).unwrap();
    assert!(files_below(&rig.folder.path().join("samples")).iter().all(|path| path.ends_with("orders.json")));
}

#[test]
fn nothing_is_collected_that_the_owner_does_not_allow() {
    let other = RecipientSecret::parse(&"11".repeat(32)).unwrap().public();
    let rule = Rule::Random { share: 1.0 };
    for (config, rule, words) in [
        (SamplesConfig::default(), rule, "does not allow it: [samples] allow"),
        (SamplesConfig { recipients: vec![other], ..allowing() }, rule, "[samples] recipients"),
    ] {
        let allow = config.allow;
        let rig = Rig::new(config);
        let model = digits("1.1.0", 3);
        rig.tell(1, vec![everything(rule)]).unwrap();
        assert!(!rig.samples.is_open());
        rig.offer(&model, 1, image(&images()[0]));
        let report = rig.samples.report();
        assert_eq!((report.generation, report.allowed), (1, allow));
        let progress = &report.collections[0];
        assert_eq!((progress.stage, progress.held, progress.matched), (CollectionStage::Refused, 0, 0));
        assert!(progress.reason.as_ref().unwrap().contains(words), "{progress:?}");
        assert!(!files_below(rig.folder.path()).iter().any(|path| path.extension().is_some_and(|end| end == "sealed")));
    }
}

#[test]
fn a_device_that_allows_no_more_deletes_what_it_kept() {
    let rig = Rig::new(allowing());
    let model = digits("1.1.0", 3);
    rig.tell(1, vec![everything(Rule::Random { share: 1.0 })]).unwrap();
    rig.offer(&model, 1, image(&images()[0]));
    let mut rig = rig.restart();
    assert!(rig.samples.is_open());
    rig.keeping.take().unwrap().stop();
    let rig = Rig::over(rig.folder, SamplesConfig::default());
    assert!(!rig.folder.path().join("samples").exists() && !rig.samples.is_open());
}

#[test]
fn old_and_changed_statements_are_refused_also_after_a_restart() {
    let open = || vec![everything(Rule::Random { share: 1.0 })];
    let rig = Rig::new(allowing());
    rig.tell(4, open()).unwrap();
    let again = rig.samples.hot().statement.clone();
    rig.tell(4, again).unwrap();
    assert!(matches!(rig.tell(4, vec![]), Err(OrderError::Changed(4))));
    rig.tell(5, vec![]).unwrap();
    let mut rig = rig;
    for _ in 0..2 {
        // Closed and deleted: whoever recorded the statement that opened it cannot open it again.
        assert!(matches!(rig.tell(4, open()), Err(OrderError::Older { found: 4, known: 5 })));
        assert!(rig.samples.report().collections.is_empty() && !rig.samples.is_open());
        rig = rig.restart();
    }
    // Another epoch of the director's keys begins anew.
    let (envelope, document) = statement(1, open());
    rig.samples.accept(&envelope, document, trusted().director_epoch() + 1).unwrap();
    assert!(rig.samples.is_open());
}

#[test]
fn a_stored_statement_counts_only_while_it_verifies_and_is_in_date() {
    let rig = Rig::new(allowing());
    rig.tell(4, vec![everything(Rule::Random { share: 1.0 })]).unwrap();
    let mut rig = rig.restart();
    assert!(rig.samples.is_open());
    rig.keeping.take().unwrap().stop();
    let path = rig.folder.path().join("samples/orders.json");
    let whole = std::fs::read(&path).unwrap();
    let (mut forged, _) = statement(9, vec![everything(Rule::Random { share: 1.0 })]);
    forged.signatures.clear();
    let forged = serde_json::json!({ "epoch": 1, "envelope": forged });
    for bytes in [b"{".to_vec(), serde_json::to_vec(&forged).unwrap(), whole[..whole.len() / 2].to_vec()] {
        std::fs::write(&path, bytes).unwrap();
        let other = Samples::new(rig.folder.path(), allowing(), EffectiveTime::default());
        other.restore(&device(), &trusted());
        assert!(!other.is_open() && other.report().generation == 0);
    }
    let (envelope, mut document) = statement(4, vec![everything(Rule::Random { share: 1.0 })]);
    document.expires_ms = 1;
    let expired = sign_document(DocumentKind::Collections, &document, [&signer()]).unwrap();
    assert_ne!(envelope, expired);
    std::fs::write(&path, serde_json::to_vec(&serde_json::json!({ "epoch": 1, "envelope": expired })).unwrap())
        .unwrap();
    let other = Samples::new(rig.folder.path(), allowing(), EffectiveTime::default());
    other.restore(&device(), &trusted());
    // Expired, it collects nothing, and still keeps older ones out.
    assert!(!other.is_open() && other.report().generation == 4);
}

#[test]
fn rules_choose_what_they_say() {
    let mut model = digits("1.1.0", 3);
    let flagging =
        Profile { outliers: Some(Outliers { expected_share: 0.0, distance: None }), ..(*model.profile).clone() };
    model.profile = Arc::new(flagging);
    let images = images();
    let confidence = |pixels: &[f32]| {
        let outputs = model.model.run(&image(pixels)).unwrap();
        let output = outputs.into_iter().find(|tensor| tensor.name() == "probabilities").unwrap();
        output.values().fold(f64::MIN, f64::max)
    };
    let low: Vec<usize> = (0..images.len()).filter(|at| confidence(&images[*at]) < 0.9).collect();
    assert!(!low.is_empty() && low.len() < images.len());
    let mut strange = images[0].clone();
    strange[20] = 1e6;
    let rig = Rig::new(SamplesConfig { max_count: 2_000, ..allowing() });
    let many = SampleLimits { max_count: 500, max_bytes: 1 << 20 };
    let named =
        |name: &str, rule| Wanted { collection: CollectionId::new(name).unwrap(), limits: many, ..everything(rule) };
    rig.tell(1, vec![named("low", Rule::LowConfidence { below: 0.9 }), named("odd", Rule::Outlier {})]).unwrap();
    for (id, pixels) in images.iter().chain([&strange]).enumerate() {
        rig.offer(&model, id, image(pixels));
    }
    rig.until(|hot| hot.collections.iter().all(|collection| collection.under_way == 0));
    let report = rig.samples.report();
    let strange_is_low = u64::from(confidence(&strange) < 0.9);
    assert_eq!(report.collections[0].held, low.len() as u64 + strange_is_low);
    // What is kept for being odd is what the answer calls odd.
    let finder = muster_inference::OutlierFinder::new(&model.profile, &model.signature).unwrap().unwrap();
    let odd = images
        .iter()
        .chain([&strange])
        .filter(|pixels| finder.find(&image(pixels), &Images::NONE).text().is_some())
        .count();
    assert!((1..=images.len()).contains(&odd));
    assert_eq!(report.collections[1].held, odd as u64);
    // A profile that flags nothing has no outliers, and that is said.
    let rig = Rig::new(allowing());
    let plain = digits("1.1.0", 3);
    rig.tell(1, vec![wanted(plain.manifest, Rule::Outlier {})]).unwrap();
    rig.offer(&plain, 1, image(&strange));
    assert!(rig.samples.report().collections[0].reason.as_ref().unwrap().contains("outliers.flag"));
    // A profile without a confidence cannot be held against a threshold, and that is said.
    let rig = Rig::new(allowing());
    let model = doubling("9.0.0", 1);
    rig.tell(1, vec![wanted(model.manifest, Rule::LowConfidence { below: 0.5 })]).unwrap();
    rig.offer(&model, 1, vec![column_of("x", &[1.0])]);
    assert!(rig.samples.report().collections[0].reason.as_ref().unwrap().contains("no confidence"));
    let other = digits("1.0.0", 1);
    rig.offer(&other, 1, image(&images[0]));
    assert_eq!(rig.samples.report().collections[0].matched, 0, "another bundle's inferences do not count");
}

#[test]
fn what_a_shadow_disagrees_with_is_kept_for_those_who_ask_for_either_model() {
    let (model, shadow) = (digits("1.1.0", 3), Digest::of(b"shadow"));
    let rig = Rig::new(allowing());
    let named = |name: &str, manifest, rule| Wanted {
        collection: CollectionId::new(name).unwrap(),
        limits: SampleLimits { max_count: 20, max_bytes: 1 << 18 },
        ..wanted(manifest, rule)
    };
    let disagreement = Rule::ShadowDisagreement {};
    rig.tell(
        1,
        vec![
            named("c1", model.manifest, disagreement),
            named("c2", shadow, disagreement),
            named("c3", Digest::of(b"other"), disagreement),
            named("c4", model.manifest, Rule::Random { share: 1.0 }),
        ],
    )
    .unwrap();
    for (id, pixels) in images().iter().enumerate().take(3) {
        rig.offer(&model, id, image(pixels));
    }
    let inputs = image(&images()[0]);
    let outputs = model.model.run(&inputs).unwrap();
    let offered = Offered { id: "req-0", at_ms: wall_ms(), inputs: &inputs, images: &Images::NONE, outputs: &outputs };
    rig.samples.offer_disagreement(&model, &shadow, &offered, &["class".to_owned()]);
    rig.until(|hot| hot.collections.iter().all(|collection| collection.under_way == 0));
    let held: Vec<u64> = rig.samples.report().collections.iter().map(|progress| progress.held).collect();
    assert_eq!(held, [1, 1, 0, 3], "an answer alone shows no disagreement, and a disagreement is no second answer");
    let closed = Wanted { phase: Phase::Closed, ..named("c1", model.manifest, disagreement) };
    rig.tell(2, vec![closed]).unwrap();
    rig.until(|hot| hot.collections[0].stage == CollectionStage::Uploading);
    let kept = rig.uploaded();
    assert_eq!(
        (kept.len(), &kept[0].id, &kept[0].flags),
        (1, &"req-0".to_owned(), &vec!["shadow-disagrees class".to_owned()])
    );
    assert_eq!(
        (kept[0].manifest, kept[0].outputs.len()),
        (model.manifest, outputs.len()),
        "it is the incumbent's answer"
    );
}

#[test]
fn a_collection_ends_with_its_time_also_where_the_clock_stands_still() {
    let rig = Rig::new(allowing());
    let model = digits("1.1.0", 3);
    rig.tell(1, vec![Wanted { ends_ms: wall_ms() + 300, ..everything(Rule::Random { share: 1.0 }) }]).unwrap();
    rig.offer(&model, 1, image(&images()[0]));
    rig.until(|hot| hot.collections[0].stage == CollectionStage::Uploading);
    assert!(!rig.samples.is_open());
    assert_eq!(rig.uploaded().len(), 1);
    // By the clock that does not jump: the wall's says that there is an hour left.
    rig.tell(
        2,
        vec![Wanted { collection: CollectionId::new("c2").unwrap(), ..everything(Rule::Random { share: 1.0 }) }],
    )
    .unwrap();
    rig.samples.hot().collections[0].ends_at_ms = 0;
    rig.samples.inner.work.notify_all();
    rig.until(|hot| hot.collections[0].stage == CollectionStage::Uploaded);
}

#[test]
fn what_is_not_uploaded_in_time_is_deleted() {
    let rig = Rig::new(allowing());
    let model = digits("1.1.0", 3);
    let soon = wall_ms() + 300;
    rig.tell(1, vec![Wanted { ends_ms: soon, upload_by_ms: soon + 1, ..everything(Rule::Random { share: 1.0 }) }])
        .unwrap();
    rig.offer(&model, 1, image(&images()[0]));
    rig.until(|hot| hot.collections[0].stage == CollectionStage::GivenUp);
    let rig = rig.restart();
    let progress = rig.samples.report().collections.remove(0);
    assert!(progress.stage == CollectionStage::GivenUp && progress.reason.unwrap().contains("not uploaded in time"));
}

#[test]
fn after_a_power_cut_the_reservoir_is_as_it_was_written_last() {
    let rig = Rig::new(allowing());
    let model = digits("1.1.0", 3);
    rig.tell(1, vec![everything(Rule::Random { share: 1.0 })]).unwrap();
    let images = images();
    for (id, pixels) in images.iter().take(30).enumerate() {
        rig.offer(&model, id, image(pixels));
    }
    rig.until(|hot| hot.collections[0].under_way == 0);
    rig.samples.flush_all();
    let written = rig.samples.report().collections.remove(0);
    let cut = tempfile::tempdir().unwrap();
    std::process::Command::new("cp").arg("-r").arg(rig.folder.path().join("samples")).arg(cut.path()).status().unwrap();
    for (id, pixels) in images.iter().skip(30).take(10).enumerate() {
        rig.offer(&model, 30 + id, image(pixels));
    }
    // Half of a file that was being written.
    std::fs::write(cut.path().join("samples/c1/0000000000000099.sealed"), "MSR1 and so on").unwrap();
    std::fs::write(cut.path().join("samples/c1/0000000000000098.sealed.new"), "MSR1").unwrap();
    let again = Rig::over(cut, allowing());
    let found = again.samples.report().collections.remove(0);
    assert_eq!((found.held, found.matched, found.held_bytes), (20, 30, written.held_bytes));
    let told = again.samples.hot().statement[0].clone();
    again.tell(2, vec![Wanted { phase: Phase::Closed, ..told }]).unwrap();
    again.until(|hot| hot.collections[0].stage == CollectionStage::Uploading);
    // Cut off in the middle of the upload, it goes on where it was.
    let again = again.restart();
    assert_eq!(again.uploaded().len(), 20);
}

#[test]
fn a_full_disk_costs_samples_and_nothing_else() {
    TinyDisk::run("samples::tests::a_full_disk_costs_samples_and_nothing_else", 4, |disk| {
        let folder = tempfile::tempdir_in(disk.dir()).unwrap();
        let rig = Rig::over(folder, SamplesConfig { max_bytes: 1 << 40, ..allowing() });
        let model = doubling("9.0.0", 1);
        let limits = SampleLimits { max_count: 1_000, max_bytes: 1 << 30 };
        rig.tell(1, vec![Wanted { limits, ..wanted(model.manifest, Rule::Random { share: 1.0 }) }]).unwrap();
        let rows = vec![1.5; 20_000];
        for id in 0..60 {
            rig.offer(&model, id, vec![column_of("x", &rows)]);
        }
        rig.until(|hot| hot.collections[0].under_way == 0);
        rig.samples.flush_all();
        let progress = rig.samples.report().collections.remove(0);
        assert!(progress.reason.as_ref().unwrap().contains("cannot write"), "{progress:?}");
        // Of 19 MB, what found room and what still waits in memory is held; everything else is counted.
        assert_eq!(progress.held + progress.lost, 60, "{progress:?}");
        assert!(progress.lost > 0 && progress.held > 0, "{progress:?}");
    });
}

#[test]
fn what_waits_is_bounded_and_what_is_passed_over_is_counted() {
    // Nobody takes anything out of the queue.
    let folder = tempfile::tempdir().unwrap();
    let samples = Samples::new(folder.path(), allowing(), EffectiveTime::default());
    samples.restore(&device(), &trusted());
    let model = digits("1.1.0", 3);
    let (envelope, document) = statement(1, vec![everything(Rule::Random { share: 1.0 })]);
    samples.accept(&envelope, document, 1).unwrap();
    for id in 0..500 {
        let inputs = image(&images()[0]);
        let id = id.to_string();
        samples.offer(
            &model,
            &Offered { id: &id, at_ms: wall_ms(), inputs: &inputs, images: &Images::NONE, outputs: &[] },
        );
    }
    let hot = samples.hot();
    let progress = hot.collections[0].progress();
    assert!(hot.queue.len() <= 64, "{}", hot.queue.len());
    assert_eq!(progress.dropped + progress.matched, 500);
    assert!(progress.dropped > 0);
}

fn state(reservoir: &Reservoir) -> State {
    State { reservoir: reservoir.clone(), dropped: 1, too_large: 2, lost: 3 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_order_of_events_passes_the_room_on_disk_or_loses_what_is_kept(
        steps in prop::collection::vec((0..8u8, 60..4_000usize), 1..150),
        seed: u64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let max_bytes = 16 * 1024;
        let mut reservoir = Reservoir::new(12, max_bytes, seed);
        let (mut store, found) = Store::open(&folder.path().join("c"), 2 * max_bytes).unwrap();
        prop_assert_eq!(found, Found::Nothing);
        let mut written = None;
        for (step, length) in steps {
            match step {
                0 => {
                    // Without anything new, nothing is written.
                    if store.pending_bytes() > 0 {
                        written = Some(reservoir.clone());
                    }
                    store.flush(&state(&reservoir)).unwrap();
                    // What is being written comes on top for a moment; then files that are mostly kept may be left over.
                    prop_assert!(store.disk_bytes() <= 2 * max_bytes + max_bytes / 2 + 8_192, "{}", store.disk_bytes());
                }
                1 if written.is_some() => {
                    let before = written.clone().unwrap();
                    let (again, found) = Store::open(&folder.path().join("c"), 2 * max_bytes).unwrap();
                    let Found::Sampling(found) = found else { panic!("{found:?}") };
                    let mut numbers: Vec<u64> = before.kept().iter().map(|kept| kept.number).collect();
                    let mut there: Vec<u64> = found.reservoir.kept().iter().map(|kept| kept.number).collect();
                    numbers.sort_unstable();
                    there.sort_unstable();
                    prop_assert_eq!(&numbers, &there);
                    for kept in found.reservoir.kept() {
                        let bytes = again.read(kept.number).unwrap();
                        prop_assert_eq!(bytes.len() as u64, kept.bytes);
                        prop_assert!(bytes.iter().all(|byte| u64::from(*byte) == kept.number % 251));
                    }
                    (store, reservoir) = (again, found.reservoir);
                }
                _ => {
                    if reservoir.accepts()
                        && let muster_agent_core::reservoir::Placed::Kept { number, given_up } = reservoir.place(length as u64)
                    {
                        store.put(number, vec![u8::try_from(number % 251).unwrap(); length]);
                        given_up.into_iter().for_each(|gone| store.give_up(gone));
                    }
                }
            }
        }
    }
}
