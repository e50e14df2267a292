//! Windows that devices sent, read from the store for reports: page by page in order of arrival, so that memory does not grow with
//! them.
//!
//! What is added up is decided by those who read. A report is of one bundle; of its sketches only those come out that fit the
//! profile and the schema that were signed with it.

use std::sync::Arc;
use std::vec::IntoIter;

use muster_shared::ids::{BundleRef, DeviceId};
use muster_shared::messages::Sequenced;
use muster_shared::sketch::SketchWindow;

use crate::content::Listed;
use crate::state::App;
use crate::store::records::{LeftOut, Stored, WindowRecord, window_key_floor};
use crate::store::{Records, StoreError, Table};

/// Windows are kept in order of arrival, and a device's clock may run ahead of ours by this much, in milliseconds.
const CLOCK_SLACK_MS: u64 = 24 * 3_600_000;
/// Windows read at once.
const PAGE: usize = 256;

/// Groups of devices that one report may tell apart; where it tells more apart, all of it together.
pub(crate) const MAX_GROUPS: usize = 1_024;

/// Why there is no report on a bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportError {
    /// No such bundle.
    #[error("there is no bundle {0}")]
    UnknownBundle(BundleRef),
    /// The label has too many values.
    #[error("there are more than {MAX_GROUPS} groups: group by a label with fewer values")]
    TooManyGroups,
    /// The store failed.
    #[error("the monitoring windows cannot be read")]
    Store(#[from] StoreError),
}

/// Finds the bundle that a report is of.
///
/// # Errors
/// [`ReportError`].
pub(crate) async fn find(app: &App, bundle: &BundleRef) -> Result<Arc<Listed>, ReportError> {
    app.catalogue.find(bundle).await?.ok_or_else(|| ReportError::UnknownBundle(bundle.clone()))
}

/// All windows of all devices.
pub(crate) struct Windows<'a> {
    records: &'a Records,
    after: String,
    page: IntoIter<(String, Stored<WindowRecord>)>,
    is_last: bool,
}

impl<'a> Windows<'a> {
    /// Those that arrived at `arrived_ms` or later, in milliseconds since the Unix epoch.
    pub(crate) fn arrived(records: &'a Records, arrived_ms: u64) -> Self {
        Self { records, after: window_key_floor(arrived_ms), page: Vec::new().into_iter(), is_last: false }
    }

    /// Those that can have started at `since_ms` or later, by their device's clock; earlier ones come too.
    pub(crate) fn started(records: &'a Records, since_ms: u64) -> Self {
        Self::arrived(records, since_ms.saturating_sub(CLOCK_SLACK_MS))
    }

    /// The next one, with its key in the store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn next(&mut self) -> Result<Option<(String, WindowRecord)>, StoreError> {
        loop {
            if let Some((key, window)) = self.page.next() {
                return Ok(Some((key, window.value)));
            }
            if self.is_last {
                return Ok(None);
            }
            let page = self.records.scan(Table::Windows, Some(&self.after), "", PAGE).await?;
            self.is_last = page.len() < PAGE;
            if let Some((key, _)) = page.last() {
                self.after.clone_from(key);
            }
            self.page = page.into_iter();
        }
    }
}

/// The sketches of one bundle's windows.
pub(crate) struct Sketches<'a> {
    windows: Windows<'a>,
    listed: &'a Listed,
    since_ms: u64,
    retention_ms: u64,
    left_out: LeftOut,
}

/// One of them.
pub(crate) struct SketchSeen {
    /// Whose it is.
    pub(crate) device: DeviceId,
    /// When it was, in milliseconds since the Unix epoch: as the device says, unless its clock cannot be right. Then it counts as of when it
    /// arrived, and never as of later.
    pub(crate) at_ms: u64,
    /// What was counted.
    pub(crate) sketch: SketchWindow,
}

/// A sketch that does not fit the bundle it says it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unfit;

impl SketchSeen {
    /// The sketch of `window`, which is of `listed`; none where it holds something else.
    ///
    /// # Errors
    /// [`Unfit`].
    pub(crate) fn read(window: WindowRecord, listed: &Listed, retention_ms: u64) -> Result<Option<Self>, Unfit> {
        let at_ms = time_of(&window, retention_ms);
        let Some(bytes) = window.sketch.as_deref() else { return Ok(None) };
        let sketch = Sequenced::<SketchWindow>::decode(bytes).ok().map(|sketch| sketch.body);
        let sketch = sketch.filter(|sketch| listed.fits(sketch)).ok_or(Unfit)?;
        Ok(Some(Self { device: window.device, at_ms, sketch }))
    }
}

