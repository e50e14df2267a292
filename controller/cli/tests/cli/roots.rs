//! Root documents after the first, made and signed by several people on machines of their own.

use crate::run::Desk;

fn missing(shown: &serde_json::Value) -> Vec<(u64, usize)> {
    let of = |owed: &serde_json::Value| (owed["version"].as_u64().unwrap(), owed["missing"].as_array().unwrap().len());
    shown["signatures"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn keys_are_replaced_by_signers_one_after_another() {
    let desk = Desk::new();
    desk.signed_bundle();
    for name in ["new-root.key", "third.key", "new-release.key"] {
        desk.ok(&format!("key generate --out {name}"));
    }
    let made = desk.ok(
        "--output json root rotate root.json --add-root-key new-root.key.pub third.key.pub --remove-root-key root.key.pub \
         --root-threshold 2 --add-release-key new-release.key.pub --remove-release-key release.key.pub --out root-2.json",
    );
    assert_eq!(made.json()["version"], 2);
    assert_eq!(missing(&made.json()), [(1, 1), (2, 2)]);
    assert!(made.stderr.contains("muster root sign"), "{}", made.stderr);
    desk.run("bundle verify bundle --root root-2.json").assert(1, &["root-2.json", "0 of 2"]);

    desk.ok("root sign root-2.json --key new-root.key");
    // Dropped by the new document, the old key has a say only where the old document is there to show it.
    desk.run("root sign root-2.json --key root.key").assert(2, &["root.key", "--previous"]);
    desk.run("root sign root-2.json --key release.key --previous root.json").assert(2, &["no root key"]);
    let signed = desk.ok("--output json root sign root-2.json --key root.key --previous root.json").json();
    assert_eq!((missing(&signed), signed["complete"].as_bool()), (vec![(1, 0), (2, 1)], Some(false)));
    let shown = desk.run("root show root-2.json --previous root.json");
    shown.assert(1, &["root-2.json", "missing signatures"]);
    let text = shown.stdout;
    assert!(text.contains("root keys of version 2: 1 of 2 required signatures; 1 more of"), "{text}");
    let signed = desk.ok("--output json root sign root-2.json --key third.key --previous root.json").json();
    assert_eq!((missing(&signed), signed["complete"].as_bool()), (vec![(1, 0), (2, 0)], Some(true)));

    desk.run("bundle verify bundle --root root-2.json").assert(1, &["0 of 1 required signatures"]);
    desk.ok("bundle sign bundle --key new-release.key");
    desk.ok("bundle verify bundle --root root-2.json");
    // The next rotation starts from there, here with both signers at once.
    desk.ok("root rotate root-2.json --expires-days 30 --sign-with new-root.key third.key --out root-3.json");
    let shown = desk.ok("--output json root show root-3.json --previous root-2.json").json();
    assert_eq!((shown["version"].as_u64(), shown["complete"].as_bool()), (Some(3), Some(true)));
    desk.run("root show root-3.json --previous root.json").assert(2, &["version 3", "the one after 1"]);
}

#[test]
fn rotations_that_make_no_sense_write_nothing() {
    let desk = Desk::new();
    desk.trust();
    desk.ok("key generate --out other.key");
    for (arguments, parts) in [
        ("--add-root-key root.key.pub", ["root.key.pub", "already"]),
        ("--remove-root-key other.key.pub", ["other.key.pub", "no root key"]),
        ("--remove-root-key root.key.pub", ["role root has 0 keys", "threshold of 1"]),
        ("--release-threshold 2", ["role release has 1 keys", "threshold of 2"]),
        ("--add-release-key director.key.pub", ["director key", "must not"]),
        ("--director-key release.key.pub", ["director key", "must not"]),
        ("--add-root-key nowhere.pub", ["nowhere.pub", "cannot open"]),
        ("--sign-with other.key", ["other.key", "no root key"]),
    ] {
        desk.run(&format!("root rotate root.json {arguments} --out next.json")).assert(2, &parts);
        assert!(!desk.path("next.json").exists(), "{arguments}");
    }
    desk.run("root rotate root.json --out root.json").assert(2, &["root.json is there already"]);
    desk.run("root rotate release.key --out next.json").assert(2, &["release.key is not a signed document"]);
    // Before it is complete, nothing can follow a document.
    desk.ok("root rotate root.json --out next.json");
    desk.run("root rotate next.json --out after.json").assert(1, &["next.json", "0 of 1"]);
    desk.run("root sign release.key --key root.key").assert(2, &["release.key is not a signed document"]);
}
