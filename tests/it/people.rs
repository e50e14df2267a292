//! People around rollouts, at the command line: who must approve, and when nothing may move.

use anyhow::ensure;
use muster_shared::access::AccessView;
use muster_shared::rollout::{ApprovalOutcome, RolloutStatus};
use muster_tests::fleet::Fleet;
use muster_tests::operator::Operator;

use crate::stage::{self, EASY};

/// Somebody with an access token of their own.
async fn person(fleet: &Fleet, name: &str, role: &str) -> anyhow::Result<Operator> {
    let token = fleet.operator.run(&["access", "create", name, "--role", role]).await?;
    Ok(fleet.operator.as_bearer_of(&token))
}

/// Two of those who may approve let a rollout begin, across a crash of the controller; nobody counts twice, operators do not count, and
/// silence and a rejection end one.
#[test]
fn people_approve_reject_or_stay_silent() {
    stage::run(async |binaries, folder| {
        let settings = "[rollout]\ntick-ms = 100\napprovals-needed = 1\n";
        let mut fleet = stage::fleet_with(&binaries, &folder, 1, settings).await?;
        let traffic = stage::traffic(&fleet)?;
        fleet.release_digits("1.0.0").await?;
        let olga = person(&fleet, "olga", "operator").await?;
        let (ann, bob) = (person(&fleet, "ann", "approver").await?, person(&fleet, "bob", "approver").await?);
        let taken = fleet.operator.try_run(&["access", "create", "ann", "--role", "viewer"]).await?;
        ensure!(taken.status == Some(3) && taken.stderr.contains("is taken"), "{taken:?}");

        let wish = [&["rollout", "create", "--bundle", "digits@1.0.0", "-l", "*"], &EASY[..]].concat();
        let two = [&wish[..], &["--approvals", "2", "--approve-within", "1h"]].concat();
        let made = olga.try_run(&two).await?;
        ensure!(made.stderr.contains("approve it with: muster rollout approve r1"), "{made:?}");
        let refused = olga.try_run(&["rollout", "approve", "r1"]).await?;
        ensure!(refused.status == Some(3) && refused.stderr.contains("approver"), "{refused:?}");
        ann.run(&["rollout", "approve", "r1", "--reason", "seen in the lab"]).await?;
        let again = ann.try_run(&["rollout", "approve", "r1"]).await?;
        ensure!(again.status == Some(3) && again.stderr.contains("nobody counts twice"), "{again:?}");
        fleet.controller.crash_and_restart().await?;
        fleet.wait_online(1).await?;
        let shown = olga.run(&["rollout", "show", "r1"]).await?;
        for words in ["by olga", "1 of 2 approvals (ann)", "approved by ann", "seen in the lab"] {
            ensure!(shown.contains(words), "{words:?} is not in {shown}");
        }
        let listed = olga.run(&["rollout", "list"]).await?;
        ensure!(listed.contains("1 of 2 approvals (ann)"), "{listed}");
        ensure!(fleet.operator.device("dev-1").await?.desired.is_none(), "a device was told before people approved");
        bob.run(&["rollout", "approve", "r1"]).await?;
        let view = fleet.wait_rollout("r1", RolloutStatus::Completed).await?;
        let record = view.approval.ok_or_else(|| anyhow::anyhow!("no approvals are kept"))?;
        ensure!(record.outcome == ApprovalOutcome::Approved && record.given.len() == 2, "{record:?}");

        // The controller demands one, whatever is asked for; silence ends it, and says so to machines.
        olga.run(&[&wish[..], &["--approvals", "1", "--approve-within", "1s"]].concat()).await?;
        let view = fleet.wait_rollout("r2", RolloutStatus::Stopped).await?;
        ensure!(view.status_reason.starts_with("timed out: 0 of 1 approvals after"), "{}", view.status_reason);
        let json = olga.run(&["--output", "json", "rollout", "show", "r2"]).await?;
        ensure!(json.contains("\"timed_out\""), "{json}");
        let events = fleet.operator.events().await?;
        ensure!(events.iter().any(|event| event.kind == "rollout.timed_out"), "{events:?}");

        olga.run(&wish).await?;
        bob.run(&["rollout", "reject", "r3", "--reason", "not on a Friday"]).await?;
        let view = fleet.wait_rollout("r3", RolloutStatus::Stopped).await?;
        ensure!(view.status_reason == "rejected by bob: not on a Friday", "{}", view.status_reason);

        fleet.operator.run(&["access", "revoke", "bob"]).await?;
        let gone = bob.try_run(&["rollout", "list"]).await?;
        ensure!(gone.status == Some(3), "{gone:?}");
        let names: Vec<String> =
            fleet.operator.json::<Vec<AccessView>>(&["access", "list"]).await?.into_iter().map(|a| a.name).collect();
        ensure!(names == ["admin", "ann", "olga"], "{names:?}");
        stage::ensure_all_answered(&traffic)
    });
}

