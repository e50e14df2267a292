//! Lets go of windows that have been kept long enough.

use std::sync::Arc;
use std::time::Duration;

use serde::de::IgnoredAny;
use tokio::sync::watch;

use crate::clock;
use crate::state::App;
use crate::store::records::window_key_floor;
use crate::store::{Expect, Records, StoreError, Table};

/// How often it is looked for old windows.
const EVERY: Duration = Duration::from_secs(600);
/// Windows removed in one batch.
const PAGE: usize = 512;

/// Removes old windows now and then, until the controller stops.
pub(crate) async fn keep_house(app: Arc<App>, mut shutdown: watch::Receiver<bool>) {
    loop {
        let before_ms = clock::now_ms().saturating_sub(app.config.telemetry.retention_ms);
        match remove_before(&app.records, before_ms).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "old monitoring windows removed"),
            Err(error) => tracing::warn!(%error, "old monitoring windows cannot be removed"),
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}

/// Removes every window that arrived before `before_ms`, and says how many.
async fn remove_before(records: &Records, before_ms: u64) -> Result<usize, StoreError> {
    let floor = window_key_floor(before_ms);
    let mut removed = 0;
    loop {
        let page = records.scan::<IgnoredAny>(Table::Windows, None, "", PAGE).await?;
        let full = page.len() == PAGE;
        let old: Vec<_> = page
            .into_iter()
            .take_while(|(key, _)| *key < floor)
            .map(|(key, _)| Records::delete(Table::Windows, key, Expect::Anything))
            .collect();
        let count = old.len();
        if count > 0 {
            records.commit(old).await?;
            removed += count;
        }
        if !full || count < PAGE {
            return Ok(removed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::records;

    #[tokio::test]
    async fn only_old_windows_go() {
        let (records, _folder) = records();
        let put = |at_ms: u64| {
            Records::put(Table::Windows, format!("{at_ms:020}/dev/telemetry/0/1"), Expect::Anything, &()).unwrap()
        };
        records.commit((0..1_500).map(put).collect()).await.unwrap();
        assert_eq!(remove_before(&records, 1_200).await.unwrap(), 1_200);
        assert_eq!(remove_before(&records, 1_200).await.unwrap(), 0);
        let left = records.all::<IgnoredAny>(Table::Windows, "").await.unwrap();
        assert_eq!((left.len(), left[0].0.starts_with("00000000000000001200/")), (300, true));
    }
}
