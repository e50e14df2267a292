//! An attack on the controller's own broker by somebody who has the certificate and key of one device.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_shared::chunk::{ChunkFrame, ChunkSet};
use muster_shared::trust::Envelope;
use muster_tests::traffic::Traffic;
use muster_tests::wait;
use rumqttc::{
    AsyncClient, ConnectReturnCode, Event, EventLoop, LastWill, MqttOptions, Outgoing, Packet, QoS,
    SubscribeReasonCode, TlsConfiguration, Transport,
};

use crate::attack::{AtController, Attack};
use crate::forge::digest_of;
use crate::listing::Listing;
use crate::stage::{DEVICE, Ground, INCUMBENT, STOLEN};

const PATIENCE: Duration = Duration::from_secs(30);
const ANSWERS_AFTERWARDS: u64 = 20;
/// What the device that is spoken for writes anyway.
const WRITTEN_BY_EVERY_LIFE: [&str; 2] = ["agent.log", "data/outbox"];

/// Carries `attack` out against the running controller, the device `dev-1` being the one that is spoken for.
///
/// # Errors
/// When controller or device do not withstand it as expected.
pub(crate) async fn run(ground: &Ground, attack: &Attack, scene: &AtController) -> anyhow::Result<()> {
    ensure!(attack.plan.holds.is_empty(), "attack.json: whoever has a device's certificate holds no signing key");
    let device = ground.fleet.devices.iter().find(|device| device.id == DEVICE).context("no device")?;
    let written: Vec<PathBuf> = WRITTEN_BY_EVERY_LIFE.iter().map(PathBuf::from).collect();
    let before = (Listing::of(device.folder(), &written)?, ground.fleet.operator.device(DEVICE).await?);
    let agent_log = log_after(&device.folder().join("agent.log"), 0)?.len();
    let controller_log = ground.fleet.controller.folder().join("controller.log");
    let log_begins = log_after(&controller_log, 0)?.len();
    let mut traffic = Traffic::new(ground.images.clone(), Duration::from_millis(10));
    traffic.start(DEVICE, &device.inference_url);
    traffic.expect(DEVICE, true);

    strike(ground, scene).await?;

    wait::until_explained(
        "the controller's log says why",
        PATIENCE,
        async || {
            let log = log_after(&controller_log, log_begins)?;
            let said = |words: &Vec<String>| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
            Ok(scene.log.iter().all(said).then_some(()))
        },
        async || format!("{:?} are expected in {:?}", scene.log, log_after(&controller_log, log_begins)),
    )
    .await?;
    let answered = traffic.seen_by(DEVICE).answered;
    wait::until("the device goes on answering", PATIENCE, async || {
        Ok((traffic.seen_by(DEVICE).answered >= answered + ANSWERS_AFTERWARDS).then_some(()))
    })
    .await?;
    let seen = traffic.seen_by(DEVICE);
    ensure!(seen.failed == 0 && seen.right == seen.answered, "not every request was answered rightly: {seen:?}");
    let (listing, view) = before;
    let after = ground.fleet.operator.device(DEVICE).await?;
    ensure!(after.online, "a stranger took {DEVICE} offline");
    let said = |view: &muster_shared::api::DeviceView| {
        view.reported.clone().map(|report| (report.generation, report.update, report.running, report.committed))
    };
    ensure!(said(&after) == said(&view), "a stranger spoke for {DEVICE}");
    let told = log_after(&device.folder().join("agent.log"), agent_log)?;
    ensure!(!told.contains("refused"), "what a stranger said has reached {DEVICE}: {told}");
    let changes = listing.changes(&Listing::of(device.folder(), &written)?);
    ensure!(changes.is_empty(), "written where nothing may be: {}", changes.join("; "));
    Ok(())
}

fn log_after(path: &Path, begin: usize) -> anyhow::Result<String> {
    let text = std::fs::read(path).with_context(|| format!("{}", path.display()))?;
    Ok(String::from_utf8_lossy(&text[begin.min(text.len())..]).into_owned())
}

