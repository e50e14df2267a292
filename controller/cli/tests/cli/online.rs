//! Commands that talk to a controller, against one that says what each test wants.

use std::net::TcpListener;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::run::{Desk, Ended};
use crate::server::{Answer, Request, Server};

/// Runs `arguments` against `server`.
fn run(desk: &Desk, server: &Server, arguments: &str) -> Ended {
    desk.write("ca.pem", &server.ca_pem);
    let mut command = desk.command(arguments);
    command.env("MUSTER_URL", &server.url).env("MUSTER_TOKEN", "s3cret").env("MUSTER_CA_FILE", desk.path("ca.pem"));
    command.output().unwrap().into()
}

fn problem(status: u16, title: &str, detail: &str) -> Answer {
    (status, json!({"type": "urn:muster:problem:x", "title": title, "status": status, "detail": detail}))
}

fn not_found(request: &Request) -> Answer {
    problem(404, "Not found", &request.target)
}

fn page(items: &Value) -> Answer {
    (200, json!({"items": items, "next_cursor": null}))
}

fn rollout(status: &str, verdicts: &Value) -> Value {
    let wave = |size: &str| json!({"size": size, "selector": null, "soak_ms": 1, "max_duration_ms": 2});
    json!({
        "id": "r1",
        "spec": {"bundle": "digits@1.1.0", "selector": "*", "waves": [wave("2"), wave("100%")]},
        "manifest": "0".repeat(64),
        "status": status,
        "status_reason": "because",
        "created_at_ms": 0,
        "updated_at_ms": 0,
        "current_wave": 0,
        "waves": [
            {"devices": {"a": "committed", "b": "trial"}, "started_at_ms": 1, "verdict": null},
            {"devices": {}, "started_at_ms": null, "verdict": null},
        ],
        "waiting": [{"reason": "too-few-requests", "have": 3, "need": 100}],
        "verdicts": verdicts,
    })
}

fn verdict() -> Value {
    let arm = json!({"devices": 2, "reporting": 2, "reports": 6, "requests": 412, "errors": 0, "latency_p99_us": 900.0, "predictions": 412, "failures": 0});
    json!({
        "at_ms": 0, "wave": 0, "outcome": "Failed", "summary": "predictions moved",
        "canary": arm, "control": arm,
        "checks": [{
            "rule": "prediction-psi", "outcome": "Failed", "measured": 3.41, "limit": 0.25,
            "canary_samples": 412, "control_samples": 1604,
            "sentence": "prediction PSI 3.41 > 0.25 (canary 412 predictions, control 1,604)",
        }],
    })
}

#[test]
fn a_controller_that_is_not_there() {
    let desk = Desk::new();
    let server = Server::start(not_found);
    desk.write("ca.pem", &server.ca_pem);
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let reach = format!("--url https://{address} --token t --ca-file ca.pem");
    desk.run(&format!("{reach} device list")).assert(4, &["cannot be reached", &address.to_string()]);
    desk.run(&format!("{reach} rollout watch r1")).assert(4, &["cannot be reached"]);
    desk.run(&format!("{reach} events --follow")).assert(4, &["cannot be reached"]);
}

#[test]
fn a_controller_that_cannot_be_named_or_trusted() {
    let desk = Desk::new();
    let server = Server::start(not_found);
    let other = Server::start(not_found);
    desk.run("device list").assert(2, &["MUSTER_URL", ".config/muster/config.toml"]);
    let mut unset = desk.command("device list");
    unset.envs(["MUSTER_URL", "MUSTER_TOKEN", "MUSTER_CA_FILE", "MUSTER_CONFIG"].map(|name| (name, "")));
    Ended::from(unset.output().unwrap()).assert(2, &["MUSTER_URL"]);
    desk.run("--url http://localhost:1 --token t device list").assert(2, &["in the clear"]);
    desk.run("--url https://localhost:1 device list").assert(2, &["MUSTER_TOKEN"]);
    desk.run("--config nowhere.toml device list").assert(2, &["cannot open nowhere.toml"]);
    desk.write("not.pem", "hello");
    desk.run("--url https://localhost:1 --token t --ca-file not.pem device list").assert(2, &["no certificate in PEM"]);
    desk.write("other.pem", &other.ca_pem);
    let ended = desk.run(&format!("--url {} --token t --ca-file other.pem device list", server.url));
    ended.assert(4, &["--ca-file"]);
    assert!(server.requests().is_empty(), "the token has not been sent");
}

