//! Who may do what on the broker, seen with real clients: the table by which `authorize` is judged, against the embedded broker and
//! against mosquitto under the rules that `muster broker acl` prints.

#[path = "../../../shared/src/acl/cases.rs"]
mod cases;
mod client;
mod embedded;
mod mosquitto;
mod outside;
mod papers;

use anyhow::{Context as _, ensure};
use muster_tests::device::{Device, DeviceSetup};
use muster_tests::fleet::Fleet;
use muster_tests::link::Link;

use crate::stage;
use cases::{CASES, Outcome, Who};
use client::{Client, Door, Hello, Subscription};
use embedded::Embedded;
use mosquitto::Mosquitto;
use outside::Outside;
use papers::Papers;

const OWN_ACKS: &str = "muster/v1/d/dev1/down/ack";

#[test]
fn the_embedded_broker_lets_everybody_do_what_the_table_allows_and_nothing_else() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 0).await?;
        let papers = Papers::of(&mut fleet).await?;
        let mut broker = Embedded::of(&fleet, &papers)?;
        let mut wrong = Vec::new();
        for (row, case) in CASES.iter().enumerate() {
            let outcome = broker.judge(case, &format!("words of row {row}")).await;
            // The controller is inside and has no other way in.
            let expected = case.outcome == Outcome::Allowed && case.who != Who::Controller;
            note(&mut wrong, &format!("row {row}, {case:?}"), outcome, |came_about| came_about == expected);
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        broker.resume().await
    });
}

#[test]
fn mosquitto_under_the_printed_rules_lets_everybody_do_what_the_table_allows_and_nothing_else() {
    beside_mosquitto(async |fleet, mosquitto, papers| {
        let mut broker = Outside::of(&mosquitto, &papers)?;
        let mut wrong = Vec::new();
        for (row, case) in CASES.iter().enumerate() {
            let outcome = broker.judge(case, &format!("words of row {row}"));
            note(&mut wrong, &format!("row {row}, {case:?}"), outcome, |came_about| match case.outcome {
                Outcome::Allowed => came_about,
                Outcome::Refused => !came_about,
                Outcome::RefusedOrHarmless => true,
            });
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        an_agent_is_heard(&fleet, &mosquitto, &papers).await
    });
}

/// Runs `test` with a controller and, where it is installed, a mosquitto under its rules.
fn beside_mosquitto<F: Future<Output = anyhow::Result<()>>>(test: impl FnOnce(Fleet, Mosquitto, Papers) -> F) {
    let Some(program) = muster_tests::mosquitto::program() else {
        eprintln!("SKIPPED: mosquitto is not installed");
        return;
    };
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 0).await?;
        let papers = Papers::of(&mut fleet).await?;
        let mosquitto = Mosquitto::start(&program, &fleet, &folder.join("mosquitto")).await?;
        test(fleet, mosquitto, papers).await
    });
}

/// What agents really do is among what is allowed: the controller's identity hears how `dev1` is.
async fn an_agent_is_heard(fleet: &Fleet, mosquitto: &Mosquitto, papers: &Papers) -> anyhow::Result<()> {
    if papers.shown_by(Who::Controller).is_none() {
        return Ok(());
    }
    let mut controller = connect(mosquitto, papers, Who::Controller, true)?;
    let answer = controller.subscribe("muster/v1/d/+/up/+")?;
    ensure!(answer == Subscription::Granted, "the controller may not hear devices: {answer:?}");
    let link = Link::open(format!("127.0.0.1:{}", mosquitto.port)).await?;
    let token = fleet.enrolment_token(1).await?;
    let setup = DeviceSetup { id: "dev1", token: &token, window_ms: 60_000, settings: "" };
    let _agent = Device::start(&fleet.binaries, &fleet.folder.join("dev1"), &setup, Some(link)).await?;
    controller.heard_before(|message| message.topic == "muster/v1/d/dev1/up/state")?;
    Ok(())
}

fn note(
    wrong: &mut Vec<String>,
    row: &str,
    outcome: anyhow::Result<Option<bool>>,
    is_right: impl FnOnce(bool) -> bool,
) {
    match outcome {
        Ok(Some(came_about)) if !is_right(came_about) => wrong.push(format!("{row}: came about: {came_about}")),
        Ok(_) => {}
        Err(error) => wrong.push(format!("{row}: {error:#}")),
    }
}

#[test]
fn mosquitto_refuses_a_revoked_device_also_one_whose_session_waits_until_it_is_reinstated() {
    beside_mosquitto(async |fleet, mut broker, papers| {
        let mut overseer = broker.overseer("overseer", "nothing")?;

        // A session that waits, with something in it.
        let mut device = dev1(&broker, &papers, false)?;
        ensure!(device.subscribe(OWN_ACKS)? == Subscription::Granted, "dev1 may not hear what it is told");
        drop(device);
        ensure!(overseer.publish(OWN_ACKS, "first", false)?, "the overseer was cut off");
        let mut device = dev1(&broker, &papers, false)?;
        ensure!(device.message()?.payload == "first", "sessions do not wait here, so that nothing would be shown");
        drop(device);
        ensure!(overseer.publish(OWN_ACKS, "second", false)?, "the overseer was cut off");

        revoke(&fleet, &mut broker, "revoke").await?;
        for clean_session in [false, true] {
            ensure!(dev1(&broker, &papers, clean_session).is_err(), "a revoked device was let in");
        }
        let _neighbour = connect(&broker, &papers, Who::Dev10, true)?;
        broker.restart().await?;
        ensure!(dev1(&broker, &papers, false).is_err(), "a revoked device was let in after a restart");

        revoke(&fleet, &mut broker, "reinstate").await?;
        let mut device = dev1(&broker, &papers, true)?;
        ensure!(device.subscribe(OWN_ACKS)? == Subscription::Granted, "dev1 may not hear what it is told");
        let mut overseer = broker.overseer("overseer", "nothing")?;
        ensure!(overseer.publish(OWN_ACKS, "third", false)?, "the overseer was cut off");
        ensure!(device.message()?.payload == "third", "dev1 hears what it must not");
        Ok(())
    });
}

/// Has the operator revoke or reinstate `dev1`, and mosquitto know.
async fn revoke(fleet: &Fleet, broker: &mut Mosquitto, verb: &str) -> anyhow::Result<()> {
    fleet.operator.run(&["device", verb, "dev1"]).await?;
    broker.take_new_list(fleet).await
}

fn dev1(broker: &Mosquitto, papers: &Papers, clean_session: bool) -> anyhow::Result<Client> {
    connect(broker, papers, Who::Dev1, clean_session)
}

fn connect(broker: &Mosquitto, papers: &Papers, who: Who, clean_session: bool) -> anyhow::Result<Client> {
    let hello = Hello { clean_session, ..Hello::of(who.certificate().common_name) };
    match Client::connect(broker.port, papers.shown_by(who).context("papers")?, &hello)? {
        Door::Open(client) => Ok(client),
        Door::Refused(code) => anyhow::bail!("refused: {code:?}"),
        Door::Closed(reason) => anyhow::bail!("closed: {reason}"),
    }
}
