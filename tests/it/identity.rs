//! Who a device is: it can be shut out and let in again, and it renews its certificate by itself.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_shared::api::{AuthoritiesView, DeviceView};
use muster_shared::messages::UpdateState;
use muster_shared::rollout::RolloutStatus;
use muster_tests::binaries::Binaries;
use muster_tests::device::{Device, DeviceSetup};
use muster_tests::fleet::{Fleet, PATIENCE};
use muster_tests::traffic::Traffic;
use muster_tests::wait;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::stage::{self, PACE};

/// Waits until the device's log says `what` after its first `from` bytes, and gives where the log ends.
async fn logged(fleet: &mut Fleet, device: &str, what: &str, from: usize) -> anyhow::Result<usize> {
    let path = fleet.device(device)?.folder().join("agent.log");
    wait::until(&format!("{device} says {what:?}"), PATIENCE, async || {
        let log = std::fs::read(&path)?;
        let said = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).contains(what);
        Ok(said.then_some(log.len()))
    })
    .await
}

fn log_length(fleet: &mut Fleet, device: &str) -> anyhow::Result<usize> {
    Ok(std::fs::read(fleet.device(device)?.folder().join("agent.log"))?.len())
}

/// Waits until the application of `device` has been answered `more` times from now on.
async fn answered(traffic: &Traffic, device: &str, more: u64) -> anyhow::Result<()> {
    let before = traffic.seen_by(device).answered;
    wait::until(&format!("{device} answers"), PATIENCE, async || {
        Ok((traffic.seen_by(device).answered >= before + more).then_some(()))
    })
    .await
}

async fn kinds(fleet: &Fleet, device: &str) -> anyhow::Result<Vec<String>> {
    let events = fleet.operator.events().await?;
    let of_device = events.into_iter().filter(|event| event.device.as_ref().is_some_and(|id| id.as_str() == device));
    Ok(of_device.map(|event| event.kind).collect())
}

#[test]
fn a_revoked_device_is_cut_off_at_once_serves_on_and_comes_back_when_it_is_reinstated() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let (from, other) = (log_length(&mut fleet, "dev-1")?, log_length(&mut fleet, "dev-2")?);

        let revoke = ["device", "revoke", "dev-1", "--reason", "stolen"];
        let revoked: DeviceView = fleet.operator.json(&revoke).await?;
        let revocation = revoked.revoked.context("it is revoked")?;
        ensure!(revocation.reason.as_deref() == Some("stolen") && revocation.by == "admin", "{revocation:?}");
        // The limit is a tenth of what a lost connection would take to be noticed, and far above what the cut takes.
        wait::until("dev-1 is cut off", Duration::from_secs(1), async || {
            Ok((!fleet.operator.device("dev-1").await?.online).then_some(()))
        })
        .await?;
        let from = logged(&mut fleet, "dev-1", "no connection to the broker", from).await?;
        ensure!(kinds(&fleet, "dev-1").await?.last().is_some_and(|kind| kind == "device.revoked"));

        // It tries to come back and is refused, which is no matter of its application's.
        let refused = async |fleet: &Fleet, from: usize| {
            let log = fleet.controller.folder().join("controller.log");
            wait::until("dev-1 is refused", PATIENCE, async || {
                let text = std::fs::read(&log)?;
                let said = String::from_utf8_lossy(text.get(from..).unwrap_or_default()).contains("connection refused");
                Ok(said.then_some(text.len()))
            })
            .await
        };
        let controller_log = refused(&fleet, 0).await?;
        answered(&traffic, "dev-1", 20).await?;

        // A rollout passes it over: neither waited for nor counted.
        fleet.release_digits("1.1.0").await?;
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*", "--wave", "100%"], &PACE[..]].concat();
        let rollout = fleet.roll_out(&create).await?;
        let view = fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        let reached: Vec<&str> = view.waves[0].devices.keys().map(|id| id.as_str()).collect();
        ensure!(reached == ["dev-2"] && view.waiting.is_empty(), "{view:?}");

        // Nor does it come back to a controller that was killed and knows nothing but its store.
        fleet.controller.crash_and_restart().await?;
        refused(&fleet, controller_log).await?;
        fleet.wait_online(1).await?;
        let shown = fleet.operator.device("dev-1").await?;
        ensure!(!shown.online && shown.revoked == Some(revocation), "{shown:?}");
        ensure!(fleet.operator.run(&["device", "list"]).await?.contains("revoked"));
        // Started anew it serves all the same.
        traffic.expect("dev-1", false);
        fleet.device("dev-1")?.kill()?;
        fleet.device("dev-1")?.restart().await?;
        answered(&traffic, "dev-1", 1).await?;
        traffic.expect("dev-1", true);
        ensure!(!fleet.operator.device("dev-1").await?.online);

        fleet.operator.run(&["device", "reinstate", "dev-1"]).await?;
        fleet.wait_online(2).await?;
        logged(&mut fleet, "dev-1", "connected to the broker", from).await?;
        let rollout = fleet.roll_out(&create).await?;
        fleet.wait_committed("dev-1", "1.1.0").await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        ensure!(kinds(&fleet, "dev-1").await?.iter().any(|kind| kind == "device.reinstated"));
        let log = std::fs::read(fleet.device("dev-2")?.folder().join("agent.log"))?;
        let lost = String::from_utf8_lossy(&log[other..]).matches("no connection to the broker").count();
        ensure!(lost <= 2, "dev-2 lost its connection for more than the controller's crash: {lost} times");
        stage::ensure_all_answered(&traffic)
    });
}

