//! One bundle to many devices: how long it takes, and what the controller needs for it, beside mosquitto delivering the same frames.
//!
//! The devices are simulated and share the machine; what they cost is printed too. The bundle is noise: nothing can be saved on it.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use muster_shared::bundle::BundleFile;
use muster_shared::chunk::{ChunkEncoding, ChunkFrame};
use muster_shared::ids::Digest;
use muster_shared::limits::{CHUNK_BYTES, CHUNK_WINDOW, MAX_PACKET_BYTES};
use muster_shared::messages::ChunkRequest;
use muster_shared::topics::{Down, Topic};
use muster_tests::binaries::Binaries;
use muster_tests::fixtures;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::process::Process;
use muster_tests::wait;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};

use crate::controller::{client, roll_out};
use crate::crowd::{self, Crowd, Reached};
use crate::report::{Table, mebibytes};
use crate::simulated::{Fetching, Papers};
use crate::stage;
use crate::usage::{self, Use};

const MIB: usize = 1024 * 1024;
const BUNDLE_BYTES: usize = 20 * MIB;
const GOAL_GROWTH_MIB: f64 = 256.0;

pub(crate) async fn measure(binaries: &Binaries, folder: &Path, devices: u32) -> anyhow::Result<Vec<Table>> {
    let mut tables = Vec::new();
    let mut crowds = vec![1, 100.min(devices), devices];
    crowds.dedup();
    for devices in crowds {
        let place = folder.join(devices.to_string());
        let mut table = Table::new(format!("{devices} devices fetch {} MiB each", BUNDLE_BYTES / MIB));
        let papers = by_controller(binaries, &place, devices, &mut table).await?;
        if devices > 100 {
            by_mosquitto(&place, papers, devices, &mut table).await?;
        }
        tables.push(table);
    }
    Ok(tables)
}

/// What one delivery took.
struct Delivery {
    reached: Reached,
    broker: Use,
    own: Use,
    growth_bytes: u64,
    lost: u32,
}

fn rows(table: &mut Table, by: &str, delivery: &Delivery) {
    let seconds = delivery.reached.times.percentile(100).as_secs_f64();
    let sent = mebibytes(delivery.reached.payload_bytes);
    table.figure(&format!("{by}: all have it after"), seconds, "s");
    table.figure("  the first after", delivery.reached.times.percentile(0).as_secs_f64(), "s");
    table.figure("  bytes of frames", sent, "MiB");
    table.figure("  of all together, per second", sent / seconds, "MiB");
    table.figure("  its processor time", delivery.broker.cpu.as_secs_f64(), "CPU s");
    table.figure("    for each GiB", delivery.broker.cpu.as_secs_f64() / sent * 1_024.0, "CPU s");
    table.figure("  the simulated devices' own", delivery.own.cpu.as_secs_f64(), "CPU s");
    table.goal("  its memory at most above rest", mebibytes(delivery.growth_bytes), GOAL_GROWTH_MIB, "MiB");
    table.figure("  connections lost on the way", f64::from(delivery.lost), "");
}

async fn by_controller(
    binaries: &Binaries,
    folder: &Path,
    devices: u32,
    table: &mut Table,
) -> anyhow::Result<Vec<Papers>> {
    std::fs::create_dir_all(folder)?;
    // As much as it can: the budget is not what is measured.
    let fleet = Fleet::found(binaries, folder, "[content]\nsend-bytes-per-s = 10000000000\n").await?;
    fleet.release_large_digits(stage::VERSION, BUNDLE_BYTES).await?;
    let api = client(&fleet)?;
    let papers = crowd::enrol(&fleet, &api, devices).await?;
    let mut crowd = Crowd::gather(papers.clone(), Fetching::Assigned);
    crowd.wait_known(devices).await?;
    fleet.wait_online(usize::try_from(devices)?).await?;

    let controller = fleet.controller.process_id();
    let delivery = deliver(controller, &mut crowd, devices, async || {
        let command = roll_out(&fleet, &api).await?;
        Ok(command.started)
    })
    .await?;
    rows(table, "controller", &delivery);
    Ok(papers)
}

/// What it takes until all have fetched what `begin` makes them fetch.
async fn deliver(
    broker: u32,
    crowd: &mut Crowd,
    devices: u32,
    begin: impl AsyncFnOnce() -> anyhow::Result<Instant>,
) -> anyhow::Result<Delivery> {
    let own = std::process::id();
    let rest = usage::memory(broker)?;
    usage::forget_peak(broker)?;
    let (before, own_before) = (usage::spent(broker)?, usage::spent(own)?);
    let started = begin().await?;
    let reached = crowd.wait_fetched(devices, started).await?;
    Ok(Delivery {
        reached,
        broker: usage::since(broker, &before)?,
        own: usage::since(own, &own_before)?,
        growth_bytes: usage::peak_resident(broker)?.saturating_sub(rest.resident_bytes),
        lost: crowd.lost,
    })
}