impl<'a> Sketches<'a> {
    /// Those of `listed` since `since_ms`.
    pub(crate) fn of(app: &'a App, listed: &'a Listed, since_ms: u64) -> Self {
        Self {
            // None counts as of later than it arrived.
            windows: Windows::arrived(&app.records, since_ms),
            listed,
            since_ms,
            retention_ms: app.config.telemetry.retention_ms,
            left_out: LeftOut::default(),
        }
    }

    /// The next one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn next(&mut self) -> Result<Option<SketchSeen>, StoreError> {
        self.next_beside(|_| {}).await
    }

    /// The next one. Counters of the bundle's requests that come before it are shown to `counters`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn next_beside(
        &mut self,
        mut counters: impl FnMut(&WindowRecord),
    ) -> Result<Option<SketchSeen>, StoreError> {
        while let Some((key, window)) = self.windows.next().await? {
            if window.key.manifest != self.listed.digest || time_of(&window, self.retention_ms) < self.since_ms {
                continue;
            }
            counters(&window);
            match SketchSeen::read(window, self.listed, self.retention_ms) {
                Ok(Some(seen)) => return Ok(Some(seen)),
                // Counters and crashes come in windows as well.
                Ok(None) => {}
                Err(Unfit) => self.left_out.add(Table::Windows, &key),
            }
        }
        std::mem::take(&mut self.left_out).tell();
        Ok(None)
    }
}

/// When `window` was, in milliseconds since the Unix epoch, if its device's clock can be right; else when it arrived.
pub(crate) fn time_of(window: &WindowRecord, retention_ms: u64) -> u64 {
    let (said_ms, arrived_ms) = (window.key.start_ms, window.received_at_ms);
    let is_sane = said_ms <= arrived_ms && arrived_ms <= said_ms.saturating_add(retention_ms);
    if is_sane { said_ms } else { arrived_ms }
}

#[cfg(test)]
mod tests {
    use muster_shared::ids::Digest;
    use muster_shared::messages::{Position, Stream, WindowKey};

    use super::*;
    use crate::store::Expect;
    use crate::store::records::window_key;
    use crate::testing::records;

    fn window(start_ms: u64, received_at_ms: u64) -> WindowRecord {
        WindowRecord {
            device: DeviceId::new("dev-1").unwrap(),
            received_at_ms,
            position: Position { epoch: 1, sequence: received_at_ms, oldest: 1 },
            key: WindowKey { manifest: Digest::of(b"m"), generation: 1, start_ms, duration_ms: 1_000 },
            telemetry: None,
            sketch: None,
            crash: false,
            program: None,
        }
    }

    #[test]
    fn a_wrong_clock_is_not_believed() {
        let retention_ms = 1_000_000;
        for (said_ms, arrived_ms, expected) in [
            (5_000_000, 5_001_000, 5_000_000),
            // Ahead, behind by more than is kept, and at the end of time.
            (5_002_000, 5_001_000, 5_001_000),
            (1_000, 5_001_000, 5_001_000),
            (u64::MAX, 5_001_000, 5_001_000),
        ] {
            assert_eq!(time_of(&window(said_ms, arrived_ms), retention_ms), expected);
        }
    }

    #[tokio::test]
    async fn every_window_comes_once_and_in_order() {
        let (records, _folder) = records();
        // Two pages and one more.
        let count = 2 * PAGE as u64 + 1;
        for at_ms in 1..=count {
            let window = window(at_ms, at_ms);
            let key = window_key(at_ms, &window.device, Stream::Sketch, &window.position);
            records.commit(vec![Records::put(Table::Windows, key, Expect::Absent, &window).unwrap()]).await.unwrap();
        }
        for from_ms in [0, 1, 2, count, count + 1] {
            let mut windows = Windows::arrived(&records, from_ms);
            let mut seen = Vec::new();
            while let Some((_, window)) = windows.next().await.unwrap() {
                seen.push(window.received_at_ms);
            }
            assert_eq!(seen, (from_ms.max(1)..=count).collect::<Vec<_>>(), "{from_ms}");
            assert!(windows.next().await.unwrap().is_none());
        }
    }
}
