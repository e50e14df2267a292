//! A disk that fills up: the file is named, nothing half written stays, and what was there before is there still.
//!
//! The disk is a small tmpfs in a mount namespace of its own. Where unprivileged namespaces are not permitted the tests
//! here say so and check nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::run::{Desk, Ended};

/// Runs `command` of the binary while `disk` has no more than `free_pages` left, after `before` has put there what it needs.
/// What is on the disk before and after is copied to `before` and `after`. `None` where namespaces are not permitted.
fn on_a_full_disk(desk: &Desk, free_pages: usize, before: &str, command: &str) -> Option<Ended> {
    for folder in ["disk", "before", "after"] {
        let _ = fs::remove_dir_all(desk.path(folder));
        fs::create_dir(desk.path(folder)).unwrap();
    }
    let shell = |script: &str| {
        let mut command = Command::new("unshare");
        let mounted = format!("mount -t tmpfs -o size=512k none disk && {{\n{script}\n}}");
        command
            .args(["-Urm", "sh", "-c", &mounted])
            .current_dir(desk.path(""))
            .env("MUSTER", env!("CARGO_BIN_EXE_muster"));
        command.env("SOURCE_DATE_EPOCH", "1800000000").output()
    };
    if !shell("true").is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a mount namespace is not permitted here");
        return None;
    }
    let before = before.lines().map(|line| format!("\"$MUSTER\" {line} 2>&1 || exit 90\n")).collect::<String>();
    let script = format!(
        "{before}cp -a disk/. before/
        cat /dev/zero > disk/filler 2> /dev/null
        truncate -s -$(({free_pages} * $(getconf PAGESIZE))) disk/filler || exit 91
        \"$MUSTER\" {command}
        code=$?
        rm disk/filler
        cp -a disk/. after/
        exit $code"
    );
    Some(shell(&script).unwrap().into())
}

/// Every file and folder under `root` by its path there, with its content.
fn tree(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let content = if path.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            found.push((path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), content));
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The command must fail for want of space, name `file`, and leave the disk as it was.
fn loses_nothing(desk: &Desk, free_pages: usize, before: &str, command: &str, file: &str) {
    let Some(ended) = on_a_full_disk(desk, free_pages, before, command) else { return };
    ended.assert(2, &["cannot write", file, "No space left on device"]);
    let (before, after) = (tree(&desk.path("before")), tree(&desk.path("after")));
    let names = |tree: &[(String, Vec<u8>)]| tree.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before), "{command} with {free_pages} pages free");
    assert!(after == before, "{command} with {free_pages} pages free has changed a file");
}

#[test]
fn a_new_file_is_whole_or_not_there() {
    let desk = Desk::new();
    desk.trust();
    let init = "root init --root-key root.key --release-key release.key.pub --director-key director.key.pub";
    loses_nothing(&desk, 0, "", &format!("{init} --out disk/new.json"), "disk/new.json");
    let make = format!("{init} --out disk/old.json");
    loses_nothing(&desk, 0, &make, &format!("{make} --force"), "disk/old.json");
}

#[test]
fn both_halves_of_a_key_are_replaced_or_neither() {
    let desk = Desk::new();
    let generate = "key generate --out disk/a.key";
    for (free_pages, file) in [(0, "disk/a.key"), (1, "disk/a.key.pub")] {
        loses_nothing(&desk, free_pages, "", generate, file);
        loses_nothing(&desk, free_pages, generate, &format!("{generate} --force"), file);
    }
}

#[test]
fn a_key_in_the_clear_stays_until_the_encrypted_one_is_whole() {
    use std::os::unix::fs::PermissionsExt as _;
    let desk = Desk::new();
    desk.write("passphrase", "correct horse battery\n");
    fs::set_permissions(desk.path("passphrase"), fs::Permissions::from_mode(0o600)).unwrap();
    let encrypt = "key encrypt disk/a.key --key-passphrase-file passphrase";
    loses_nothing(&desk, 0, "key generate --out disk/a.key", encrypt, "disk/a.key");
}

#[test]
fn a_bundle_is_kept_until_its_successor_is_whole() {
    let desk = Desk::new();
    let (old, new) = (desk.digits("1.0.0"), desk.digits("1.1.0"));
    desk.ok("key generate --out release.key");
    let make = format!("bundle build {old} --out disk/out\nbundle sign disk/out --key release.key");
    // The successor's model takes 4 pages, its examples 2, its manifest more than 4.
    for (free_pages, file) in [(0, "model.onnx"), (5, "golden.json"), (8, "manifest.json")] {
        let build = format!("bundle build {new} --out disk/out");
        loses_nothing(&desk, free_pages, &make, &format!("{build} --force"), file);
        loses_nothing(&desk, free_pages, "", &build, file);
    }
    loses_nothing(&desk, 0, &make, "bundle sign disk/out --key release.key", "disk/out/manifest.json");
}