/// Nothing it says can give away that it is still there.
#[test]
fn a_revoked_device_that_says_nothing_is_cut_off_as_fast() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 0).await?;
        let token = fleet.enrolment_token(1).await?;
        let setup = DeviceSetup { id: "quiet", token: &token, window_ms: 3_600_000, settings: "" };
        fleet.add_device(&setup, false).await?;
        wait::until("it has said what there is to say", PATIENCE, async || {
            let device = fleet.operator.device("quiet").await?;
            Ok((device.online && device.reported.is_some()).then_some(()))
        })
        .await?;
        let from = log_length(&mut fleet, "quiet")?;
        fleet.operator.run(&["device", "revoke", "quiet"]).await?;
        wait::until("it is cut off", Duration::from_secs(1), async || {
            Ok((!fleet.operator.device("quiet").await?.online).then_some(()))
        })
        .await?;
        logged(&mut fleet, "quiet", "no connection to the broker", from).await?;
        Ok(())
    });
}

/// Waits until the controller has signed `more` further certificates for `device`.
async fn renewed(fleet: &Fleet, device: &str, more: usize) -> anyhow::Result<()> {
    let count = async || {
        anyhow::Ok(kinds(fleet, device).await?.iter().filter(|kind| kind.as_str() == "device.renewed").count())
    };
    let before = count().await?;
    wait::until(&format!("{device} renews {more} times"), PATIENCE, async || {
        Ok((count().await? >= before + more).then_some(()))
    })
    .await
}

/// The certificate in force on the device, as it lies there.
fn certificate(device: &Device) -> anyhow::Result<Vec<u8>> {
    let folder = device.folder().join("data/identity");
    let renewed = folder.join("renewed.pem");
    Ok(std::fs::read(if renewed.exists() { renewed } else { folder.join("device.pem") })?)
}

/// A fleet whose certificates last for so long.
async fn short_lived(binaries: &Binaries, folder: &Path, devices: usize, valid_for_ms: u32) -> anyhow::Result<Fleet> {
    let settings = format!(
        "[rollout]\ntick-ms = 100\n[pki]\ndevice-certificate-valid-for-ms = {valid_for_ms}\n\
         [content]\nsend-bytes-per-s = 400000\nburst-bytes = 131072\n"
    );
    stage::fleet_with(binaries, folder, devices, &settings).await
}

