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

#[test]
fn an_administrators_token_that_is_named_must_be_there_and_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("controller.toml");
    let data = folder.path().join("data");
    std::fs::write(&path, format!("data-dir = {data:?}\n")).unwrap();
    let start = |variable: &str, value: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-controller"));
        command.args(["serve", "--config", path.to_str().unwrap()]).env(variable, value);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(!data.join("admin.token").exists(), "none is made beside the one that was named");
        text(&output.stderr)
    };
    let token = folder.path().join("admin-token");
    let error = start("MUSTER_CONTROLLER_ADMIN_TOKEN_FILE", &token);
    assert!(error.contains("admin-token is not there"), "{error}");
    std::fs::write(&token, "horse").unwrap();
    for error in [start("MUSTER_CONTROLLER_ADMIN_TOKEN_FILE", &token), start("CREDENTIALS_DIRECTORY", folder.path())] {
        assert!(error.contains("admin-token holds no token, which has 32") && !error.contains("horse"), "{error}");
    }
}
