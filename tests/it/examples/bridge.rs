//! The bridge between an MQTT bus and the agent: a flood waits in the broker, whatever stands still.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_tests::fleet::PATIENCE;
use muster_tests::process::Process;
use muster_tests::{mosquitto, wait};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::Value;

use super::{Example, Golden, Stage, golden};
use crate::stage;

/// Inputs that pour in while nobody answers: many more than the bridge may hold.
const FLOOD: usize = 2000;
/// Inputs with QoS 0: more than the 128 that the bridge may hold at once.
const UNKEPT: usize = 300;
/// What the bridge may take on top of what it took before the flood, in KiB: far less than the flood itself.
const GROWTH_KIB: u64 = 4 * 1024;

async fn broker(folder: &Path) -> anyhow::Result<(Process, u16)> {
    // Free a moment ago; there is no way to hand a socket over.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let settings = format!("listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nuser root\n");
    std::fs::write(folder.join("bus.conf"), settings)?;
    let program = mosquitto::program().context("mosquitto is not installed")?;
    let mut command = Command::new(program);
    let mut process =
        Process::start("mosquitto", command.arg("-c").arg(folder.join("bus.conf")), &folder.join("bus.log"))?;
    wait::until("the bus takes connections", PATIENCE, async || {
        process.ensure_running()?;
        Ok(TcpStream::connect(("127.0.0.1", port)).ok())
    })
    .await?;
    Ok((process, port))
}

/// A sensor that also hears what becomes of its inputs.
struct Sensor {
    client: AsyncClient,
    connection: rumqttc::v5::EventLoop,
    /// What came, by the name of the input: the topic and the payload.
    heard: BTreeMap<String, (String, Value)>,
    /// Inputs that the broker has taken.
    taken: usize,
}

impl Sensor {
    async fn connect(port: u16) -> anyhow::Result<Self> {
        let mut options = MqttOptions::new("sensor", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30));
        let (client, connection) = AsyncClient::new(options, FLOOD * 2);
        for filter in ["predictions/#", "failed/#"] {
            client.subscribe(filter, QoS::AtLeastOnce).await?;
        }
        Ok(Self { client, connection, heard: BTreeMap::new(), taken: 0 })
    }

    fn send(&self, name: &str, data: &[f32]) -> anyhow::Result<()> {
        self.send_by(QoS::AtLeastOnce, name, data)
    }

    fn send_by(&self, qos: QoS, name: &str, data: &[f32]) -> anyhow::Result<()> {
        let payload = serde_json::json!({ "id": name, "data": data }).to_string();
        Ok(self.client.try_publish("sensors/7/image", qos, false, payload)?)
    }

    /// Turns the connection until `is_enough`.
    async fn until(&mut self, what: &str, is_enough: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let work = async {
            while !is_enough(self) {
                match self.connection.poll().await? {
                    Event::Incoming(Packet::PubAck(_)) => self.taken += 1,
                    Event::Incoming(Packet::Publish(message)) => {
                        let payload: Value = serde_json::from_slice(&message.payload)?;
                        let name = payload["id"].as_str().unwrap_or_default().to_owned();
                        self.heard.insert(name, (String::from_utf8(message.topic.to_vec())?, payload));
                    }
                    Event::Incoming(_) | Event::Outgoing(_) => {}
                }
            }
            anyhow::Ok(())
        };
        let outcome = tokio::time::timeout(PATIENCE, work).await;
        outcome.with_context(|| format!("{what}: not in time; {} taken, {} heard", self.taken, self.heard.len()))?
    }

    /// Fails unless each of the inputs has the answer of its golden example.
    fn hold_against(&self, prefix: &str, count: usize, golden: &[Golden]) -> anyhow::Result<()> {
        for at in 0..count {
            let (topic, payload) = self.heard.get(&format!("{prefix}-{at}")).context("an input has no answer")?;
            ensure!(topic == "predictions/sensors/7/image" && payload["version"] == "1.0.0", "{topic}: {payload}");
            let example = &golden[at % golden.len()];
            let probability = payload["outputs"]["probabilities"][example.class()].as_f64().unwrap_or_default();
            ensure!(payload["best"] == example.class() && example.allows(example.class(), probability), "{payload}");
        }
        Ok(())
    }
}