#[test]
fn certificates_are_renewed_again_and_again_while_a_bundle_comes_and_requests_are_answered() {
    stage::run(async |binaries, folder| {
        let mut fleet = short_lived(&binaries, &folder, 2, 9_000).await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let process = fleet.device("dev-1")?.process_id();
        let first = certificate(fleet.device("dev-1")?)?;
        let from = log_length(&mut fleet, "dev-1")?;
        // Slow enough to be under way for several lives of a certificate.
        fleet.release_large_digits("1.1.0", 2_000_000).await?;
        let pace = ["--soak", "1s", "--max-duration", "120s", "--probation", "1s", "--max-latency-p99-ratio", "100"];
        let create = [&["--bundle", "digits@1.1.0", "--selector", "*", "--wave", "100%"], &pace[..]].concat();
        let rollout = fleet.roll_out(&create).await?;
        let fetching = async |fleet: &Fleet| {
            let reported = fleet.operator.device("dev-1").await?.reported;
            anyhow::Ok(reported.is_some_and(|reported| reported.update.state == UpdateState::Fetching))
        };
        wait::until("the bundle is on its way", PATIENCE, async || Ok(fetching(&fleet).await?.then_some(()))).await?;
        renewed(&fleet, "dev-1", 1).await?;
        ensure!(fetching(&fleet).await?, "the download is over before anything could disturb it");
        fleet.wait_committed("dev-1", "1.1.0").await?;
        fleet.wait_committed("dev-2", "1.1.0").await?;
        fleet.wait_rollout(&rollout, RolloutStatus::Completed).await?;
        renewed(&fleet, "dev-1", 1).await?;
        // The connection was made anew with the new certificate, by the agent that was there all the time.
        logged(&mut fleet, "dev-1", "connected to the broker", from).await?;
        let device = fleet.device("dev-1")?;
        ensure!(certificate(device)? != first);
        device.process_mut().ensure_running()?;
        ensure!(device.process_id() == process);
        let log = std::fs::read(device.folder().join("agent.log"))?;
        let lost = String::from_utf8_lossy(&log[from..]).matches("no connection to the broker").count();
        ensure!(lost == 0, "the connection was lost {lost} times");
        ensure!(fleet.operator.device("dev-1").await?.reported.is_some_and(|reported| reported.dropped_messages == 0));

        // Revoked, it gets no other, although it goes on asking.
        let from = log_length(&mut fleet, "dev-2")?;
        fleet.operator.run(&["device", "revoke", "dev-2"]).await?;
        logged(&mut fleet, "dev-2", "the device is revoked", from).await?;
        ensure!(kinds(&fleet, "dev-2").await?.last().is_some_and(|kind| kind == "device.revoked"));
        stage::ensure_all_answered(&traffic)
    });
}

/// Kills the device as soon as `moment` has come, starts it again and waits until it has connected as itself.
async fn killed_when(
    device: &mut Device,
    what: &str,
    moment: impl Fn(&Path) -> bool + Send + 'static,
) -> anyhow::Result<()> {
    let folder = device.folder().join("data/identity");
    // The moment is over within a millisecond or two, so it is looked for all the time.
    let watched = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        while !moment(&folder) {
            if began.elapsed() > PATIENCE {
                return false;
            }
            std::thread::yield_now();
        }
        true
    });
    ensure!(watched.await?, "{}: {what} never came", device.id);
    device.kill()?;
    let log = device.folder().join("agent.log");
    let from = std::fs::read(&log)?.len();
    let fake = device.folder().join("data/identity/renewed.pem.new");
    if fake.is_dir() {
        std::fs::remove_dir(fake)?;
    }
    device.restart().await?;
    wait::until(&format!("{} is back after {what}", device.id), PATIENCE, async || {
        let text = std::fs::read(&log)?;
        Ok(String::from_utf8_lossy(&text[from..]).contains("connected to the broker").then_some(()))
    })
    .await
}