/// Connects with the stolen papers and does what the attack says.
async fn strike(ground: &Ground, scene: &AtController) -> anyhow::Result<()> {
    let own = |rest: &str| format!("muster/v1/d/{STOLEN}/{rest}");
    let mut refused = options(ground, scene.client_id.as_deref().unwrap_or(STOLEN))?;
    if let Some(topic) = &scene.will {
        refused.set_last_will(LastWill::new(topic, r#"{"online":false}"#, QoS::AtLeastOnce, false));
    }
    if scene.client_id.is_some() || scene.will.is_some() {
        let (_client, mut connection) = AsyncClient::new(refused, 10);
        ensure!(!connected(&mut connection).await?, "the broker let the connection in");
    }
    // The same papers open the broker where they belong: a refusal is the attack's, not the papers'.
    let (client, mut connection) = AsyncClient::new(options(ground, STOLEN)?, 64);
    ensure!(connected(&mut connection).await?, "the broker does not let {STOLEN} in under its own name");
    client.subscribe(own("down/+"), QoS::AtLeastOnce).await?;
    ensure!(subscribed(&mut connection).await?, "{STOLEN} may not hear its own topics");
    for filter in &scene.subscribe {
        client.subscribe(filter, QoS::AtLeastOnce).await?;
        ensure!(!subscribed(&mut connection).await?, "{filter} was granted");
    }
    for (topic, body) in &scene.publish {
        client.publish(topic, QoS::AtLeastOnce, false, serde_json::to_vec(body)?).await?;
    }
    let digest = |release: &str| {
        let found: Option<&(Envelope, _)> = ground.releases.get(release);
        digest_of(&found.with_context(|| format!("there is no release {release:?}"))?.0)
    };
    let unassigned = scene.chunks_of.as_deref().map(&digest).transpose()?;
    // Asked for last and answered in turn: by then everything before has been dealt with.
    for manifest in unassigned.into_iter().chain([digest(INCUMBENT)?]) {
        let mut wanted = ChunkSet::empty(1);
        wanted.insert(0);
        let request = serde_json::to_vec(&serde_json::json!({"manifest": manifest, "first": 0, "wanted": wanted}))?;
        client.publish(own("up/chunk-request"), QoS::AtLeastOnce, false, request).await?;
    }
    let frame = next_chunk(&mut connection).await?;
    let manifest = ChunkFrame::decode(&frame)?.manifest;
    ensure!(Some(manifest) != unassigned, "a chunk of a bundle that {STOLEN} was not assigned came");
    ensure!(manifest == digest(INCUMBENT)?, "a chunk of {manifest} came, which nobody asked for");
    client.disconnect().await?;
    let parting =
        async { while !matches!(connection.poll().await, Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)) {} };
    tokio::time::timeout(PATIENCE, parting).await.context("the broker keeps the stranger")
}

fn options(ground: &Ground, client_id: &str) -> anyhow::Result<MqttOptions> {
    let endpoints = &ground.fleet.controller.endpoints;
    let thief = ground.fleet.devices.iter().find(|device| device.id == STOLEN).context("no stolen device")?;
    let read = |name: &str| std::fs::read(thief.folder().join("data/identity").join(name));
    let mut options = MqttOptions::new(client_id, endpoints.broker_host.clone(), endpoints.broker_port);
    options.set_keep_alive(Duration::from_secs(10));
    options.set_transport(Transport::Tls(TlsConfiguration::Simple {
        ca: read("ca.pem")?,
        alpn: None,
        client_auth: Some((read("device.pem")?, read("device.key")?)),
    }));
    options.set_max_packet_size(1 << 20, 1 << 20);
    Ok(options)
}

async fn connected(connection: &mut EventLoop) -> anyhow::Result<bool> {
    let answer = tokio::time::timeout(PATIENCE, connection.poll()).await.context("the broker does not answer")?;
    Ok(matches!(answer, Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.code == ConnectReturnCode::Success))
}

async fn subscribed(connection: &mut EventLoop) -> anyhow::Result<bool> {
    let acknowledged = async {
        loop {
            if let Event::Incoming(Packet::SubAck(ack)) = connection.poll().await? {
                return anyhow::Ok(matches!(ack.return_codes.first(), Some(SubscribeReasonCode::Success(_))));
            }
        }
    };
    tokio::time::timeout(PATIENCE, acknowledged).await.context("the broker does not answer a subscription")?
}

async fn next_chunk(connection: &mut EventLoop) -> anyhow::Result<Vec<u8>> {
    let chunk = async {
        loop {
            match connection.poll().await? {
                Event::Incoming(Packet::Publish(publish)) if publish.topic.ends_with("/down/chunk") => {
                    return anyhow::Ok(publish.payload.to_vec());
                }
                Event::Incoming(_) | Event::Outgoing(_) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, chunk).await.context("no chunk comes")?
}
