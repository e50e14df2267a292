//! Telling devices what they shall run: signing and sending.
//!
//! Every message is signed anew when it is sent, so a device that returns after a long time gets one that is in date.
//! What a rollout wanted that was stopped meanwhile is not told to devices that have not taken it up. Nor is a device told what it could not
//! read, as far as it has said what it understands.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use muster_rollout::goes_on_in_a_stop;
use muster_shared::ids::{DeviceId, Digest, RolloutId};
use muster_shared::limits::MAX_PACKET_BYTES;
use muster_shared::messages::RootDelivery;
use muster_shared::protocol::{Feature, NotUnderstood};
use muster_shared::rollout::RolloutStatus;
use muster_shared::topics::{Down, Topic};
use muster_shared::trust::{Assignment, Envelope, Track, TrustError};
use tokio::task::JoinSet;

use super::StatusOnly;
use super::prompts::prompt_if_behind;
use crate::broker::BrokerError;
use crate::clock;
use crate::collections;
use crate::state::App;
use crate::store::records::{Desired, RootRecord};
use crate::store::{StoreError, Stored, Table};

/// Devices told side by side.
const TASKS: usize = 4;
/// Assignments renewed at once: rollouts do not wait for a whole fleet's.
const RENEWED_AT_ONCE: usize = 200;