#[test]
fn an_agent_killed_while_it_renews_comes_back_as_itself() {
    stage::run(async |binaries, folder| {
        let mut fleet = short_lived(&binaries, &folder, 3, 15_000).await?;
        let mut devices = std::mem::take(&mut fleet.devices).into_iter();
        let mut next = || devices.next().context("there are three devices");
        let (mut unheard, mut writing, mut exchanged) = (next()?, next()?, next()?);
        // The controller has signed, and the answer cannot be stored: as if it had never been heard.
        std::fs::create_dir(unheard.folder().join("data/identity/renewed.pem.new"))?;
        let log = unheard.folder().join("agent.log");
        let said = move |_: &Path| std::fs::read_to_string(&log).is_ok_and(|log| log.contains("renewed.pem"));
        let (first, second, third) = tokio::join!(
            killed_when(&mut unheard, "an answer that is not stored", said),
            killed_when(&mut writing, "the pair is being written", |identity: &Path| {
                identity.join("renewed.pem.new").exists() || identity.join("renewed.pem").exists()
            }),
            killed_when(&mut exchanged, "the exchange", |identity: &Path| identity.join("renewed.pem").exists()),
        );
        first.and(second).and(third)?;
        fleet.devices = vec![unheard, writing, exchanged];
        fleet.wait_online(3).await?;
        for id in ["dev-1", "dev-2", "dev-3"] {
            renewed(&fleet, id, 1).await?;
            let device = fleet.device(id)?;
            wait::until("its certificate is in force", PATIENCE, async || {
                Ok(device.folder().join("data/identity/renewed.pem").exists().then_some(()))
            })
            .await?;
        }
        fleet.wait_online(3).await
    });
}

#[test]
fn the_authority_is_replaced_under_a_running_fleet_and_its_certificates_count_no_more() {
    stage::run(async |binaries, folder| {
        // Devices renew within a second of being asked.
        let mut fleet =
            stage::fleet_with(&binaries, &folder, 2, "[pki]\ndevice-certificate-valid-for-ms = 600000\n").await?;
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;
        let old_ca = fleet.controller.endpoints.ca_file.clone();
        let (old_pem, kept) = (std::fs::read(&old_ca)?, folder.join("kept"));
        let late_token = fleet.enrolment_token(1).await?;
        fleet.cut_off("dev-2").await?;

        let rotated: AuthoritiesView = fleet.operator.json(&["ca", "rotate"]).await?;
        ensure!(rotated.authorities.len() == 2, "{rotated:?}");
        let devices_of = async |fleet: &Fleet, counts: &[usize]| {
            wait::until("devices renew their certificates", PATIENCE, async || {
                let view: AuthoritiesView = fleet.operator.json(&["ca", "show"]).await?;
                Ok((view.authorities.iter().map(|a| a.devices).collect::<Vec<_>>() == counts).then_some(()))
            })
            .await
        };
        devices_of(&fleet, &[1, 1]).await?;
        let refused = fleet.operator.run(&["ca", "retire"]).await.unwrap_err().to_string();
        ensure!(refused.contains("1 devices") && refused.contains("dev-2"), "{refused}");
        let refused = fleet.operator.run(&["ca", "rotate"]).await.unwrap_err().to_string();
        ensure!(refused.contains("retire it first"), "{refused}");
        // Everything goes on from the files alone.
        fleet.controller.crash_and_restart().await?;
        fleet.wait_online(1).await?;
        // Whoever was away, or has a token from before, knows only the old authority and finds its way.
        copy_folder(&fleet.device("dev-2")?.folder().join("data/identity"), &kept)?;
        fleet.device("dev-2")?.link()?.mend();
        devices_of(&fleet, &[0, 2]).await?;
        let setup = DeviceSetup { id: "dev-3", token: &late_token, window_ms: 1_000, settings: "" };
        fleet.add_device(&setup, true).await?;
        devices_of(&fleet, &[0, 3]).await?;

        // The operator, too, has to know the new one before the old one goes.
        let both = folder.join("authorities.pem").display().to_string();
        fleet.operator.run(&["ca", "export", "--out", &both]).await?;
        let retired: AuthoritiesView = fleet.operator.json(&["ca", "retire"]).await?;
        ensure!(retired.authorities.len() == 1 && !old_ca.exists(), "{retired:?}");
        fleet.operator.trust(Path::new(&both));
        fleet.wait_online(3).await?;
        let lists_one = |data: &Path| {
            let list = std::fs::read_to_string(data.join("identity/authorities.json"))?;
            anyhow::Ok(list.matches("BEGIN CERTIFICATE").count() == 1)
        };
        for device in ["dev-1", "dev-2", "dev-3"] {
            let data = fleet.device(device)?.folder().join("data");
            wait::until(&format!("{device} forgets the old authority"), PATIENCE, async || {
                Ok(lists_one(&data)?.then_some(()))
            })
            .await?;
        }
        // A certificate of the old authority opens nothing any more.
        let from = log_length(&mut fleet, "dev-2")?;
        let data = fleet.device("dev-2")?.folder().join("data/identity");
        traffic.expect("dev-2", false);
        fleet.device("dev-2")?.kill()?;
        let renewed = folder.join("renewed");
        copy_folder(&data, &renewed)?;
        std::fs::remove_dir_all(&data)?;
        copy_folder(&kept, &data)?;
        std::fs::copy(renewed.join("authorities.json"), data.join("authorities.json"))?;
        fleet.device("dev-2")?.restart().await?;
        let controller_log = fleet.controller.folder().join("controller.log");
        wait::until("the old certificate is refused", PATIENCE, async || {
            Ok(std::fs::read_to_string(&controller_log)?.contains("UnknownIssuer").then_some(()))
        })
        .await?;
        logged(&mut fleet, "dev-2", "no connection to the broker", from).await?;
        ensure!(!fleet.operator.device("dev-2").await?.online);
        fleet.device("dev-2")?.kill()?;
        std::fs::remove_dir_all(&data)?;
        copy_folder(&renewed, &data)?;
        fleet.device("dev-2")?.restart().await?;
        fleet.wait_online(3).await?;
        ensure!(std::fs::read(&both)? != old_pem);
        stage::ensure_all_answered(&traffic)
    });
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)?.flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The certificate of a device, with its key, as its maker's authority gives it out.
fn made_with(folder: &Path, name: &str, ca: &CertifiedIssuer<'_, KeyPair>) -> anyhow::Result<String> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let (certificate, key_file) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    std::fs::write(&certificate, params.signed_by(&key, ca)?.pem())?;
    std::fs::write(&key_file, key.serialize_pem())?;
    Ok(format!("[provisioned]\ncertificate = {certificate:?}\nkey = {key_file:?}\n"))
}

