//! A device's certificate opens its own topics and no others.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use muster_tests::device::Device;
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::wait;
use rumqttc::{
    AsyncClient, Event, LastWill, MqttOptions, Packet, QoS, SubscribeReasonCode, TlsConfiguration, Transport,
};

use crate::stage;

/// Options of a client that has the papers of `device` and calls itself `id`.
fn options(fleet: &Fleet, device: &Device, id: &str) -> anyhow::Result<MqttOptions> {
    let endpoints = &fleet.controller.endpoints;
    let mut options = MqttOptions::new(id, endpoints.broker_host.clone(), endpoints.broker_port);
    let read = |name: &str| std::fs::read(device.folder().join("data/identity").join(name));
    options.set_keep_alive(Duration::from_secs(10));
    options.set_transport(Transport::Tls(TlsConfiguration::Simple {
        ca: read("ca.pem")?,
        alpn: None,
        client_auth: Some((read("device.pem")?, read("device.key")?)),
    }));
    Ok(options)
}

/// What the broker answers to a subscription, or that it hangs up.
async fn subscription(options: MqttOptions, filter: &str) -> anyhow::Result<SubscribeReasonCode> {
    let (client, mut connection) = AsyncClient::new(options, 10);
    client.subscribe(filter, QoS::AtLeastOnce).await?;
    tokio::time::timeout(PATIENCE, async {
        loop {
            if let Event::Incoming(Packet::SubAck(ack)) = connection.poll().await? {
                return ack.return_codes.first().copied().context("an empty answer");
            }
        }
    })
    .await?
}

#[test]
fn a_device_can_reach_no_other_device() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 2).await?;
        // Its agent would fight for the client id.
        fleet.device("dev-1")?.process_mut().stop().await?;
        let own = |id| options(&fleet, &fleet.devices[0], id);

        for filter in ["muster/v1/d/dev-1/down/+", "muster/v1/d/dev-1/down/chunk"] {
            let code = subscription(own("dev-1")?, filter).await?;
            ensure!(matches!(code, SubscribeReasonCode::Success(_)), "{filter}: {code:?}");
        }
        for filter in [
            "#",
            "muster/#",
            "muster/v1/d/+/down/chunk",
            "muster/v1/d/dev-2/down/+",
            "muster/v1/d/dev-1/#",
            "$share/g/muster/v1/d/dev-1/down/+",
            "$SYS/#",
        ] {
            // A refusal may also be a closed connection.
            let code = subscription(own("dev-1")?, filter).await;
            ensure!(!matches!(code, Ok(SubscribeReasonCode::Success(_))), "{filter}: {code:?}");
        }

        // Another device's name, or a will on another's topic, gets no connection.
        let connects = async |options: MqttOptions| {
            let (_client, mut connection) = AsyncClient::new(options, 10);
            let answer = tokio::time::timeout(PATIENCE, connection.poll()).await?;
            anyhow::Ok(
                matches!(answer, Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.code == rumqttc::ConnectReturnCode::Success),
            )
        };
        ensure!(connects(own("dev-1")?).await?, "its own name must be let in");
        ensure!(!connects(own("dev-2")?).await?, "a forged client id was let in");
        let mut with_will = own("dev-1")?;
        with_will.set_last_will(LastWill::new(
            "muster/v1/d/dev-2/up/presence",
            "{\"online\":false}",
            QoS::AtLeastOnce,
            false,
        ));
        ensure!(!connects(with_will).await?, "a will on another device's topic was let in");

        // A forged state report about another device changes nothing.
        let before = fleet.operator.device("dev-2").await?.reported;
        let (client, mut connection) = AsyncClient::new(own("dev-1")?, 10);
        let polling = tokio::spawn(async move { while connection.poll().await.is_ok() {} });
        for topic in ["muster/v1/d/dev-2/up/presence", "muster/v1/d/dev-2/down/ack"] {
            client.publish(topic, QoS::AtLeastOnce, false, "{\"online\":false}").await?;
        }
        // Its own topic still works afterwards, and by then the forgery has been dealt with, or the broker hung up.
        client.publish("muster/v1/d/dev-1/up/presence", QoS::AtLeastOnce, false, "{\"online\":true}").await?;
        wait::until("dev-1 has been heard or cut off", PATIENCE, async || {
            Ok((polling.is_finished() || fleet.operator.device("dev-1").await?.online).then_some(()))
        })
        .await?;
        let after = fleet.operator.device("dev-2").await?;
        ensure!(after.online, "a stranger took dev-2 offline");
        ensure!(after.reported.map(|r| r.generation) == before.map(|r| r.generation), "a stranger spoke for dev-2");
        polling.abort();
        Ok(())
    });
}