#[test]
fn a_certificate_that_is_out_of_date_or_for_another_name() {
    let desk = Desk::new();
    let for_here = || rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let mut expired = for_here();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let mut early = for_here();
    early.not_before = rcgen::date_time_ymd(4000, 1, 1);
    let elsewhere = rcgen::CertificateParams::new(["muster.example".to_owned()]).unwrap();
    for (params, said) in [
        (expired, "its certificate is out of date, or the clock here is wrong"),
        (early, "its certificate is out of date, or the clock here is wrong"),
        (elsewhere, "its certificate is for another name"),
    ] {
        let server = Server::start_with(params, not_found);
        run(&desk, &server, "device list").assert(4, &["cannot be reached", said]);
        assert!(server.requests().is_empty(), "the token has not been sent");
    }
}

#[test]
fn a_list_that_goes_in_circles_is_left() {
    let desk = Desk::new();
    let server = Server::start(|request| {
        let next = if request.target.contains("cursor=one") { "two" } else { "one" };
        let bundle =
            json!({"manifest_digest": "0".repeat(64), "bundle": "a@1.0.0", "pushed_at_ms": 0, "total_bytes": 1});
        (200, json!({"items": [bundle], "next_cursor": next}))
    });
    run(&desk, &server, "bundle list").assert(4, &["does not go on"]);
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn the_configuration_file_names_the_controller() {
    let desk = Desk::new();
    let server = Server::start(|_| page(&json!([])));
    desk.write("ca.pem", &server.ca_pem);
    std::fs::create_dir_all(desk.path(".config/muster")).unwrap();
    let text = format!("url = \"{}\"\ntoken = \"from-file\"\nca-file = \"../../ca.pem\"\n", server.url);
    desk.write(".config/muster/config.toml", text);
    desk.ok("device list");
    assert_eq!(server.requests()[0].header("authorization"), Some("Bearer from-file"));
}

#[test]
fn refusals_and_failures_have_their_codes() {
    let desk = Desk::new();
    let server = Server::start(|request| match request.route().as_str() {
        "GET /api/v1/devices/gone" => problem(404, "Not found", "there is no device \"gone\""),
        "GET /api/v1/devices/secret" => problem(401, "Unauthorized", "the token is not known"),
        "GET /api/v1/devices/broken" => problem(500, "Failed", "the store is full"),
        "GET /api/v1/devices/odd" => (200, json!({"id": "odd"})),
        "GET /api/v1/devices/long" => (200, json!({"id": "long", "labels": "x".repeat(100_000)})),
        _ => (0, Value::Null),
    });
    run(&desk, &server, "device show gone").assert(3, &["Not found (404", "there is no device \"gone\""]);
    run(&desk, &server, "device show secret").assert(3, &["does not accept the access token"]);
    run(&desk, &server, "device show broken").assert(4, &["the store is full"]);
    run(&desk, &server, "device show odd").assert(4, &["not understood", "missing field"]);
    run(&desk, &server, "device show mute").assert(4, &["cannot be reached"]);
    let long = run(&desk, &server, "device show long");
    long.assert(4, &["not understood"]);
    assert!(long.stderr.len() < 10_000, "{} bytes", long.stderr.len());
}

#[test]
fn devices_are_listed_page_by_page_and_labelled() {
    let device = |id: &str| {
        json!({"id": id, "labels": {"site": "lyon\u{1b}[2J"}, "enrolled_at_ms": 0, "online": true,
               "last_seen_ms": 1_700_000_000_000u64, "desired": null, "reported": null})
    };
    let desk = Desk::new();
    let server = Server::start(move |request| match request.route().as_str() {
        "GET /api/v1/devices" if request.target.contains("cursor=two") => page(&json!([device("b")])),
        "GET /api/v1/devices" if request.target.contains("id%3Db") => page(&json!([])),
        "GET /api/v1/devices" => (200, json!({"items": [device("a")], "next_cursor": "two"})),
        "PATCH /api/v1/devices/a/labels" => (200, device("a")),
        _ => not_found(request),
    });
    let listed = run(&desk, &server, "device list --selector site=lyon");
    assert_eq!(listed.code, 0, "{listed:?}");
    let lines: Vec<&str> = listed.stdout.lines().collect();
    assert!(
        lines[0].starts_with("ID  ONLINE") && lines[1].starts_with("a   yes") && lines[2].starts_with('b'),
        "{lines:?}"
    );
    assert!(lines[1].contains("2023-11-14T22:13:20Z") && !listed.stdout.contains('\u{1b}'), "{lines:?}");
    let listed = run(&desk, &server, "--output json device list").json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    run(&desk, &server, "device list -l id=b").assert(0, &["no device"]);

    run(&desk, &server, "device label a site=lyon ring-").assert(0, &[]);
    let patch = server.requests().pop().unwrap();
    assert_eq!(patch.json(), json!({"labels": {"site": "lyon", "ring": null}}));
}

#[test]
fn devices_are_revoked_and_reinstated() {
    let device = |revoked: Value| {
        json!({"id": "a", "labels": {}, "enrolled_at_ms": 0, "online": false, "last_seen_ms": null, "desired": null,
               "reported": null, "revoked": revoked})
    };
    let revoked = json!({"since_ms": 1_700_000_000_000u64, "by": "admin", "reason": "stolen\u{1b}[2J"});
    let desk = Desk::new();
    let server = Server::start(move |request| match request.route().as_str() {
        "GET /api/v1/devices" => page(&json!([device(revoked.clone())])),
        "GET /api/v1/devices/a" | "POST /api/v1/devices/a/revoke" => (200, device(revoked.clone())),
        "POST /api/v1/devices/a/reinstate" => (200, device(Value::Null)),
        _ => not_found(request),
    });
    let done = run(&desk, &server, "device revoke a --reason stolen");
    assert_eq!(
        (done.code, done.stdout.matches("since 2023-11-14T22:13:20Z, by admin: stolen").count()),
        (0, 1),
        "{done:?}"
    );
    assert!(!done.stdout.contains('\u{1b}'), "{done:?}");
    assert_eq!(server.requests().pop().unwrap().json(), json!({"reason": "stolen"}));
    run(&desk, &server, "device revoke a").assert(0, &[]);
    assert_eq!(server.requests().pop().unwrap().json(), json!({"reason": null}));
    assert_eq!(run(&desk, &server, "--output json device revoke a").json()["revoked"]["by"], "admin");
    assert!(run(&desk, &server, "device list").stdout.contains("a   revoked"));
    assert!(run(&desk, &server, "device show a").stdout.contains("revoked    since 2023-11-14T22:13:20Z, by admin"));
    assert_eq!(run(&desk, &server, "device reinstate a").stdout, "a is not revoked\n");
    run(&desk, &server, "device revoke nobody").assert(3, &["/api/v1/devices/nobody/revoke"]);
    run(&desk, &server, "device reinstate nobody").assert(3, &["/api/v1/devices/nobody/reinstate"]);
    run(&desk, &server, "device revoke").assert(2, &["<ID>"]);
}

#[test]
fn a_list_that_never_ends_is_left() {
    let desk = Desk::new();
    let server = Server::start(|_| (200, json!({"items": [], "next_cursor": "again"})));
    run(&desk, &server, "bundle list").assert(4, &["does not go on"]);
}

#[test]
fn trust_is_fetched_and_given() {
    let desk = Desk::new();
    desk.trust();
    let director = String::from_utf8(desk.read("director.key.pub")).unwrap().trim().to_owned();
    let root: Value = serde_json::from_slice(&desk.read("root.json")).unwrap();
    let view = json!({"director_public_key": director, "roots": [root]});
    let server = Server::start(move |request| match request.route().as_str() {
        "GET /api/v1/trust" | "POST /api/v1/trust/root" => (200, view.clone()),
        _ => not_found(request),
    });
    run(&desk, &server, "trust director-key --out d.pub").assert(0, &[]);
    assert_eq!(desk.read("d.pub"), desk.read("director.key.pub"));
    assert_eq!(run(&desk, &server, "trust director-key").stdout.trim(), director);
    assert_eq!(run(&desk, &server, "--output json trust show").json()["director_public_key"], director);
    assert!(run(&desk, &server, "trust show").stdout.contains("1 of 1 must sign"));
    run(&desk, &server, "root push root.json").assert(0, &[]);
    assert_eq!(server.requests().pop().unwrap().json(), json!({"root": root}));
}

#[test]
fn a_token_that_names_another_root_document_is_not_printed() {
    let desk = Desk::new();
    desk.trust();
    let digest = desk.ok("--output json root show root.json").json()["digest"].as_str().unwrap().to_owned();
    let server_for = |root_sha256: &str| {
        let content =
            json!({"url": "https://c.example", "ca_sha256": "0".repeat(64), "root_sha256": root_sha256, "secret": "s"});
        let token = format!("muster1.{}", URL_SAFE_NO_PAD.encode(content.to_string()));
        (
            token.clone(),
            Server::start(move |_| {
                (201, json!({"id": "0123456789ab", "token": token, "expires_ms": 1_700_000_000_000u64}))
            }),
        )
    };
    let (token, server) = server_for(&digest);
    let made = run(&desk, &server, "token create --root root.json");
    assert_eq!((made.code, made.stdout), (0, format!("{token}\n")));
    let (token, server) = server_for(&"1".repeat(64));
    let refused = run(&desk, &server, "token create --root root.json");
    refused.assert(1, &["names the root document 111111111111", "not printed"]);
    assert!(!format!("{refused:?}").contains(&token));
    desk.ok("root rotate root.json --sign-with root.key --out root-2.json");
    run(&desk, &server, "token create --root root-2.json").assert(2, &["root-2.json is root document 2", "version 1"]);
    run(&desk, &server, "token create --root release.key.pub").assert(2, &["release.key.pub"]);
    assert_eq!(server.requests().len(), 1, "nothing was asked for before the document was read");
}

#[test]
fn tokens_are_printed_alone() {
    let desk = Desk::new();
    let server = Server::start(|_| {
        (201, json!({"id": "0123456789ab", "token": "muster1.abc", "expires_ms": 1_700_000_000_000u64}))
    });
    let made = run(&desk, &server, "token create --uses 3 --valid-for 2h --label site=lyon --label ring=1");
    assert_eq!((made.code, made.stdout.as_str()), (0, "muster1.abc\n"));
    assert!(made.stderr.contains("token 0123456789ab for 3 device(s), until 2023-11-14T22:13:20Z"), "{}", made.stderr);
    let wish = server.requests().pop().unwrap();
    assert_eq!(wish.json(), json!({"uses": 3, "valid_for_ms": 7_200_000, "labels": {"site": "lyon", "ring": "1"}}));
}

#[test]
fn tokens_are_listed_and_revoked() {
    let token = |id: &str, expires_ms: u64, uses: u32, revoked: Value| {
        json!({"id": id, "created_at_ms": null, "created_by": null, "expires_ms": expires_ms, "uses_left": uses,
               "labels": {"site": "lyon"}, "revoked": revoked})
    };
    let revocation = json!({"since_ms": 1, "by": "admin", "reason": null});
    let revoked = token("d", u64::MAX, 1, revocation);
    let all = json!([
        token("a", u64::MAX, 1, Value::Null),
        token("b", 1, 1, Value::Null),
        token("c", u64::MAX, 0, Value::Null),
        revoked
    ]);
    let desk = Desk::new();
    let server = Server::start(move |request| match request.route().as_str() {
        "GET /api/v1/tokens" => page(&all),
        "POST /api/v1/tokens/d/revoke" => (200, all[3].clone()),
        _ => not_found(request),
    });
    let listed = run(&desk, &server, "token list");
    let lines: Vec<&str> = listed.stdout.lines().collect();
    for (line, start) in lines[1..].iter().zip(["a   good", "b   expired", "c   used up", "d   revoked"]) {
        assert!(line.starts_with(start) && line.ends_with("site=lyon"), "{line}");
    }
    assert_eq!(run(&desk, &server, "--output json token list").json().as_array().unwrap().len(), 4);
    assert_eq!(run(&desk, &server, "token revoke d --reason leaked").stdout, "token d is revoked\n");
    assert_eq!(server.requests().pop().unwrap().json(), json!({"reason": "leaked"}));
    run(&desk, &server, "token revoke nobody").assert(3, &["/api/v1/tokens/nobody/revoke"]);
}

#[test]
fn bundles_are_pushed_as_far_as_they_are_missing() {
    let desk = Desk::new();
    desk.signed_bundle();
    let shown = desk.ok("--output json bundle show bundle").json();
    let golden = shown["manifest"]["files"][1]["sha256"].as_str().unwrap().to_owned();
    let digest = shown["manifest_digest"].clone();
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" if request.target.ends_with(&golden) => (200, Value::Null),
        "HEAD" => (404, Value::Null),
        "PUT" => (200, Value::Null),
        _ => (201, json!({"manifest_digest": digest, "bundle": "digits@1.0.0", "pushed_at_ms": 0, "total_bytes": 1})),
    });
    let pushed = run(&desk, &server, "bundle push bundle");
    pushed.assert(0, &["sent 1 of 2 files"]);
    assert!(pushed.stdout.starts_with("digits@1.0.0"), "{}", pushed.stdout);
    let requests = server.requests();
    let put = requests.iter().find(|request| request.method == "PUT").unwrap();
    assert_eq!(put.body, desk.read("bundle/files/model.onnx"));
    assert_eq!(put.target, format!("/api/v1/files/{}", shown["manifest"]["files"][0]["sha256"].as_str().unwrap()));
    let manifest: Value = serde_json::from_slice(&desk.read("bundle/manifest.json")).unwrap();
    assert_eq!(requests.last().unwrap().json(), json!({"manifest": manifest}));
}