#[test]
fn a_device_joins_with_the_certificate_its_maker_gave_it() {
    stage::run(async |binaries, folder| {
        let authority = || {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            anyhow::Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
        };
        let (maker, stranger) = (authority()?, authority()?);
        let file = folder.join("maker.pem");
        std::fs::write(&file, maker.pem())?;
        let settings = format!("[[pki.outside]]\nname = \"maker\"\nfile = {file:?}\nlabels = {{ maker = \"acme\" }}\n");
        let mut fleet = stage::fleet_with(&binaries, &folder, 0, &settings).await?;
        let root = folder.join("keys/root.json").display().to_string();
        let token = fleet.operator.run(&["token", "provisioning", "--root", &root]).await?;
        let provisioned = made_with(&folder, "DEV-1", &maker)?;
        let setup = DeviceSetup { id: "dev-1", token: token.trim(), window_ms: 500, settings: &provisioned };
        fleet.add_device(&setup, true).await?;
        fleet.wait_online(1).await?;
        ensure!(fleet.operator.device("dev-1").await?.labels["maker"] == "acme");
        let traffic = stage::traffic(&fleet)?;
        stage::first_version(&fleet, &traffic).await?;

        // Another authority's certificate ends at the door; TLS does not say more.
        let provisioned = made_with(&folder, "DEV-2", &stranger)?;
        let setup = DeviceSetup { id: "dev-2", token: token.trim(), window_ms: 500, settings: &provisioned };
        let second = folder.join("dev-2");
        let refused = Device::start(&binaries, &second, &setup, None);
        let seen = wait::until("the stranger is refused", PATIENCE, async || {
            let agent = std::fs::read_to_string(second.join("agent.log")).unwrap_or_default();
            Ok(agent.contains("enrolment has to wait").then_some(()))
        });
        tokio::select! {
            came_up = refused => came_up.map(drop)?,
            seen = seen => seen?,
        }
        ensure!(fleet.operator.devices().await?.len() == 1);
        stage::ensure_all_answered(&traffic)
    });
}
