//! Keys that are kept elsewhere: a command signs, here OpenSSL, and whatever it does wrong is said.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::run::{Desk, Ended, installed};
use crate::terminal::{Terminal, wait};

/// What an HSM's tool is to these tests: it takes the message from standard input, and OpenSSL wants a file.
const SIGN: &str = "cat > message && openssl pkeyutl -sign -rawin -in message -inkey hsm.pem";

fn openssl(desk: &Desk, arguments: &str) {
    let mut command = Command::new("openssl");
    command.args(arguments.split_whitespace()).current_dir(desk.path("hsm"));
    let output = command.output().expect("openssl must be installed for this test");
    assert!(output.status.success(), "openssl {arguments}: {output:?}");
}

/// A desk with a bundle, and `hsm/` with a key that only OpenSSL has, the script `sign.sh` and `release.key`, which names it.
fn desk() -> Desk {
    let desk = Desk::new();
    fs::create_dir(desk.path("hsm")).unwrap();
    for name in ["hsm", "other"] {
        openssl(&desk, &format!("genpkey -algorithm ed25519 -out {name}.pem"));
    }
    openssl(&desk, "pkey -in hsm.pem -pubout -out hsm-public.pem");
    desk.write("hsm/sign.sh", SIGN);
    external(&desk, "release.key", "sh sign.sh");
    let description = desk.digits("1.0.0");
    desk.ok(&format!("bundle build {description} --out bundle"));
    desk
}

/// Makes `hsm/NAME` for the key in `hsm.pem`, with `command`.
#[track_caller]
fn external(desk: &Desk, name: &str, command: &str) -> Ended {
    desk.ok(&format!("--output json key external --public-key hsm/hsm-public.pem --out hsm/{name} -- {command}"))
}

/// Makes `hsm/bad.key` with `script` run by a shell.
fn bad(desk: &Desk, script: &str) {
    bad_within(desk, script, 300);
}

/// As [`bad`], with a time limit.
fn bad_within(desk: &Desk, script: &str, limit_s: u32) {
    let public = String::from_utf8(desk.read("hsm/release.key.pub")).unwrap();
    desk.write(
        "hsm/bad.key",
        format!(
            "algorithm = \"ed25519\"\npublic-key = \"{}\"\ncommand = [\"sh\", \"-c\", '{script}']\ntime-limit-s = {limit_s}\n",
            public.trim()
        ),
    );
}

const SIGN_BUNDLE: &str = "bundle sign bundle --key hsm/bad.key";

#[test]
fn openssl_signs_bundles_and_root_documents_with_a_key_that_muster_never_sees() {
    if !installed(&["openssl"]) {
        return;
    }
    let desk = desk();
    let release = desk.ok("--output json key show hsm/release.key").json();
    assert_eq!(desk.ok("--output json key show hsm/hsm-public.pem").json(), release);
    assert!(!desk.path("hsm/message").exists(), "showing a key runs nothing");
    for name in ["root.key", "director.key"] {
        desk.ok(&format!("key generate --out {name}"));
    }
    let made = "root init --root-key root.key hsm/release.key --root-threshold 2 --director-key director.key.pub";
    desk.run(&format!("{made} --release-key hsm/release.key.pub --expires-days 30")).assert(0, &[]);
    let rotate = "root rotate root.json --expires-days 30 --sign-with root.key --out root-2.json";
    desk.ok(rotate).assert(0, &["missing signatures"]);
    desk.ok("root sign root-2.json --key hsm/release.key --previous root.json");
    desk.ok("root show root-2.json --previous root.json");

    desk.ok("bundle sign bundle --key hsm/release.key");
    desk.ok("bundle verify bundle --root root-2.json");
    let message = desk.read("hsm/message");
    assert!(message.starts_with(b"DSSEv1 39 application/vnd.muster.manifest.v1+json "), "the exact bytes are signed");

    // Once more in base64, by a program that is found from the key file.
    desk.write("hsm/sign.sh", format!("({SIGN}) | base64"));
    symlink("/bin/sh", desk.path("hsm/tool")).unwrap();
    external(&desk, "base64.key", "./tool sign.sh");
    desk.ok("bundle build bundle-1.0.0.toml --out bundle --force");
    desk.ok("bundle sign bundle --key hsm/base64.key");
    desk.ok("bundle verify bundle --root root-2.json");
}

#[test]
fn a_message_longer_than_any_pipe_arrives_whole() {
    if !installed(&["openssl"]) {
        return;
    }
    let desk = desk();
    let description = String::from_utf8(desk.read("bundle-1.0.0.toml")).unwrap();
    let metrics: Vec<String> = (0..1000).map(|n| format!("m{n:0>99} = 0.5")).collect();
    let long =
        description.replace("metrics = { accuracy = 0.895 }", &format!("metrics = {{ {} }}", metrics.join(", ")));
    assert_ne!(long, description);
    desk.write("long.toml", long);
    desk.ok("bundle build long.toml --out long");
    desk.ok("bundle sign long --key hsm/release.key");
    assert!(desk.read("hsm/message").len() > 65_536);
    // One that reads nothing of it is not waited for.
    bad(&desk, "echo none");
    desk.run("bundle sign long --key hsm/bad.key").assert(1, &["no ed25519 signature"]);
}