#[test]
fn a_rollout_is_created_once_although_the_answer_was_lost() {
    let desk = Desk::new();
    let mut first = true;
    let server = Server::start(move |_| match std::mem::take(&mut first) {
        true => (0, Value::Null),
        false => (201, rollout("ready", &json!([]))),
    });
    let flags = "--wave 1:site=lyon --wave 100% --soak 5s --max-duration 1m --max-error-rate 0.1 --max-latency-p99-ratio 3 \
        --max-failures 1 --max-prediction-psi 0.2 --min-reports 2 --min-requests 50 --probation 2s \
        --probation-max-error-rate 0.3 --probation-min-requests 5";
    let made = run(&desk, &server, &format!("rollout create --bundle digits@1.1.0 --selector * {flags}"));
    assert_eq!((made.code, made.stdout.as_str()), (0, "r1\n"), "{made:?}");
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].header("idempotency-key"), requests[1].header("idempotency-key"));
    assert!(requests[0].header("idempotency-key").unwrap().len() == 32);
    let wave = |size: &str, selector: Value| json!({"size": size, "selector": selector, "soak_ms": 5_000, "max_duration_ms": 60_000});
    assert_eq!(
        requests[1].json(),
        json!({
            "bundle": "digits@1.1.0",
            "selector": "*",
            "waves": [wave("1", "site=lyon".into()), wave("100%", Value::Null)],
            "limits": {"max_error_rate": 0.1, "max_latency_p99_ratio": 3.0, "max_failures": 1, "max_prediction_psi": 0.2, "min_reports": 2, "min_requests": 50},
            "watch": {"probation_ms": 2_000, "max_error_rate": 0.3, "min_requests": 5},
        })
    );
}

