//! Encrypted keys: made, changed and used, by us and by OpenSSL, and what must be seen of them nowhere.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::run::{Desk, Ended, installed};
use crate::terminal::Terminal;

const PASSPHRASE: &str = "correct horse battery";
const OTHER: &str = "incorrect horse battery";

fn secret(desk: &Desk, name: &str, content: &str) {
    desk.write(name, content);
    set_mode(&desk.path(name), 0o600);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(desk: &Desk) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(desk.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs the binary with the passphrase in a file that the environment names.
fn unlocked(desk: &Desk, arguments: &str) -> Ended {
    let ended: Ended = desk.command(arguments).env("MUSTER_KEY_PASSPHRASE_FILE", "passphrase").output().unwrap().into();
    assert!(!format!("{ended:?}").contains("horse"), "{ended:?}");
    ended
}

#[track_caller]
fn unlocked_ok(desk: &Desk, arguments: &str) -> Ended {
    let ended = unlocked(desk, arguments);
    assert_eq!(ended.code, 0, "{arguments}: {ended:?}");
    ended
}

#[track_caller]
fn openssl(desk: &Desk, arguments: &str) -> Ended {
    let ended = openssl_try(desk, arguments);
    assert_eq!(ended.code, 0, "openssl {arguments}: {ended:?}");
    ended
}

fn openssl_try(desk: &Desk, arguments: &str) -> Ended {
    let mut command = Command::new("openssl");
    command.args(arguments.split_whitespace()).current_dir(desk.path(""));
    command.output().expect("openssl must be installed for this test").into()
}

fn public_key(shown: &Ended) -> String {
    shown.json()["public_key"].as_str().unwrap().to_owned()
}

/// A desk with the passphrase in `passphrase` and another in `other`.
fn desk() -> Desk {
    let desk = Desk::new();
    secret(&desk, "passphrase", &format!("{PASSPHRASE}\n"));
    secret(&desk, "other", &format!("{OTHER}\n"));
    desk
}

#[test]
fn encrypted_keys_sign_like_any_other() {
    let desk = desk();
    for name in ["root.key", "release.key"] {
        let made = unlocked_ok(&desk, &format!("--output json key generate --encrypt --out {name}"));
        assert_eq!(made.json()["protection"], "passphrase");
        assert_eq!(mode(&desk.path(name)), 0o600);
        let text = String::from_utf8(desk.read(name)).unwrap();
        assert!(text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") && !text.contains("seed"), "{text}");
        // The public half is no secret, and asks for no passphrase.
        assert_eq!(public_key(&desk.ok(&format!("--output json key show {name}"))), public_key(&made));
    }
    desk.ok("key generate --out director.key");
    let init =
        "root init --root-key root.key --release-key release.key --director-key director.key.pub --expires-days 30";
    unlocked_ok(&desk, init);
    unlocked_ok(&desk, "root rotate root.json --expires-days 30 --sign-with root.key --out root-2.json");
    desk.ok("root rotate root.json --expires-days 30 --out root-2b.json");
    unlocked_ok(&desk, "root sign root-2b.json --key root.key");
    let description = desk.digits("1.0.0");
    desk.ok(&format!("bundle build {description} --out bundle"));
    let unsigned = desk.read("bundle/manifest.json");
    let wrong = desk.run("bundle sign bundle --key release.key --key-passphrase-file other");
    wrong.assert(2, &["cannot open release.key", "the passphrase is wrong, or the file is damaged"]);
    assert!(!wrong.stderr.contains("horse"), "{wrong:?}");
    assert_eq!(desk.read("bundle/manifest.json"), unsigned);
    desk.ok("bundle sign bundle --key release.key --key-passphrase-file passphrase");
    desk.ok("bundle verify bundle --root root.json");
    desk.ok("bundle verify bundle --root root-2b.json");
}

#[test]
fn openssl_reads_these_keys_and_these_commands_read_its_own() {
    if !installed(&["openssl"]) {
        return;
    }
    let desk = desk();
    let made = unlocked_ok(&desk, "--output json key generate --encrypt --out ours.key");
    openssl(&desk, "pkey -in ours.key -passin file:passphrase -pubout -out ours.pem");
    assert_eq!(public_key(&desk.ok("--output json key show ours.pem")), public_key(&made));
    assert_ne!(openssl_try(&desk, "pkey -in ours.key -passin file:other -noout").code, 0);

    openssl(&desk, "genpkey -algorithm ed25519 -out plain.pem");
    openssl(&desk, "pkey -in plain.pem -pubout -out public.pem");
    let public = public_key(&desk.ok("--output json key show public.pem"));
    openssl(&desk, "pkcs8 -topk8 -in plain.pem -passout file:passphrase -out default.pem");
    openssl(&desk, "pkcs8 -topk8 -scrypt -in plain.pem -passout file:passphrase -out scrypt.pem");
    openssl(
        &desk,
        "pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA512 -iter 50000 -in plain.pem -passout file:passphrase -out sha512.pem",
    );
    let description = desk.digits("1.0.0");
    desk.ok(&format!("bundle build {description} --out bundle"));
    for name in ["plain.pem", "default.pem", "scrypt.pem", "sha512.pem"] {
        assert_eq!(public_key(&unlocked_ok(&desk, &format!("--output json key show {name}"))), public);
        unlocked_ok(&desk, &format!("bundle sign bundle --key {name}"));
        if name != "plain.pem" {
            desk.run(&format!("bundle sign bundle --key {name} --key-passphrase-file other"))
                .assert(2, &[name, "the passphrase is wrong"]);
        }
    }
    for (name, make) in [
        ("rsa.pem", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -aes256 -pass file:passphrase"),
        ("x25519.pem", "genpkey -algorithm X25519 -aes256 -pass file:passphrase"),
    ] {
        openssl(&desk, &format!("{make} -out {name}"));
        unlocked(&desk, &format!("bundle sign bundle --key {name}")).assert(2, &[name, "it is no ed25519 key"]);
    }
    openssl(&desk, "pkcs8 -topk8 -v1 PBE-SHA1-3DES -in plain.pem -passout file:passphrase -out old.pem");
    unlocked(&desk, "key show old.pem").assert(2, &["old.pem", "openssl pkcs8 -topk8 -scrypt"]);
}

#[test]
fn a_key_is_protected_otherwise_without_ever_being_gone() {
    let desk = desk();
    let public = public_key(&desk.ok("--output json key generate --out a.key"));
    let plain = desk.read("a.key");
    unlocked_ok(&desk, "key encrypt a.key");
    assert!(!desk.read("a.key").windows(8).any(|part| part == b"seed = \""));
    unlocked(&desk, "key encrypt a.key").assert(2, &["a.key", "muster key passwd"]);
    let before = desk.read("a.key");
    secret(&desk, "short", "shorter\n");
    secret(&desk, "empty", "\n");
    for (arguments, parts) in [
        ("key passwd a.key --key-passphrase-file other --new-passphrase-file passphrase", ["a.key", "is wrong"]),
        ("key passwd a.key --key-passphrase-file passphrase --new-passphrase-file short", ["fewer than 8", "words"]),
        ("key passwd a.key --key-passphrase-file passphrase --new-passphrase-file empty", ["empty: ", "first line"]),
        ("key passwd a.key --key-passphrase-file passphrase --new-passphrase-file none", ["cannot open", "none"]),
        ("key decrypt a.key --key-passphrase-file other", ["a.key", "is wrong"]),
        ("key decrypt a.key --key-passphrase-file empty", ["empty: ", "first line"]),
        ("key encrypt a.key.pub", ["a.key.pub", "public half"]),
        ("key decrypt passphrase", ["passphrase is not a Muster signing key", "line 1"]),
    ] {
        let refused = desk.run(arguments);
        refused.assert(2, &parts);
        assert!(!refused.stderr.contains("horse"), "{refused:?}");
        assert_eq!(desk.read("a.key"), before, "{arguments}");
    }
    desk.ok("key passwd a.key --key-passphrase-file passphrase --new-passphrase-file other");
    unlocked(&desk, "key decrypt a.key").assert(2, &["the passphrase is wrong"]);
    assert_eq!(mode(&desk.path("a.key")), 0o600);
    desk.ok("key decrypt a.key --key-passphrase-file other");
    assert_eq!((desk.read("a.key"), mode(&desk.path("a.key"))), (plain, 0o600));
    desk.run("key decrypt a.key").assert(2, &["a.key has no passphrase"]);
    desk.run("key passwd a.key").assert(2, &["a.key has no passphrase", "muster key encrypt"]);
    assert_eq!(public_key(&desk.ok("--output json key show a.key")), public);
    assert_eq!(names(&desk), ["a.key", "a.key.pub", "empty", "other", "passphrase", "short"], "nothing is left over");
}

#[test]
fn the_key_behind_a_link_is_the_one_that_is_encrypted() {
    let desk = desk();
    fs::create_dir(desk.path("stick")).unwrap();
    desk.ok("key generate --out stick/a.key");
    symlink("stick/a.key", desk.path("a.key")).unwrap();
    unlocked_ok(&desk, "key encrypt a.key");
    assert!(fs::symlink_metadata(desk.path("a.key")).unwrap().is_symlink());
    assert!(String::from_utf8(desk.read("stick/a.key")).unwrap().contains("BEGIN ENCRYPTED"));
}

#[test]
fn what_others_can_read_is_no_secret() {
    let desk = desk();
    desk.trust();
    let description = desk.digits("1.0.0");
    desk.ok(&format!("bundle build {description} --out bundle"));
    let sign = "bundle sign bundle --key release.key";
    for open in [0o640, 0o604, 0o620, 0o602] {
        set_mode(&desk.path("release.key"), open);
        desk.run(sign).assert(2, &["others can read or change release.key", "chmod 600"]);
    }
    set_mode(&desk.path("release.key"), 0o600);
    desk.ok(sign);
    unlocked_ok(&desk, "key encrypt release.key");
    set_mode(&desk.path("release.key"), 0o644);
    let warned = unlocked_ok(&desk, sign);
    warned.assert(0, &["warning: others can read or change release.key", "only its passphrase"]);
    set_mode(&desk.path("passphrase"), 0o644);
    unlocked(&desk, sign).assert(2, &["others can read or change passphrase", "chmod 600"]);
}

#[test]
fn a_passphrase_may_come_through_a_pipe() {
    let desk = desk();
    unlocked_ok(&desk, "key generate --encrypt --out a.key");
    let mut command = desk.command("key decrypt a.key --key-passphrase-file /dev/stdin");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(PASSPHRASE.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_passphrase_without_encrypt_is_not_mistaken_for_protection() {
    let desk = desk();
    unlocked_ok(&desk, "key generate --out a.key")
        .assert(0, &["warning: the key is written in the clear", "--encrypt"]);
}

#[test]
fn without_a_terminal_there_must_be_a_file() {
    let desk = desk();
    unlocked_ok(&desk, "key generate --encrypt --out a.key");
    for arguments in ["key decrypt a.key", "key generate --encrypt --out b.key"] {
        let plain = desk.command(arguments);
        // Leaves the terminal that the tests may have been started from.
        let mut command = Command::new("setsid");
        command.arg("--wait").arg(plain.get_program()).args(plain.get_args()).current_dir(desk.path(""));
        command.env_remove("MUSTER_KEY_PASSPHRASE_FILE");
        let ended: Ended = command.output().unwrap().into();
        ended.assert(2, &["no terminal", "--key-passphrase-file", "MUSTER_KEY_PASSPHRASE_FILE"]);
    }
    assert!(!desk.path("b.key").exists());
}

#[test]
fn a_passphrase_is_asked_for_twice_and_never_shown() {
    if !installed(&["script", "stty"]) {
        return;
    }
    let desk = desk();
    let mut terminal = Terminal::start(&desk, "key generate --encrypt --out a.key");
    terminal.answer("New passphrase for a.key: ", PASSPHRASE);
    terminal.answer("The same again: ", PASSPHRASE);
    let (code, shown) = terminal.end();
    assert!(code == 0 && !shown.contains("horse"), "{code}: {shown}");
    unlocked_ok(&desk, "key decrypt a.key");

    let mut terminal = Terminal::start(&desk, "key encrypt a.key");
    terminal.answer("New passphrase for a.key: ", PASSPHRASE);
    terminal.answer("The same again: ", OTHER);
    let (code, shown) = terminal.end();
    assert!(code == 2 && shown.contains("the two passphrases differ") && !shown.contains("horse"), "{code}: {shown}");
    assert!(String::from_utf8(desk.read("a.key")).unwrap().contains("seed"), "it is as before");

    unlocked_ok(&desk, "key encrypt a.key");
    let mut terminal = Terminal::start(&desk, "key passwd a.key");
    terminal.answer("Passphrase of a.key: ", PASSPHRASE);
    terminal.answer("New passphrase for a.key: ", OTHER);
    terminal.answer("The same again: ", OTHER);
    let (code, shown) = terminal.end();
    assert!(code == 0 && !shown.contains("horse"), "{code}: {shown}");
    desk.ok("key decrypt a.key --key-passphrase-file other");
}