#[test]
#[ignore = "needs mosquitto: .ci/examples PYTHON"]
fn a_flood_waits_in_the_broker_and_is_answered_in_the_end() {
    stage::run(async |binaries, folder| {
        let golden = golden()?;
        let mut stage = Stage::set(&binaries, &folder).await?;
        stage.open().await?;
        let (_broker, port) = broker(&folder).await?;
        let config = folder.join("bridge.toml");
        let settings = format!("[bus]\nport = {port}\n[agent]\nsocket = {:?}\ntimeout-ms = 1000\n", stage.socket);
        std::fs::write(&config, settings)?;
        let mut command = Command::new(binaries.agent.with_file_name("muster-example-mqtt-bridge"));
        command.arg("--config").arg(&config);
        let mut bridge = Example::start(&stage, "bridge", &mut command)?;
        bridge.says("takes inputs from sensors/+/image").await?;
        let at_rest_kib = bridge.resident_kib()?;

        // No model yet: half of the flood waits, and the bridge is told to stop and started again.
        let mut sensor = Sensor::connect(port).await?;
        for at in 0..FLOOD / 2 {
            sensor.send(&format!("flood-{at}"), &golden[at % golden.len()].pixels)?;
        }
        sensor.until("the broker takes the flood", |sensor| sensor.taken == FLOOD / 2).await?;
        bridge.says("held up, the broker keeps what comes: no model is being served yet").await?;
        ensure!(bridge.resident_kib()? <= at_rest_kib + GROWTH_KIB, "{} KiB", bridge.resident_kib()?);
        bridge.stops_cleanly().await?;
        let mut bridge = Example::start(&stage, "bridge", &mut command)?;
        stage.serve().await?;
        sensor.until("everything is answered", |sensor| sensor.heard.len() == FLOOD / 2).await?;
        sensor.hold_against("flood", FLOOD / 2, &golden)?;
        bridge.says("goes on after").await?;

        // The agent stands still while the other half comes, with what is no input in between.
        stage.signal("-STOP")?;
        for at in 0..FLOOD / 2 {
            sensor.send(&format!("more-{at}"), &golden[at % golden.len()].pixels)?;
        }
        sensor.send("short", &[1.0, 2.0])?;
        sensor.until("the broker takes the flood", |sensor| sensor.taken == FLOOD + 1).await?;
        bridge.says("did not answer within 1000 ms").await?;
        ensure!(bridge.resident_kib()? <= at_rest_kib + GROWTH_KIB, "{} KiB", bridge.resident_kib()?);
        ensure!(sensor.heard.len() == FLOOD / 2, "an agent that stands still has answered");
        stage.signal("-CONT")?;
        // The short one has no id that could be read as one of an input.
        sensor.until("everything is answered", |sensor| sensor.heard.len() == FLOOD + 1).await?;
        sensor.hold_against("more", FLOOD / 2, &golden)?;
        let (topic, refusal) = sensor.heard.get("").context("the refusal")?;
        ensure!(
            topic == "failed/sensors/7/image" && refusal["error"] == "2 numbers where the model takes 64",
            "{refusal}"
        );

        // A sensor that has its inputs kept by nobody: more of them, in the end, than the bridge may hold at once.
        for at in 0..UNKEPT {
            let heard = sensor.heard.len();
            sensor.send_by(QoS::AtMostOnce, &format!("unkept-{at}"), &golden[at % golden.len()].pixels)?;
            sensor.until("an input with QoS 0 is answered", |sensor| sensor.heard.len() > heard).await?;
        }
        sensor.hold_against("unkept", UNKEPT, &golden)?;
        bridge.stops_cleanly().await
    });
}