/// A controller whose rollout goes through `states`, one a look, and stays in the last.
fn going_through(states: Vec<Value>) -> Server {
    let mut states = states.into_iter();
    let mut last = Value::Null;
    Server::start(move |_| {
        last = states.next().unwrap_or_else(|| last.take());
        // A null stands for a controller that is away.
        if last.is_null() { problem(503, "Busy", "starting") } else { (200, last.clone()) }
    })
}

#[test]
fn watching_ends_with_the_rollout() {
    let desk = Desk::new();
    let watch = "rollout watch r1 --interval 50ms";
    let none = json!([]);
    let server = going_through(vec![rollout("running", &none), Value::Null, rollout("completed", &none)]);
    let watched = run(&desk, &server, watch);
    watched.assert(0, &["trying again"]);
    for part in
        ["r1 running: because", "wave 1/2 (2): 1/2, 1 committed, 1 trial", "waiting: 3 of 100 requests", "r1 completed"]
    {
        assert!(watched.stdout.contains(part), "{part}: {}", watched.stdout);
    }

    let verdicts = json!([verdict()]);
    let server = going_through(vec![
        rollout("running", &none),
        rollout("rolling_back", &verdicts),
        rollout("rolled_back", &verdicts),
    ]);
    let watched = run(&desk, &server, watch);
    watched.assert(1, &["r1 is rolled_back: because"]);
    assert_eq!(watched.stdout.matches("prediction PSI 3.41 > 0.25").count(), 1, "{}", watched.stdout);

    let server = going_through(vec![rollout("paused", &none)]);
    run(&desk, &server, &format!("{watch} --until-settled")).assert(1, &["r1 is paused"]);
    run(&desk, &server, &format!("{watch} --timeout 100ms")).assert(1, &["r1 is still paused after 100ms"]);

    let server = going_through(vec![rollout("running", &none), rollout("running", &none), rollout("completed", &none)]);
    let watched = run(&desk, &server, &format!("--output json {watch}"));
    let states: Vec<Value> = watched.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        states.iter().map(|state| state["status"].as_str().unwrap()).collect::<Vec<_>>(),
        ["running", "completed"]
    );
}

