//! What the updater does with what comes in: from the controller, and from its own work.

use muster_agent_core::update::Event;
use muster_inference::golden::GoldenReport;
use muster_shared::chunk::ChunkFrame;
use muster_shared::feedback::FeedbackDelivery;
use muster_shared::messages::{CollectionsDelivery, Command, DeviceEventKind, InstalledBundle, RootDelivery};
use muster_shared::topics::Down;

use super::download::Taken;
use super::{Done, SELF_TESTS_PER_HOUR, Updater, guarded};
use crate::causes::with_source;
use crate::mqtt::Told;

impl Updater {
    pub(super) fn told(&mut self, told: &Told) {
        match told.kind {
            Down::Assignment => self.assignment(&told.payload),
            Down::Chunk => self.chunk(&told.payload),
            Down::Root => match serde_json::from_slice::<RootDelivery>(&told.payload) {
                Ok(delivery) => self.roots(delivery),
                Err(error) => self.refuse(0, None, &format!("a delivery of root documents does not parse: {error}")),
            },
            Down::Command => match serde_json::from_slice::<Command>(&told.payload) {
                Ok(Command::SelfTest) => self.self_test(),
                Ok(Command::Renew) => self.parts.renew.notify_one(),
                Err(error) => self.refuse(0, None, &format!("a command does not parse: {error}")),
            },
            Down::Feedback => match serde_json::from_slice::<FeedbackDelivery>(&told.payload) {
                Ok(delivery) => self.feedback(&delivery),
                Err(error) => self.refuse(0, None, &format!("a delivery of labels does not parse: {error}")),
            },
            Down::Samples => self.collections(&told.payload),
            Down::Ack => {}
        }
    }

    fn feedback(&self, delivery: &FeedbackDelivery) {
        let host = &self.parts.host;
        let labels = host.active().and_then(|active| active.labels.clone());
        let receipt = host.feedback().deliver(delivery, labels.as_ref());
        // Where there is no room for it, the labels come again and are known by then.
        let _ = self.parts.receipts.try_send(receipt);
    }

    /// Which samples may be collected. What is refused changes nothing.
    fn collections(&mut self, payload: &[u8]) {
        let delivery: CollectionsDelivery = match serde_json::from_slice(payload) {
            Ok(delivery) => delivery,
            Err(error) => return self.refuse(0, None, &format!("collections of samples do not parse: {error}")),
        };
        if !self.check_root_date() {
            return;
        }
        let root = self.parts.trust.root();
        let (epoch, now_ms) = (root.director_epoch(), self.parts.trust.now_ms());
        let collections = match root.verify_collections(&delivery.collections, &self.parts.device, now_ms) {
            Ok(collections) => collections,
            Err(error) => return self.refuse(0, None, &format!("collections of samples are not trusted: {error}")),
        };
        if let Err(error) = self.parts.trust.learn_time(collections.issued_at_ms) {
            tracing::error!(error = %with_source(&error), "the time floor could not be raised");
        }
        if let Err(error) = self.parts.samples.accept(&delivery.collections, collections, epoch) {
            self.refuse(0, None, &with_source(&error));
        }
    }

    fn roots(&mut self, delivery: RootDelivery) {
        let before = self.parts.trust.root().director_epoch();
        let version = self.parts.trust.root().root().version;
        if let Err(error) = self.parts.trust.extend(delivery.roots) {
            self.refuse(0, None, &with_source(&error));
        }
        let root = self.parts.trust.root();
        if root.director_epoch() > before {
            tracing::info!(device = %self.parts.device, "another key signs assignments; what the one before claimed counts no more");
        }
        if root.root().version > version {
            tracing::info!(version = root.root().version, "root document taken");
            self.report();
        }
    }

    fn chunk(&mut self, payload: &[u8]) {
        let frame = match ChunkFrame::decode(payload) {
            Ok(frame) => frame,
            Err(error) => return self.refuse(0, None, &error.to_string()),
        };
        if self.program_chunk(&frame) {
            return;
        }
        let now_ms = self.clock.now_ms();
        let Some(download) = &mut self.download else { return self.parts.metrics.chunk_repeated() };
        let generation = download.generation;
        match download.take(&frame, now_ms) {
            Ok(Taken::Written) => {
                self.parts.gate.came(frame.index, frame.bytes.len());
                self.parts.metrics.chunk_received(frame.bytes.len());
            }
            Ok(Taken::Unwanted) => self.parts.metrics.chunk_repeated(),
            Ok(Taken::Wrong(reason)) => {
                let bundle = self.machine.record().update.as_ref().and_then(|u| u.bundle.clone());
                self.refuse(generation, bundle, &reason);
            }
            Err(error) => self.dispatch(Event::Obstructed { generation, reason: with_source(&error) }),
        }
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Checked { generation, result } => {
                passing!(FilesChecked);
                self.dispatch(Event::FilesChecked { generation, result });
            }
            Done::Tested { slot, generation, result } => {
                self.testing = self.testing.filter(|(tested, _)| *tested != generation);
                let result = result.map(|(loaded, report)| {
                    tracing::info!(
                        bundle = %loaded.manifest.short(),
                        examples = report.examples,
                        median_us = report.median_us,
                        max_abs_difference = report.max_abs_difference,
                        "golden examples passed"
                    );
                    let update = self.machine.record().update.as_ref();
                    // Another assignment may have come meanwhile: then the model is for nothing.
                    if update.is_some_and(|u| u.generation == generation && u.phase.working_slot() == Some(slot)) {
                        self.loaded.insert(slot, *loaded);
                    }
                });
                passing!(ModelTested);
                self.dispatch(Event::Tested { generation, result });
            }
            Done::Program(event) => {
                passing!(ProgramAnswered);
                self.program_event(event);
            }
            Done::SelfTested { running, result } => {
                self.self_testing = false;
                self.self_tested(&running, result);
            }
        }
    }

    fn self_tested(&self, running: &InstalledBundle, result: Result<GoldenReport, String>) {
        match result {
            Ok(report) => self.tell(
                DeviceEventKind::Verified,
                Some(running),
                &format!(
                    "self-test passed: {} golden examples, {} us at the median",
                    report.examples, report.median_us
                ),
            ),
            Err(reason) => {
                self.tell(DeviceEventKind::Alarm, Some(running), &format!("self-test failed: {reason}"));
            }
        }
    }

    fn self_test(&mut self) {
        // Whoever asks while one is running gets its result.
        if self.self_testing {
            return;
        }
        if !self.self_tests.take(self.clock.now_ms()) {
            let reason = format!("self-tests are asked for more than {SELF_TESTS_PER_HOUR} times an hour");
            return self.refuse(0, None, &reason);
        }
        let Some(running) = self.parts.host.current().map(|model| model.installed()) else {
            return self.tell(DeviceEventKind::Alarm, None, "self-test: nothing is running");
        };
        let found = self.loaded.iter().find(|(_, loaded)| loaded.manifest == running.manifest);
        let manifest = self.records.manifest(&running.manifest).ok().flatten();
        let (Some((slot, loaded)), Some((_, manifest))) = (found, manifest) else {
            return self.tell(DeviceEventKind::Alarm, Some(&running), "self-test: the bundle's files are not there");
        };
        let (slot, loaded, slots) = (*slot, loaded.clone(), self.slots.clone());
        self.self_testing = self.test_apart("self-test", move || {
            let result = guarded(|| loaded.check_again(&slots, slot, &manifest));
            Done::SelfTested { running, result }
        });
    }
}
