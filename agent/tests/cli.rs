//! The agent's command line, as people and scripts meet it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::path::Path;
use std::process::{Command, Output};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster-agent")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn check(content: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    std::fs::write(&path, content).unwrap();
    agent(&["check-config", "--config", path.to_str().unwrap()])
}

#[test]
fn it_tells_its_version() {
    let output = agent(&["--version"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), format!("muster-agent {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_example_configuration_is_right() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("agent.example.toml");
    let output = agent(&["check-config", "--config", example.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("is right"));
}

#[test]
fn a_malformed_configuration_is_refused_with_line_and_field() {
    let output = check("[serve]\nlisten = \"127.0.0.1:0\"\nmax-concurency = 4\n");
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    for part in ["agent.toml", "line 3", "max-concurency", "max-concurrency"] {
        assert!(error.contains(part), "{error:?} does not name {part:?}");
    }
    let output = check("[monitor]\nwindow-ms = 1\n");
    assert!(text(&output.stderr).contains("monitor.window-ms"), "{}", text(&output.stderr));
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let output = agent(&["--config", "/nowhere/agent.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nowhere/agent.toml"));
}

#[test]
fn a_device_that_cannot_enrol_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    let data_dir = folder.path().join("data");
    let start = |token: &str, status: i32| {
        let config = format!("data-dir = {data_dir:?}\n{token}\n[serve]\nlisten = \"127.0.0.1:0\"\n");
        std::fs::write(&path, config).unwrap();
        let output = agent(&["--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(status));
        text(&output.stderr)
    };
    let error = start("", 78);
    assert!(error.contains("not enrolled") && error.contains("muster token create"), "{error}");
    let error = start("enrolment-token = \"muster1.rubbish\"", 1);
    assert!(error.contains("damaged") && !error.contains("rubbish"), "{error}");
}

#[test]
fn a_configuration_that_is_no_text_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    std::fs::write(&path, [0xff, 0xfe, 0x00, 0x41]).unwrap();
    let output = agent(&["--config", path.to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("agent.toml") && error.contains("UTF-8"), "{error}");
}

#[test]
fn a_token_file_is_named_whatever_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, token) = (folder.path().join("agent.toml"), folder.path().join("token.txt"));
    let config = format!(
        "data-dir = {:?}\nenrolment-token-file = {token:?}\n[serve]\nlisten = \"127.0.0.1:0\"\n",
        folder.path().join("data")
    );
    std::fs::write(&path, config).unwrap();
    for content in [None, Some(vec![0xff; 40]), Some(vec![b'm'; 5_000_000])] {
        if let Some(content) = content {
            std::fs::write(&token, content).unwrap();
        }
        let output = agent(&["--config", path.to_str().unwrap()]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("token.txt") && error.contains("muster token create"), "{error}");
    }
}

#[test]
fn a_token_may_be_a_credential_or_a_file_that_the_environment_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    let config = format!("data-dir = {:?}\n[serve]\nlisten = \"127.0.0.1:0\"\n", folder.path().join("data"));
    std::fs::write(&path, config).unwrap();
    let start = |variable: &str, value: &Path, status: i32| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
        let output = command.args(["--config", path.to_str().unwrap()]).env(variable, value).output().unwrap();
        assert_eq!(output.status.code(), Some(status));
        text(&output.stderr)
    };
    assert!(start("CREDENTIALS_DIRECTORY", folder.path(), 78).contains("not enrolled"));
    let token = folder.path().join("enrolment-token");
    std::fs::write(&token, "muster1.rubbish").unwrap();
    for error in
        [start("CREDENTIALS_DIRECTORY", folder.path(), 1), start("MUSTER_AGENT_ENROLMENT_TOKEN_FILE", &token, 1)]
    {
        assert!(error.contains(token.to_str().unwrap()) && error.contains("damaged"), "{error}");
        assert!(!error.contains("rubbish"), "{error}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = format!("data-dir = {:?}\n[serve]\nlisten = \"{address}\"\n", folder.path().join("data"));
    std::fs::write(&path, config).unwrap();
    let output = agent(&["--config", path.to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    for part in [address.to_string().as_str(), "in use", "[serve] listen"] {
        assert!(error.contains(part), "{error:?} does not name {part:?}");
    }
}

#[test]
fn a_damaged_identity_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    let data_dir = folder.path().join("data");
    std::fs::create_dir_all(data_dir.join("identity")).unwrap();
    std::fs::write(data_dir.join("identity/identity.json"), "{\"device\":").unwrap();
    std::fs::write(&path, format!("data-dir = {data_dir:?}\n[serve]\nlisten = \"127.0.0.1:0\"\n")).unwrap();
    let output = agent(&["--config", path.to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("identity.json") && error.contains("enrol again"), "{error}");
}

#[test]
fn labels_that_cannot_be_given_to_an_agent_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("agent.toml"), format!("data-dir = {:?}\n", folder.path())).unwrap();
    std::fs::write(at("truth.csv"), "id,label\na,1\n").unwrap();
    std::fs::write(at("truth.txt"), "a 1\n").unwrap();
    let give = |file: &str| agent(&["feedback", &at(file), "--config", &at("agent.toml")]);
    for (file, expected) in [
        ("truth.txt", "labels are in a .csv or a .jsonl file"),
        ("none.csv", "cannot open"),
        ("truth.csv", "is the agent running?"),
    ] {
        let output = give(file);
        assert_eq!(output.status.code(), Some(1), "{file}");
        assert!(text(&output.stderr).contains(expected), "{file}: {}", text(&output.stderr));
    }
    let nobody = agent(&["feedback", &at("truth.csv"), "--url", "http://127.0.0.1:9"]);
    assert!(text(&nobody.stderr).contains("http://127.0.0.1:9 does not answer"), "{}", text(&nobody.stderr));
}