#[test]
fn rollouts_are_shown_and_driven() {
    let desk = Desk::new();
    let server = Server::start(|request| match request.route().as_str() {
        "GET /api/v1/rollouts" => page(&json!([rollout("running", &json!([]))])),
        "GET /api/v1/rollouts/stop" => {
            (200, json!({ "stop": { "since_ms": 0, "by": "alice", "reason": "smoke" }, "rollouts": [] }))
        }
        "GET /api/v1/rollouts/r1" => (200, rollout("rolled_back", &json!([verdict()]))),
        "POST /api/v1/rollouts/r1/pause"
        | "POST /api/v1/rollouts/r1/resume"
        | "POST /api/v1/rollouts/r1/abort"
        | "POST /api/v1/rollouts/r1/rollback" => (200, rollout("paused", &json!([]))),
        _ => not_found(request),
    });
    let listed = run(&desk, &server, "rollout list");
    listed.assert(0, &["the fleet is stopped since 1970-01-01T00:00:00Z by alice: smoke"]);
    assert!(listed.stdout.contains("digits@1.1.0"), "{}", listed.stdout);
    let shown = run(&desk, &server, "rollout show r1");
    for part in ["rolled_back: because", "3 of 100 requests", "prediction-psi", "412", "1604", "predictions moved"] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    for action in ["pause", "resume", "abort", "rollback"] {
        let done = run(&desk, &server, &format!("rollout {action} r1 --reason heat"));
        assert_eq!(done.stdout, "r1 is paused: because\n");
        assert_eq!(server.requests().pop().unwrap().json(), json!({"reason": "heat"}));
    }
    run(&desk, &server, "rollout show r2").assert(3, &["/api/v1/rollouts/r2"]);
}

