//! A bundle's model card: its manifest, and how it does in the field.
//!
//! Nothing is measured here that others do not measure: quality, drift and alerts are theirs, told for the whole fleet.

use muster_shared::alert::AlertState;
use muster_shared::api::{LatencyCard, LiveCard, ModelCard};
use muster_shared::ids::{BundleRef, Digest};
use muster_shared::messages::RequestCounts;
use muster_shared::sketch::LatencySketch;

use crate::drift::{self, DriftError};
use crate::executor::{self, ExecutorError};
use crate::quality;
use crate::state::App;
use crate::store::records::BundleRecord;
use crate::store::{StoreError, Table};
use crate::windows::{ReportError, Windows};

/// Rollouts a card tells of, the newest.
const MAX_ROLLOUTS: usize = 50;
/// Alerts a card tells of, the worst.
const MAX_ALERTS: usize = 100;
/// The trend is not shown; one point is enough.
const TREND_MS: u64 = u64::MAX;

/// Why there is no card.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CardError {
    /// Drift cannot be told.
    #[error(transparent)]
    Drift(#[from] DriftError),
    /// There is no such bundle, or its windows cannot be read.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Rollouts cannot be told.
    #[error(transparent)]
    Rollouts(#[from] ExecutorError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The card of `bundle`, its live figures being those of windows since `since_ms`.
///
/// # Errors
/// [`CardError`].
pub(crate) async fn card(app: &App, bundle: &BundleRef, since_ms: u64, now_ms: u64) -> Result<ModelCard, CardError> {
    let record = app.records.get::<BundleRecord>(Table::Bundles, &bundle.to_string()).await?;
    let record = record.ok_or_else(|| ReportError::UnknownBundle(bundle.clone()))?.value;
    let live = live(app, bundle, &record.manifest_digest, since_ms, now_ms).await?;
    Ok(ModelCard {
        bundle: record.bundle,
        manifest_digest: record.manifest_digest,
        signed_by: record.envelope.signatures.into_iter().map(|signature| signature.keyid).collect(),
        pushed_at_ms: Some(record.pushed_at_ms),
        manifest: record.manifest,
        live: Some(live),
    })
}

async fn live(
    app: &App,
    bundle: &BundleRef,
    manifest: &Digest,
    since_ms: u64,
    now_ms: u64,
) -> Result<LiveCard, CardError> {
    let runners = app.fleet.runners(manifest);
    let (requests, latency_us) = requests(app, manifest, since_ms).await?;
    let wish = quality::Wish { group_by: None, since_ms, trend_ms: TREND_MS };
    let quality = quality::report(app, bundle, wish).await?;
    let drift = drift::report(app, bundle, drift::Wish { since_ms, ..drift::Wish::default() }).await?;
    let name = bundle.to_string();
    let mut alerts =
        app.alerts.list(|alert| alert.state.is_active() && alert.labels.get("bundle") == Some(&name)).await;
    alerts
        .sort_by_key(|alert| (std::cmp::Reverse((alert.state == AlertState::Firing, alert.severity)), alert.began_ms));
    alerts.truncate(MAX_ALERTS);
    let quantile = |q| latency_us.quantile_us(q);
    let latency = quantile(0.5).zip(quantile(0.95)).zip(quantile(0.99));
    Ok(LiveCard {
        at_ms: now_ms,
        since_ms,
        devices: runners.running,
        devices_assigned: runners.assigned,
        running_since_ms: runners.since_ms,
        requests,
        error_rate: (requests.served > 0).then(|| requests.errors() as f64 / requests.served as f64),
        latency: latency.map(|((p50_us, p95_us), p99_us)| LatencyCard { p50_us, p95_us, p99_us }),
        quality,
        drift,
        alerts,
        rollouts: executor::rollouts_of(app, manifest, MAX_ROLLOUTS).await?,
    })
}

/// What devices counted of their requests to the bundle.
async fn requests(app: &App, manifest: &Digest, since_ms: u64) -> Result<(RequestCounts, LatencySketch), StoreError> {
    let mut sums = (RequestCounts::default(), LatencySketch::default());
    let mut windows = Windows::arrived(&app.records, since_ms);
    while let Some((_, window)) = windows.next().await? {
        if let Some(telemetry) = window.telemetry.filter(|_| window.key.manifest == *manifest) {
            sums.0.merge(&telemetry.requests);
            sums.1.merge(&telemetry.latency_us);
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use muster_shared::messages::{InstalledBundle, Position, StateReport, Stream, TelemetryWindow, WindowKey};

    use super::*;
    use crate::store::records::{WindowRecord, window_key};
    use crate::store::{Expect, Records};
    use crate::testing;

    #[tokio::test]
    async fn a_bundle_nobody_runs_has_a_card_and_one_that_runs_has_figures() {
        let test = testing::app().await;
        let manifest = test.bundle("digits", "1.0.0", 10).await;
        let (bundle, digest) = (manifest.bundle(), testing::digest_of(&manifest));
        let idle = card(&test.app, &bundle, 0, 9).await.unwrap();
        assert_eq!((idle.manifest.clone(), idle.signed_by.len()), (manifest, 1));
        let live = idle.live.unwrap();
        assert_eq!((live.devices, live.devices_assigned, live.requests.served, live.at_ms), (0, 0, 0, 9));
        assert_eq!((live.latency, live.error_rate, live.running_since_ms), (None, None, None));

        let device = test.enrol("dev-a", &[]).await;
        test.desire(&device, Some(digest), 1).await;
        let installed = InstalledBundle { manifest: digest, bundle: bundle.clone(), generation: 1 };
        test.app.fleet.update_report(&device, StateReport { running: Some(installed), ..StateReport::default() });
        let key = WindowKey { manifest: digest, generation: 1, start_ms: 1_000, duration_ms: 1 };
        let mut latency_us = LatencySketch::default();
        (0..100).for_each(|n| latency_us.add(if n < 96 { 1_000 } else { 50_000 }));
        let requests = RequestCounts { served: 100, failed: 3, non_finite: 1, ..RequestCounts::default() };
        let position = Position { epoch: 1, sequence: 1, oldest: 1 };
        let record = WindowRecord {
            device: device.clone(),
            received_at_ms: 1_000,
            position,
            key,
            telemetry: Some(TelemetryWindow {
                key,
                requests,
                latency_us,
                resources: Default::default(),
                comparison: None,
                objectives: Default::default(),
                numbers: Default::default(),
                program: None,
            }),
            sketch: None,
            crash: false,
            program: None,
        };
        let at = window_key(1_000, &device, Stream::Telemetry, &position);
        test.app
            .records
            .commit(vec![Records::put(Table::Windows, at, Expect::Absent, &record).unwrap()])
            .await
            .unwrap();
        let live = card(&test.app, &bundle, 0, 2_000).await.unwrap().live.unwrap();
        assert_eq!((live.devices, live.devices_assigned, live.requests.served), (1, 1, 100));
        assert!((live.error_rate.unwrap() - 0.04).abs() < 1e-12 && live.running_since_ms.is_some());
        let latency = live.latency.unwrap();
        assert!((latency.p95_us / 1_000.0 - 1.0).abs() < 0.03 && (latency.p99_us / 50_000.0 - 1.0).abs() < 0.03);
        let late = card(&test.app, &bundle, 1_001, 2_000).await.unwrap().live.unwrap();
        assert_eq!((late.requests.served, late.devices), (0, 1));
        let unknown = card(&test.app, &"digits@2.0.0".parse().unwrap(), 0, 1).await;
        assert!(matches!(unknown, Err(CardError::Report(ReportError::UnknownBundle(_)))));
    }
}
