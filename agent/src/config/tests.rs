//! Settings that are right, and those that are not.

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("agent.toml"))
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn an_empty_file_is_every_default() {
    let config = parse("").unwrap();
    assert_eq!(config.serve.listen.to_string(), "127.0.0.1:8600");
    assert_eq!(config.monitor.window_ms, 3_600_000);
    assert!(config.enrolment_token(&TokenPlaces::default()).unwrap().is_none());
}

/// The example documents every setting and its default: uncommented, it is what an empty file gives.
#[test]
fn the_example_is_complete_and_true() {
    let example = include_str!("../../agent.example.toml");
    assert_eq!(format!("{:?}", parse(example).unwrap()), format!("{:?}", Config::default()));
    let shown = |line: &str| line.strip_prefix("# ").unwrap_or(line).split_once(" = ").map(|(key, _)| key.to_owned());
    let keys: Vec<String> = example.lines().filter_map(shown).collect();
    let unknown = chain(&parse("nonsense = 1").unwrap_err());
    let expected = unknown.split("expected one of").nth(1).unwrap();
    for section in [
        "",
        "[serve]\n",
        "[monitor]\n",
        "[storage]\n",
        "[outbox]\n",
        "[broker]\n",
        "[delivery]\n",
        "[samples]\n",
        "[log]\n",
    ] {
        let text = chain(&parse(&format!("{section}nonsense = 1")).unwrap_err());
        let listed = text.split("expected").nth(1).unwrap_or(expected);
        for name in listed.split('`').skip(1).step_by(2) {
            let documented = keys.iter().any(|key| key == name) || example.contains(&format!("[{name}]"));
            assert!(documented, "{name:?} of {section:?} is not in agent.example.toml");
        }
    }
}

#[test]
fn faults_name_the_line_and_the_setting() {
    for (text, expected) in [
        ("\n\nwindow = 3", &["line 3", "window"][..]),
        ("[monitor]\nwindow-ms = \"an hour\"", &["line 2", "window-ms"]),
        ("device-id = \"Not Valid\"", &["line 1", "device id"]),
        ("[serve]\nlisten = \"nowhere\"", &["line 2", "listen"]),
        ("[serve]\nunix-socket-mode = \"rw\"", &["line 2", "rw", "0660"]),
        ("[serve]\nstuck-after-ms = 3", &["serve.stuck-after-ms", "from 10000"]),
        ("[serve]\nload-within-ms = 3", &["serve.load-within-ms", "from 10000"]),
        ("[serve]\nmax-concurrency = 0", &["serve.max-concurrency", "from 1 to 256"]),
        ("[storage]\nmax-bytes = 1", &["storage.max-bytes", "from 1048576"]),
        ("[broker]\nreconnect-max-ms = 20", &["broker.reconnect-max-ms"]),
        ("[delivery]\nquiet-hours = [\"22-06\"]", &["line 2", "22-06", "22:00-06:00"]),
        ("[delivery]\nmetered = \"maybe\"", &["line 2", "metered", "auto"]),
        ("[delivery]\nmax-download-bytes-per-s = 3", &["delivery.max-download-bytes-per-s", "256 or more"]),
        ("[delivery]\nmetered-interfaces = [\"w*an\"]", &["delivery.metered-interfaces", "w*an"]),
        ("[attributes]\n\"\" = \"x\"", &["attributes"]),
        ("[log]\nfilter = \"muster=loud\"", &["log.filter"]),
        ("enrolment-token = \"a\"\nenrolment-token-file = \"b\"", &["enrolment-token"]),
    ] {
        let error = chain(&parse(text).unwrap_err());
        for part in expected {
            assert!(error.contains(part), "{text:?} gave {error:?}, which does not name {part:?}");
        }
    }
}