#[test]
fn drift_is_shown_with_what_moved_first() {
    let column = |name: &str, psi: f64, drifted: bool| {
        json!({"name": name, "prediction": false, "psi": psi, "critical": 0.1, "n": 100, "n_effective": 80.0,
               "missing_share": 0.0, "unexpected_share": 0.25, "drifted": drifted})
    };
    let report = json!({
        "bundle": "digits@1.0.0", "profile": "0".repeat(64), "group_by": "site", "alpha": 0.01, "min_effect": 0.1,
        "since_ms": 0,
        "groups": [{"group": "lyon", "devices": 2, "windows": 9, "columns": [column("p0", 0.01, false), column("p1", 0.9, true)]}],
    });
    let desk = Desk::new();
    let server = Server::start(move |_| (200, report.clone()));
    let shown = run(&desk, &server, "drift show digits@1.0.0 --group-by site --since 1h");
    let rows: Vec<&str> = shown.stdout.lines().collect();
    assert!(
        rows[2] == "site=lyon: 2 device(s), 9 window(s)" && rows[4].starts_with("p1") && rows[5].starts_with("p0"),
        "{rows:?}"
    );
    let target = server.requests().pop().unwrap().target;
    assert!(target.starts_with("/api/v1/drift?bundle=digits%401.0.0&group-by=site&since-ms="), "{target}");
    let shown = run(&desk, &server, "--output json drift show digits@1.0.0 --only-drifted").json();
    assert_eq!(shown["groups"][0]["columns"].as_array().unwrap().len(), 1);
}