/// A rollout that wants devices of another one is refused or waits its turn, and one before its time waits for that; each says so.
#[test]
fn rollouts_that_want_the_same_devices_are_refused_or_queue() {
    stage::run(async |binaries, folder| {
        let fleet = stage::fleet(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        fleet.release_digits("1.0.0").await?;
        let long = ["--soak", "5m", "--max-duration", "10m", "--probation", "500ms"];
        let holder = [&["--bundle", "digits@1.0.0", "-l", "id=dev-1"], &long[..]].concat();
        let holder = fleet.roll_out(&holder).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;
        let wish = [&["rollout", "create", "--bundle", "digits@1.0.0", "-l", "*"], &EASY[..]].concat();
        let refused = fleet.operator.try_run(&[&wish[..], &["--conflict", "refuse"]].concat()).await?;
        ensure!(refused.status == Some(3) && refused.stderr.contains("r1 (1 device)"), "{refused:?}");
        let later = [&wish[..], &["--start-at", "2099-01-01T00:00:00Z"]].concat();
        let later = fleet.operator.run(&later).await?;
        let low = fleet.operator.run(&[&wish[..], &["--conflict", "queue", "--priority", "10"]].concat()).await?;
        let high = fleet.operator.run(&[&wish[..], &["--conflict", "queue", "--priority", "90"]].concat()).await?;
        for (id, words) in
            [(&later, "it begins at 2099-01-01T00:00:00Z"), (&low, "queued behind r1, r4"), (&high, "queued behind r1")]
        {
            let shown = fleet.operator.run(&["rollout", "show", id.trim()]).await?;
            ensure!(shown.contains(words) && shown.contains("ready"), "{words:?} is not in {shown}");
        }
        fleet.operator.run(&["rollout", "abort", &holder]).await?;
        let (low, high) = (low.trim(), high.trim());
        let first = fleet.wait_rollout(high, RolloutStatus::Completed).await?;
        let second = fleet.wait_rollout(low, RolloutStatus::Completed).await?;
        let begun = |view: &muster_shared::rollout::RolloutView| view.waves.first().and_then(|wave| wave.started_at_ms);
        ensure!(begun(&second) >= Some(first.updated_at_ms), "{second:?} began before {first:?} had ended");
        fleet.operator.run(&["rollout", "abort", later.trim()]).await?;
        stage::ensure_all_answered(&traffic)
    });
}

/// During a freeze nobody comes in, across a crash of the controller, and those told before go on; outside their windows devices wait, too.
#[test]
fn freezes_and_windows_keep_devices_out() {
    stage::run(async |binaries, folder| {
        let mut fleet = stage::fleet(&binaries, &folder, 2).await?;
        let traffic = stage::traffic(&fleet)?;
        fleet.release_digits("1.0.0").await?;
        let to = ["freeze", "add", "--to", "2099-01-01T00:00:00Z", "--reason", "the holidays"];
        let freeze = fleet.operator.run(&[&to[..], &["-l", "id=dev-2"]].concat()).await?;
        let id = fleet.roll_out(&[&["--bundle", "digits@1.0.0", "--selector", "*"], &EASY[..]].concat()).await?;
        fleet.wait_committed("dev-1", "1.0.0").await?;
        fleet.controller.crash_and_restart().await?;
        fleet.wait_online(2).await?;
        let shown = fleet.operator.run(&["rollout", "show", &id]).await?;
        ensure!(shown.contains("a freeze until 2099-01-01T00:00:00Z: the holidays"), "{shown}");
        let why = fleet.operator.run(&["rollout", "explain", &id, "--device", "dev-2"]).await?;
        ensure!(why.contains("it is kept out for now: a freeze"), "{why}");
        ensure!(fleet.operator.device("dev-2").await?.desired.is_none(), "a device was told in a freeze");
        let listed = fleet.operator.run(&["freeze", "list"]).await?;
        ensure!(listed.contains("id=dev-2") && listed.contains("the holidays"), "{listed}");
        fleet.operator.run(&["freeze", "lift", freeze.trim()]).await?;
        fleet.wait_rollout(&id, RolloutStatus::Completed).await?;

        // A window that is open for a minute around noon of another day, where the device is.
        fleet.release_digits("1.1.0").await?;
        let now = a_day_not_near();
        let window = format!("{now} 12:00-12:01");
        let wish =
            ["--bundle", "digits@1.1.0", "--selector", "id=dev-1", "--window", &window, "--timezone", "Asia/Tokyo"];
        let id = fleet.roll_out(&[&wish[..], &EASY[..]].concat()).await?;
        let shown = fleet.operator.run(&["rollout", "show", &id]).await?;
        ensure!(shown.contains("1 outside their maintenance windows: dev-1; open at"), "{shown}");
        fleet.operator.run(&["rollout", "abort", &id]).await?;
        let wrong = [
            "rollout",
            "create",
            "--bundle",
            "digits@1.1.0",
            "-l",
            "*",
            "--window",
            "22:00-05:00",
            "--timezone",
            "Mars/Base",
        ];
        let refused = fleet.operator.try_run(&wrong).await?;
        ensure!(refused.stderr.contains("Mars/Base") && refused.stderr.contains("IANA"), "{refused:?}");
        stage::ensure_all_answered(&traffic)
    });
}

/// The day of the week three days from now, so that no window of it is near.
fn a_day_not_near() -> &'static str {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // The first day of the epoch was a Thursday.
    let days = ["thu", "fri", "sat", "sun", "mon", "tue", "wed"];
    days[usize::try_from((since.as_secs() / 86_400 + 3) % 7).unwrap_or_default()]
}