#[test]
fn a_token_never_shows() {
    let config = parse("enrolment-token = \"hunter2\"").unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let error = chain(&config.enrolment_token(&TokenPlaces::default()).unwrap_err());
    assert!(error.contains("muster1.") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_token_file_is_named_whatever_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let config = parse(&format!("enrolment-token-file = {path:?}")).unwrap();
    let told = || chain(&config.enrolment_token(&TokenPlaces::default()).unwrap_err());
    assert!(told().contains(path.to_str().unwrap()) && told().contains("No such file"), "{}", told());
    let token = EnrolmentToken {
        url: "https://c:1".into(),
        ca_sha256: muster_shared::ids::Digest::of(b"ca"),
        root_sha256: muster_shared::ids::Digest::of(b"root"),
        secret: Some("hunter2".into()),
    };
    let whole = token.to_token_string();
    let huge = whole.repeat(100_000);
    for content in [&b""[..], b"hunter2", &[0xff, 0xfe, 0x68], &whole.as_bytes()[..20], huge.as_bytes()] {
        std::fs::write(&path, content).unwrap();
        assert!(told().contains(path.to_str().unwrap()) && !told().contains("hunter2"), "{}", told());
    }
    std::fs::write(&path, format!("  {whole}\n")).unwrap();
    assert_eq!(config.enrolment_token(&TokenPlaces::default()).unwrap(), Some(token));
}

#[test]
fn a_token_may_lie_where_the_environment_says() {
    let folder = tempfile::tempdir().unwrap();
    let token = |secret: &str| EnrolmentToken {
        url: "https://c:1".into(),
        ca_sha256: muster_shared::ids::Digest::of(b"ca"),
        root_sha256: muster_shared::ids::Digest::of(b"root"),
        secret: Some(secret.into()),
    };
    let write = |name: &str| {
        std::fs::write(folder.path().join(name), token(name).to_token_string()).unwrap();
        folder.path().join(name)
    };
    let found = |config: &str, places: &TokenPlaces| {
        parse(config).unwrap().enrolment_token(places).map(|token| token.and_then(|token| token.secret))
    };
    let (file, set) = (write("named"), write("set"));
    let credentials = TokenPlaces { file: None, credentials: Some(folder.path().to_owned()) };
    assert_eq!(found("", &credentials).unwrap(), None, "other credentials are no token");
    std::fs::write(folder.path().join("enrolment-token"), "\n").unwrap();
    assert_eq!(found("", &credentials).unwrap(), None, "the service's default where there is no token");
    write("enrolment-token");
    assert_eq!(found("", &credentials).unwrap().as_deref(), Some("enrolment-token"));
    let named = TokenPlaces { file: Some(file), ..credentials };
    assert_eq!(found("", &named).unwrap().as_deref(), Some("named"));
    assert_eq!(found(&format!("enrolment-token-file = {set:?}"), &named).unwrap().as_deref(), Some("set"));
    let gone = TokenPlaces { file: Some(folder.path().join("gone")), ..named };
    assert!(chain(&found("", &gone).unwrap_err()).contains("gone"));
}

#[test]
fn a_configuration_that_is_no_text_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    for content in [vec![0xff, 0xfe, b'x'], vec![b'\n'; 2_000_000]] {
        std::fs::write(&path, content).unwrap();
        let text = chain(&Config::load(&path).unwrap_err());
        assert!(text.contains("agent.toml") && text.contains("UTF-8 text of at most"), "{text}");
    }
    let text = chain(&Config::load(folder.path()).unwrap_err());
    assert!(text.contains("cannot read the configuration") && text.contains("directory"), "{text}");
}

proptest::proptest! {
    #[test]
    fn a_damaged_example_is_right_or_refused_by_name(at: proptest::sample::Index, text in ".{0,3}", cut in 0..20usize) {
        // Settings that are commented out for want of a default count, too; of the two tokens there may be one.
        let example: String = include_str!("../../agent.example.toml")
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|l| l.contains(" = ")).unwrap_or(line))
            .filter(|line| !line.starts_with("enrolment-token ="))
            .map(|line| format!("{line}\n"))
            .collect();
        proptest::prop_assert!(parse(&example).is_ok(), "{:?}", parse(&example));
        let mut chars: Vec<char> = example.chars().collect();
        let at = at.index(chars.len());
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, text.chars());
        let damaged: String = chars.into_iter().collect();
        if let Err(error) = parse(&damaged) {
            let told = chain(&error);
            proptest::prop_assert!(told.contains("agent.toml") || told.contains("log.filter"), "{}", told);
        }
    }

    #[test]
    fn any_text_is_a_configuration_or_refused(text in "[a-z\\[\\]=\".0-9\n-]{0,120}") {
        let _ = parse(&text);
    }
}