#[test]
fn what_is_no_signature_of_the_key_reaches_no_document() {
    if !installed(&["openssl"]) {
        return;
    }
    let desk = desk();
    let unsigned = desk.read("bundle/manifest.json");
    for (script, parts) in [
        ("exit 1", &["failed with exit status: 1", "it said nothing"][..]),
        ("echo the PIN is locked >&2; exit 3", &["failed with exit status: 3", "it said: the PIN is locked"]),
        ("kill -9 $$", &["failed with signal: 9"]),
        ("true", &["printed 0 bytes that are no ed25519 signature"]),
        ("echo rubbish; echo careful >&2", &["printed 8 bytes that are no ed25519 signature", "it said: careful"]),
        ("head -c 63 /dev/zero", &["printed 63 bytes"]),
        ("head -c 1025 /dev/zero", &["printed more than 1024 bytes"]),
        ("exec cat /dev/zero", &["printed more than 1024 bytes"]),
        ("head -c 64 /dev/zero", &["signs with another key than"]),
        ("cat > m; openssl pkeyutl -sign -rawin -in m -inkey other.pem", &["signs with another key than"]),
        (
            "openssl dgst -sha512 -binary > m; openssl pkeyutl -sign -rawin -in m -inkey hsm.pem",
            &["such as a digest of it"],
        ),
        ("printf \"\\033[2Jred\" >&2; exit 1", &["red"]),
    ] {
        bad(&desk, script);
        let ended = desk.run(SIGN_BUNDLE);
        ended.assert(1, &["hsm/bad.key: sh"]);
        ended.assert(1, parts);
        assert!(!ended.stderr.contains('\u{1b}'), "{ended:?}");
        assert_eq!(desk.read("bundle/manifest.json"), unsigned, "{script}");
    }
}

#[test]
fn a_command_that_hangs_is_ended() {
    if !installed(&["openssl"]) {
        return;
    }
    let desk = desk();
    // Long enough for a shell to say its word on a busy machine.
    bad_within(&desk, "echo $$ > pid; echo waiting for a touch >&2; exec sleep 600", 5);
    desk.run(SIGN_BUNDLE).assert(1, &["gave no signature within 5 s", "time-limit-s", "it said: waiting for a touch"]);
    let pid = String::from_utf8(desk.read("hsm/pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "{pid} is still there");
}

#[test]
fn endless_words_are_bounded() {
    if !installed(&["openssl"]) {
        return;
    }
    let desk = desk();
    bad(&desk, "yes again | head -c 10000000 >&2; echo the end >&2; exit 1");
    let ended = desk.run(SIGN_BUNDLE);
    ended.assert(1, &["again\nagain\n", "the end"]);
    assert!(ended.stderr.len() < 4096, "{}", ended.stderr.len());
}

#[test]
fn a_key_file_that_names_a_command_is_not_run_for_everybody() {
    if !installed(&["openssl"]) {
        return;
    }
    let desk = desk();
    for (mode, taken) in [(0o644, true), (0o620, false), (0o602, false)] {
        fs::set_permissions(desk.path("hsm/release.key"), fs::Permissions::from_mode(mode)).unwrap();
        let _ = fs::remove_file(desk.path("hsm/message"));
        let ended = desk.run("bundle sign bundle --key hsm/release.key");
        if !taken {
            ended.assert(2, &["others can change hsm/release.key", "chmod go-w"]);
        }
        assert_eq!((ended.code == 0, desk.path("hsm/message").exists()), (taken, taken), "{mode:o}");
    }
    external(&desk, "nowhere.key", "./nowhere");
    desk.run("bundle sign bundle --key hsm/nowhere.key").assert(1, &["./nowhere", "cannot be run", "No such file"]);
    desk.run("key encrypt hsm/nowhere.key").assert(2, &["hsm/nowhere.key", "names a command"]);
    desk.run("key external --public-key hsm/hsm-public.pem --out hsm/nowhere.key -- sh").assert(2, &["--force"]);
    desk.run("key external --public-key hsm/hsm-public.pem --out hsm/none.key").assert(2, &["COMMAND"]);
}

#[test]
fn the_access_token_is_not_the_commands_business() {
    if !installed(&["openssl"]) {
        return;
    }
    let desk = desk();
    bad(&desk, "echo token: ${MUSTER_TOKEN-none} >&2; exit 1");
    let ended: Ended = desk.command(SIGN_BUNDLE).env("MUSTER_TOKEN", "staple").output().unwrap().into();
    ended.assert(1, &["it said: token: none"]);
}

#[test]
fn what_a_command_asks_of_the_person_at_the_terminal_is_seen_at_once() {
    if !installed(&["openssl", "script", "stty"]) {
        return;
    }
    let desk = desk();
    desk.write("hsm/sign.sh", format!("echo touch the token >&2; until [ -e touched ]; do sleep 0.05; done; {SIGN}"));
    let terminal = Terminal::start(&desk, "bundle sign bundle --key hsm/release.key");
    wait("the request", || terminal.shown().contains("touch the token"));
    desk.write("hsm/touched", "");
    let (code, shown) = terminal.end();
    assert!(code == 0 && shown.contains("is signed with"), "{code}: {shown}");
}