/// Why a device was not told. It is tried again.
#[derive(Debug, thiserror::Error)]
enum IssueError {
    /// The bundle is gone.
    #[error("there is no bundle with manifest {0}")]
    UnknownManifest(Digest),
    /// The assignment cannot be signed.
    #[error("the assignment cannot be signed")]
    Sign(#[from] TrustError),
    /// The device cannot read it.
    #[error(transparent)]
    NotUnderstood(#[from] NotUnderstood),
    /// The message cannot be written.
    #[error("the message cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// It cannot be sent.
    #[error("the message cannot be sent")]
    Broker(#[from] BrokerError),
    /// The store failed.
    #[error("the bundle or the root documents cannot be read")]
    Store(#[from] StoreError),
}

/// A signed manifest as it is sent.
struct WrittenManifest {
    /// Its envelope as JSON.
    json: Bytes,
    /// What its reader must know.
    features: BTreeSet<Feature>,
}

/// The manifests of one delivery, each written once for all devices.
type Manifests = HashMap<Digest, WrittenManifest>;

async fn written(app: &App, digest: &Digest) -> Result<WrittenManifest, IssueError> {
    let listed = app.catalogue.get(digest).await?.ok_or(IssueError::UnknownManifest(*digest))?;
    Ok(WrittenManifest { json: serde_json::to_vec(&listed.envelope)?.into(), features: listed.manifest.features() })
}

/// Checks that a device of number `protocol` reads a manifest with these `features`.
fn check_readable(features: &BTreeSet<Feature>, protocol: u32) -> Result<(), NotUnderstood> {
    let unknown: BTreeSet<Feature> = features.iter().copied().filter(|f| !f.is_known_to(protocol)).collect();
    if unknown.is_empty() { Ok(()) } else { Err(NotUnderstood(unknown)) }
}

/// The bytes of an [`muster_shared::messages::AssignmentDelivery`].
fn delivery_json(assignment: &Envelope, manifest: Option<&Bytes>) -> Result<Bytes, serde_json::Error> {
    let assignment = serde_json::to_vec(assignment)?;
    let manifest = manifest.map_or(&b"null"[..], |json| json);
    let parts = [&br#"{"assignment":"#[..], &assignment, br#","manifest":"#, manifest, b"}"];
    Ok(parts.concat().into())
}

async fn send(
    app: &App,
    device: &DeviceId,
    desired: &Desired,
    manifest: Option<&WrittenManifest>,
) -> Result<(), IssueError> {
    let (now_ms, protocol) = (clock::now_ms(), app.fleet.protocol(device));
    // Also what cannot be said counts: it is looked at again as rarely as if it had been.
    app.schedule.note_issued(device, desired.news(), now_ms);
    let assignment = Assignment {
        device: device.clone(),
        rollout: desired.rollout.clone(),
        manifest: desired.manifest,
        generation: desired.generation,
        issued_at_ms: now_ms,
        expires_ms: now_ms.saturating_add(app.config.rollout.assignment_valid_for_ms),
        watch: desired.watch,
        delivery: desired.delivery,
        stage: desired.stage.clone(),
        activation: desired.activation,
        track: desired.track,
    }
    .written_for(protocol)?;
    manifest.map_or(Ok(()), |manifest| check_readable(&manifest.features, protocol))?;
    let payload = delivery_json(&app.director.sign(&assignment)?, manifest.map(|manifest| &manifest.json))?;
    app.broker.publish(&Topic::down(device, Down::Assignment), payload).await?;
    app.metrics.assignment_sent();
    Ok(())
}

fn not_told(device: &DeviceId, error: &IssueError) {
    tracing::warn!(%device, %error, cause = ?std::error::Error::source(error), "an assignment was not sent; it is tried again");
}

/// Whether the rollout was stopped, alone or with the fleet: devices that have not taken up what it wanted must not hear of it any more,
/// or not before the fleet's stop is lifted.
async fn is_stopped(app: &App, rollout: &RolloutId) -> Result<bool, StoreError> {
    let stored = app.records.get::<StatusOnly>(Table::Rollouts, rollout.as_str()).await?;
    Ok(stored.is_some_and(|Stored { value: StatusOnly { status }, .. }| {
        status == RolloutStatus::Stopped || (app.schedule.is_fleet_stopped() && !goes_on_in_a_stop(status))
    }))
}

/// Tells devices again that have not accepted what they shall run, whichever rollout it came from.
pub(super) async fn remind(app: &Arc<App>) {
    let now_ms = clock::now_ms();
    let mut stopped: HashMap<RolloutId, bool> = HashMap::new();
    let mut due = Vec::new();
    for (device, desired) in app.fleet.behind() {
        if !app.schedule.is_due(&device, desired.news(), app.broker.is_sending(&device), now_ms) {
            continue;
        }
        let known = stopped.get(&desired.rollout).copied();
        let is_stopped = match known {
            Some(known) => Ok(known),
            None => is_stopped(app, &desired.rollout).await,
        };
        match is_stopped {
            Ok(is_stopped) => {
                stopped.insert(desired.rollout.clone(), is_stopped);
                if is_stopped && !app.fleet.has_taken_up(&device, &desired) {
                    // Nothing to say; looked at again as rarely as if it had been said.
                    app.schedule.note_issued(&device, desired.news(), now_ms);
                } else {
                    due.push((device, desired));
                }
            }
            Err(error) => tracing::error!(rollout = %desired.rollout, %error, "a rollout cannot be read"),
        }
    }
    deliver(app, due, false).await;
}

/// Renews assignments of connected devices when a quarter of their time has passed: should a message be lost, there are two more
/// before the end.
pub(super) async fn renew(app: &Arc<App>) {
    let now_ms = clock::now_ms();
    if !app.schedule.may_renew(now_ms) {
        return;
    }
    let quarter_ms = app.config.rollout.assignment_valid_for_ms / 4;
    let converged = app.fleet.converged().into_iter();
    let due =
        converged.filter(|(device, desired)| app.schedule.is_untold_for(device, desired.news(), now_ms, quarter_ms));
    deliver(app, due.take(RENEWED_AT_ONCE).collect(), false).await;
}

/// Tells every device of `assignments`, several at once. With `is_forward`, what a rollout wants that goes on: the rest of that is not said
/// once the fleet is stopped.
pub(super) async fn deliver(app: &Arc<App>, assignments: Vec<(DeviceId, Desired)>, is_forward: bool) {
    let mut manifests = Manifests::new();
    for digest in assignments.iter().filter_map(|(_, desired)| desired.manifest) {
        if let std::collections::hash_map::Entry::Vacant(entry) = manifests.entry(digest) {
            match written(app, &digest).await {
                Ok(manifest) => {
                    entry.insert(manifest);
                }
                Err(error) => {
                    tracing::error!(manifest = %digest, %error, "devices cannot be told to run a bundle");
                }
            }
        }
    }
    let manifests = Arc::new(manifests);
    let mut tasks = JoinSet::new();
    for share in assignments.chunks(assignments.len().div_ceil(TASKS).max(1)) {
        let (app, manifests, share) = (Arc::clone(app), Arc::clone(&manifests), share.to_vec());
        tasks.spawn(async move {
            for (device, desired) in share {
                if is_forward && app.schedule.is_fleet_stopped() {
                    return;
                }
                let manifest = desired.manifest.map(|digest| manifests.get(&digest));
                // None: it shall run nothing. Some(None): its manifest could not be read, which has been said.
                if let Some(None) = manifest {
                    app.schedule.note_issued(&device, desired.news(), clock::now_ms());
                    continue;
                }
                if let Err(error) = send(&app, &device, &desired, manifest.flatten()).await {
                    not_told(&device, &error);
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Tells a device that has just connected everything it should have: root documents after the first, which it has from
/// its enrolment, and what it shall run.
pub(crate) async fn reissue(app: &App, device: &DeviceId) {
    match root_messages(app).await {
        Ok(messages) => send_roots(app, device, &messages).await,
        Err(error) => tracing::error!(%error, "root documents cannot be read"),
    }
    // What it shall run comes before all that can wait: it may be the way out of an emergency.
    for track in Track::ALL {
        tell(app, device, track).await;
    }
    prompt_if_behind(app, device).await;
    collections::tell(app, device).await;
}

/// Tells the device what it shall run on `track`, unless that was stopped before it heard of it.
async fn tell(app: &App, device: &DeviceId, track: Track) {
    let Some(desired) = app.fleet.desired(device, track).filter(|_| app.fleet.understands(device, track)) else {
        return;
    };
    let sent = async {
        let is_untold = app.fleet.is_behind(device, track) && !app.fleet.has_taken_up(device, &desired);
        if is_untold && is_stopped(app, &desired.rollout).await? {
            return Ok(());
        }
        let manifest = match &desired.manifest {
            Some(digest) => Some(written(app, digest).await?),
            None => None,
        };
        send(app, device, &desired, manifest.as_ref()).await
    };
    if let Err(error) = sent.await {
        not_told(device, &error);
    }
}

/// Tells every connected device of the root documents, after a new one was taken in.
pub(crate) async fn announce_roots(app: &App) -> Result<(), StoreError> {
    let messages = root_messages(app).await?;
    for device in app.fleet.online() {
        send_roots(app, &device, &messages).await;
    }
    Ok(())
}

/// Tells devices of the root documents again that go on without the newest: a message may be lost on the way, or find no room on the
/// device's disk.
pub(super) async fn repeat_roots(app: &App) {
    let now_ms = clock::now_ms();
    let version = app.director.root_version();
    if version <= 1 {
        // Devices have the first from their enrolment; nobody is looked for among a whole fleet in every pass.
        return;
    }
    let mut behind = app.fleet.online_with_root_before(version);
    behind.retain(|device| app.schedule.may_tell_roots(device, version, now_ms));
    if behind.is_empty() {
        return;
    }
    match root_messages(app).await {
        Ok(messages) => {
            for device in behind {
                send_roots(app, &device, &messages).await;
            }
        }
        Err(error) => tracing::error!(%error, "root documents cannot be read"),
    }
}

async fn send_roots(app: &App, device: &DeviceId, messages: &[Bytes]) {
    for message in messages {
        if let Err(error) = app.broker.publish(&Topic::down(device, Down::Root), message.clone()).await {
            tracing::warn!(%device, %error, "root documents were not sent; the device gets them when it connects again");
            return;
        }
    }
}

/// Every root document after the first, in order, in as many messages as it takes.
async fn root_messages(app: &App) -> Result<Vec<Bytes>, StoreError> {
    let roots = app.records.all::<RootRecord>(Table::Roots, "").await?;
    let mut messages = Vec::new();
    let mut roots = roots.into_iter().skip(1).map(|(_, root)| root.value.envelope).peekable();
    while roots.peek().is_some() {
        let (mut delivery, mut bytes) = (RootDelivery { roots: Vec::new() }, 0);
        while let Some(root) = roots.next_if(|root| bytes == 0 || bytes + wire_bytes(root) < MAX_PACKET_BYTES / 2) {
            bytes += wire_bytes(&root);
            delivery.roots.push(root);
        }
        match serde_json::to_vec(&delivery) {
            Ok(json) => messages.push(json.into()),
            Err(error) => tracing::error!(%error, "root documents cannot be written as JSON"),
        }
    }
    Ok(messages)
}

fn wire_bytes(envelope: &Envelope) -> usize {
    envelope.payload.len() + envelope.signatures.len() * 256 + 256
}

#[cfg(test)]
mod tests {
    use muster_shared::messages::AssignmentDelivery;
    use muster_shared::trust::DocumentKind;

    use super::*;

    #[test]
    fn a_delivery_put_together_is_the_one_devices_read() {
        let assignment = Envelope::unsigned(DocumentKind::Assignment, b"{}");
        let manifest = Envelope::unsigned(DocumentKind::Manifest, b"{\"x\":1}");
        for manifest in [None, Some(manifest)] {
            let json = manifest.as_ref().map(|m| Bytes::from(serde_json::to_vec(m).unwrap()));
            let bytes = delivery_json(&assignment, json.as_ref()).unwrap();
            let read: AssignmentDelivery = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(read, AssignmentDelivery { assignment: assignment.clone(), manifest });
        }
    }
}