#[test]
fn events_are_read_to_their_end() {
    let event = |sequence: u64| {
        json!({"sequence": sequence, "at_ms": 0, "kind": "device.committed", "actor": "device", "device": "a",
               "rollout": "r1", "bundle": "digits@1.0.0", "detail": "two\nlines"})
    };
    let desk = Desk::new();
    let server = Server::start(move |request| {
        let events: Vec<Value> = match request.target.split("after=").nth(1).and_then(|rest| rest.split('&').next()) {
            Some("5") => vec![event(6), event(7)],
            Some("7") => vec![event(9)],
            _ => vec![],
        };
        page(&json!(events))
    });
    let told = run(&desk, &server, "events --after 5 --device a --rollout r1");
    let lines: Vec<&str> = told.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{told:?}");
    assert_eq!(
        lines[0],
        "1970-01-01T00:00:00Z  #6  device.committed  by device  device a  rollout r1  digits@1.0.0  two lines"
    );
    assert!(server.requests()[0].target.ends_with("&device=a&rollout=r1"));
    run(&desk, &server, "events --after 9").assert(0, &["no event"]);
    assert_eq!(run(&desk, &server, "--output json events").json(), json!([]));
}

#[test]
fn a_page_without_an_event_of_what_is_asked_for_is_not_the_end() {
    let desk = Desk::new();
    let event = json!({"sequence": 40_001, "at_ms": 0, "kind": "device.committed", "actor": "device", "device": "a",
                       "rollout": null, "bundle": null, "detail": ""});
    let server = Server::start(move |request| {
        let after = request.target.split("after=").nth(1).and_then(|rest| rest.split('&').next());
        let (items, next) = match after {
            Some("0") => (json!([]), json!("20000")),
            Some("20000") => (json!([]), json!("40000")),
            Some("40000") => (json!([event]), json!("40001")),
            _ => (json!([]), Value::Null),
        };
        (200, json!({ "items": items, "next_cursor": next }))
    });
    let told = run(&desk, &server, "events --device a");
    assert!(told.code == 0 && told.stdout.contains("#40001  device.committed"), "{told:?}");
}

#[test]
fn rules_for_other_brokers_need_no_controller_and_are_always_the_same() {
    let desk = Desk::new();
    for (format, line) in [
        ("mosquitto", "pattern write muster/v1/d/%u/up/state"),
        ("mosquitto-conf", "use_username_as_clientid true"),
        ("emqx", "{deny, all}."),
    ] {
        let printed = desk.ok(&format!("broker acl --format {format}")).stdout;
        assert!(printed.lines().any(|there| there == line), "{printed}");
        assert_eq!(desk.ok(&format!("broker acl --format {format}")).stdout, printed);
        let json = desk.ok(&format!("--output json broker acl --format {format}")).json();
        assert_eq!(json.as_str().unwrap().trim_end(), printed.trim_end());
    }
    desk.run("broker acl").assert(2, &["--format"]);
    desk.run("broker acl --format other").assert(2, &["mosquitto-conf"]);
}

#[test]
fn what_is_no_list_of_revoked_certificates_replaces_none() {
    let desk = Desk::new();
    desk.write("crl.pem", "the list before");
    let server = Server::start(|_| (200, json!("noise")));
    run(&desk, &server, "broker crl --out crl.pem --force").assert(4, &["no list of revoked certificates"]);
    let server = Server::start(not_found);
    run(&desk, &server, "broker crl --out crl.pem --force").assert(3, &["/api/v1/crl.pem"]);
    assert_eq!(desk.read("crl.pem"), b"the list before");
}
