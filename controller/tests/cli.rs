//! The controller's command line, as people and scripts meet it.
//!
//! With this, `cargo test` builds the program itself, which the tests over real processes need.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::path::Path;
use std::process::{Command, Output};

fn controller(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster-controller")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn it_tells_its_version() {
    let output = controller(&["--version"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), format!("muster-controller {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_example_configuration_is_right() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("controller.example.toml");
    let output = controller(&["check-config", "--config", example.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_malformed_configuration_is_refused_with_file_line_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("controller.toml");
    std::fs::write(&path, "[rollout]\ntick-ms = 100\n[broker]\nlisten-on = \"x\"\n").unwrap();
    for command in ["check-config", "serve"] {
        let output = controller(&[command, "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        for part in ["controller.toml", "line 4", "listen-on"] {
            assert!(error.contains(part), "{error:?} does not name {part:?}");
        }
    }
}