/// The same frames from the same papers by mosquitto, with the bench answering requests in the controller's place.
async fn by_mosquitto(folder: &Path, papers: Vec<Papers>, devices: u32, table: &mut Table) -> anyhow::Result<()> {
    let free = || anyhow::Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let (secure, plain) = (free()?, free()?);
    let pki = folder.join("controller/data/pki");
    let config = format!(
        "user root\nallow_anonymous true\nmax_inflight_messages 32\nmax_queued_messages 100000\n\
         listener {plain} 127.0.0.1\nlistener {secure} 127.0.0.1\ncafile {0}/ca.pem\ncertfile {0}/server.pem\n\
         keyfile {0}/server.key\nrequire_certificate true\n",
        pki.display()
    );
    let file = folder.join("mosquitto.conf");
    std::fs::write(&file, config)?;
    let started =
        Process::start("mosquitto", Command::new("mosquitto").arg("-c").arg(&file), &folder.join("mosquitto.log"));
    let mut mosquitto = match started {
        Ok(process) => process,
        Err(error) => {
            table.text("mosquitto", &format!("not measured: {error:#}"));
            return Ok(());
        }
    };
    wait::until("mosquitto takes connections", PATIENCE, async || {
        mosquitto.ensure_running()?;
        Ok(std::net::TcpStream::connect(("127.0.0.1", secure)).ok())
    })
    .await?;

    let content = fixtures::noise(BUNDLE_BYTES);
    let chunks = BundleFile::describe("noise.bin", &content).chunks.len();
    let manifest = Digest::of(b"the same frames");
    let frames: Vec<Vec<u8>> = (0..)
        .zip(content.chunks(CHUNK_BYTES))
        .map(|(index, bytes)| ChunkFrame { manifest, index, encoding: ChunkEncoding::Plain, bytes }.encode())
        .collect();
    let mut options = MqttOptions::new("bench-controller", "127.0.0.1", plain);
    options.set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES).set_inflight(1_000);
    let (server, connection) = AsyncClient::new(options, 1_000);
    server.subscribe("muster/v1/d/+/up/chunk-request", QoS::AtLeastOnce).await?;
    let answering = tokio::spawn(answer(server, connection, frames));

    let rest = usage::memory(mosquitto.id())?;
    let papers = papers.into_iter().map(|papers| papers.at_port(secure)).collect();
    let own = usage::spent(std::process::id())?;
    let (before, began) = (usage::spent(mosquitto.id())?, Instant::now());
    let mut crowd = Crowd::gather(papers, Fetching::AtOnce(manifest, u32::try_from(chunks)?));
    let reached = crowd.wait_fetched(devices, began).await?;
    let delivery = Delivery {
        reached,
        broker: usage::since(mosquitto.id(), &before)?,
        own: usage::since(std::process::id(), &own)?,
        growth_bytes: usage::peak_resident(mosquitto.id())?.saturating_sub(rest.resident_bytes),
        lost: crowd.lost,
    };
    answering.abort();
    rows(table, "mosquitto, connecting included", &delivery);
    Ok(())
}

/// Answers requests for chunks as the controller does.
async fn answer(server: AsyncClient, mut connection: EventLoop, frames: Vec<Vec<u8>>) -> anyhow::Result<()> {
    let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let publishing = tokio::spawn(async move {
        while let Some((topic, index)) = requests.recv().await {
            let Some(frame) = frames.get::<usize>(index) else { continue };
            server.publish(topic, QoS::AtLeastOnce, false, frame.clone()).await?;
        }
        anyhow::Ok(())
    });
    loop {
        match connection.poll().await {
            Ok(Event::Incoming(Packet::Publish(message))) => {
                let request: ChunkRequest = serde_json::from_slice(&message.payload)?;
                let topic = Topic::down(&message.topic.parse::<Topic>()?.device, Down::Chunk).to_string();
                for offset in request.wanted.iter().take(CHUNK_WINDOW) {
                    let index = usize::try_from(request.first + offset)?;
                    sender.send((topic.clone(), index)).ok().context("nobody publishes any more")?;
                }
            }
            Ok(_) => {}
            Err(error) => {
                publishing.abort();
                return Err(error).context("the bench's own connection to mosquitto broke");
            }
        }
    }
}
