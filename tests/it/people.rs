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
