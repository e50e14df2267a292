//! Keys, root documents and bundles, from nothing to verified, with no controller in reach.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::run::{Desk, Ended};

/// The manifest in a bundle's envelope.
fn manifest(desk: &Desk, dir: &str) -> serde_json::Value {
    let envelope: serde_json::Value = serde_json::from_slice(&desk.read(&format!("{dir}/manifest.json"))).unwrap();
    serde_json::from_slice(&STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap()).unwrap()
}

fn sum(counts: &serde_json::Value) -> u64 {
    counts.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum()
}

#[test]
fn every_version_of_the_digits_is_built_signed_and_verified() {
    let desk = Desk::new();
    desk.trust();
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        let description = desk.digits(version);
        let built = desk.ok(&format!("--output json bundle build {description} --out {version}"));
        assert_eq!(built.json()["bundle"], format!("digits@{version}"));
        assert_eq!((built.json()["columns"].as_u64(), built.json()["reference_rows"].as_u64()), (Some(68), Some(500)));
        for said in ["model", "10 examples pass", "500 rows, 68 columns"] {
            assert!(built.stderr.contains(said), "{}", built.stderr);
        }

        let manifest = manifest(&desk, version);
        let columns = manifest["profile"]["columns"].as_array().unwrap();
        for column in columns {
            let reference = &column["reference"];
            assert_eq!(sum(&reference["counts"]) + reference["missing"].as_u64().unwrap_or(0), 500, "{column}");
        }
        assert_eq!(columns[0]["source"], serde_json::json!({"from": "input", "tensor": "image", "index": 0}));
        let names: Vec<_> = columns[64..].iter().map(|column| column["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["class", "confidence", "entropy", "margin"].map(|of| format!("probabilities.{of}")));
        assert_eq!(manifest["created_at_ms"], 1_800_000_000_000u64);

        desk.ok(&format!("bundle sign {version} --key release.key"));
        let verified = desk.ok(&format!("--output json bundle verify {version} --root root.json"));
        assert_eq!(verified.json()["passed"], true);
    }
    // The weak model and the good one agree on most digits; the one with the swapped loader answers "4" to nearly all.
    let fours = |version| sum_of_class(&manifest(&desk, version), 4);
    assert!(fours("1.0.0") < 100 && fours("1.1.0") < 100 && fours("1.2.0") > 400);
}

fn sum_of_class(manifest: &serde_json::Value, class: usize) -> u64 {
    let columns = manifest["profile"]["columns"].as_array().unwrap();
    let column = columns.iter().find(|column| column["name"] == "probabilities.class").unwrap();
    column["reference"]["counts"][class].as_u64().unwrap()
}

#[test]
fn the_same_sources_give_the_same_bytes() {
    let desk = Desk::new();
    let description = desk.digits("1.1.0");
    desk.ok(&format!("bundle build {description} --out one"));
    desk.ok(&format!("bundle build {description} --out two"));
    assert_eq!(desk.read("one/manifest.json"), desk.read("two/manifest.json"));
    assert_eq!(desk.read("one/files/model.onnx"), desk.read("digits-1.1.0.onnx"));
    let ended: Ended = desk
        .command(&format!("bundle build {description} --out three"))
        .env("SOURCE_DATE_EPOCH", "yesterday")
        .output()
        .unwrap()
        .into();
    ended.assert(2, &["SOURCE_DATE_EPOCH", "seconds since 1970"]);
}

#[test]
fn a_folder_is_only_replaced_when_told_to() {
    let desk = Desk::new();
    let description = desk.digits("1.0.0");
    let build = format!("bundle build {description} --out out");
    fs::create_dir(desk.path("out")).unwrap();
    desk.ok(&build);
    desk.run(&build).assert(2, &["holds a bundle already", "--force"]);
    desk.write("out/files/left-over", "x");
    desk.ok(&format!("{build} --force"));
    assert!(!desk.path("out/files/left-over").exists());
    fs::create_dir(desk.path("precious")).unwrap();
    desk.write("precious/thesis.tex", "x");
    desk.run(&format!("bundle build {description} --out precious --force")).assert(2, &["holds no bundle"]);
    assert!(desk.path("precious/thesis.tex").exists());
}

#[test]
fn a_model_without_a_sample_is_built_with_a_warning() {
    let desk = Desk::new();
    let description = desk.digits("1.0.0");
    let text = String::from_utf8(desk.read(&description)).unwrap().replace("reference = \"reference.csv\"\n", "");
    desk.write("bare.toml", text);
    let built = desk.ok("--output json bundle build bare.toml --out out");
    assert!(built.stderr.contains("warning: there is no reference sample"), "{}", built.stderr);
    assert_eq!(built.json()["columns"], 0);
}

#[test]
fn a_model_over_its_memory_budget_is_refused_before_any_device_sees_it() {
    let desk = Desk::new();
    let description = String::from_utf8(desk.read(&desk.digits("1.0.0"))).unwrap();
    desk.write("small.toml", description.replace("max-memory-bytes = 67108864", "max-memory-bytes = 1000"));
    desk.run("bundle build small.toml --out out")
        .assert(2, &["small.toml", "budgets.max-memory-bytes", "1000 allowed"]);
    assert!(!desk.path("out").exists());
}

#[test]
fn further_files_travel_with_the_model() {
    let desk = Desk::new();
    let description = String::from_utf8(desk.read(&desk.digits("1.0.0"))).unwrap();
    desk.write("labels.txt", "zero\none\n");
    desk.write("more.toml", format!("attachments = [\"labels.txt\"]\n{description}"));
    desk.ok("bundle build more.toml --out out");
    assert_eq!(desk.read("out/files/labels.txt"), desk.read("labels.txt"));
    let files = manifest(&desk, "out")["files"].as_array().unwrap().len();
    assert_eq!(files, 3);
    for (attachments, part) in [
        ("\"nowhere.txt\"", "cannot open"),
        ("\"labels.txt\", \"./labels.txt\"", "named twice"),
        ("\"model.onnx\"", "cannot open"),
        ("\"..\"", "does not end in a file's name"),
    ] {
        desk.write("more.toml", format!("attachments = [{attachments}]\n{description}"));
        desk.run("bundle build more.toml --out bad").assert(2, &[part]);
    }
}

#[test]
fn a_sample_may_be_an_array() {
    let desk = Desk::new();
    let description = desk.digits("1.0.0");
    desk.ok(&format!("bundle build {description} --out csv"));
    let csv = String::from_utf8(desk.read("reference.csv")).unwrap();
    let rows: Vec<Vec<u8>> =
        csv.lines().skip(1).map(|line| line.split(',').map(|n| n.parse().unwrap()).collect()).collect();
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({}, 64), }}\n", rows.len());
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    npy.extend(header.bytes());
    npy.extend(rows.concat());
    desk.write("reference.npy", npy);
    let text = String::from_utf8(desk.read(&description)).unwrap().replace("reference.csv", "reference.npy");
    desk.write("npy.toml", text);
    desk.ok("bundle build npy.toml --out npy");
    assert_eq!(manifest(&desk, "npy")["profile"], manifest(&desk, "csv")["profile"]);
}

#[test]
fn verification_finds_what_was_tampered_with() {
    let desk = Desk::new();
    desk.signed_bundle();
    let verify = "bundle verify bundle --root root.json";
    desk.ok(verify);
    let good = desk.read("bundle/files/model.onnx");

    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    desk.write("bundle/files/model.onnx", &damaged);
    desk.run(verify).assert(1, &["model.onnx", "not what the manifest says"]);
    desk.run("bundle sign bundle --key release.key").assert(1, &["model.onnx"]);
    desk.write("bundle/files/model.onnx", &good[1..]);
    desk.run(verify).assert(1, &["the manifest says"]);
    fs::remove_file(desk.path("bundle/files/model.onnx")).unwrap();
    desk.run(verify).assert(1, &["model.onnx: it is missing"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(desk.path("digits-1.0.0.onnx"), desk.path("bundle/files/model.onnx")).unwrap();
        desk.run(verify).assert(1, &["it is a link"]);
        fs::remove_file(desk.path("bundle/files/model.onnx")).unwrap();
    }
    desk.write("bundle/files/model.onnx", &good);
    desk.write("bundle/files/extra", "x");
    desk.run(verify).assert(1, &["extra is not in the manifest"]);
    fs::remove_file(desk.path("bundle/files/extra")).unwrap();
    desk.ok(verify);
}

#[test]
fn verification_finds_whose_word_is_missing() {
    let desk = Desk::new();
    desk.signed_bundle();
    let signed = desk.read("bundle/manifest.json");
    let mut envelope: serde_json::Value = serde_json::from_slice(&signed).unwrap();

    // Another manifest under the same signature.
    let text = String::from_utf8(STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap()).unwrap();
    let forged = text.replace("\"release_counter\":1", "\"release_counter\":9");
    assert_ne!(forged, text);
    envelope["payload"] = STANDARD.encode(forged).into();
    desk.write("bundle/manifest.json", envelope.to_string());
    desk.run("bundle verify bundle --root root.json").assert(1, &["0 of 1 required signatures are valid"]);

    envelope["signatures"] = serde_json::json!([]);
    desk.write("bundle/manifest.json", envelope.to_string());
    for verify in ["bundle verify bundle", "bundle verify bundle --root root.json"] {
        desk.run(verify).assert(1, &["signatures: the manifest is not signed"]);
    }
    desk.run("bundle push bundle").assert(1, &["not signed"]);

    // The director's key may not sign bundles.
    desk.write("bundle/manifest.json", &signed);
    desk.ok("bundle verify bundle --root root.json");
    desk.ok("bundle build bundle-1.0.0.toml --out bundle --force");
    desk.ok("bundle sign bundle --key director.key");
    desk.run("bundle verify bundle --root root.json").assert(1, &["release document: 0 of 1 required signatures"]);
    desk.ok("bundle verify bundle");

    envelope["payloadType"] = "application/vnd.muster.root.v1+json".into();
    desk.write("bundle/manifest.json", envelope.to_string());
    desk.run("bundle verify bundle").assert(1, &["not a manifest"]);
    desk.write("bundle/manifest.json", "{}");
    desk.run("bundle verify bundle").assert(2, &["manifest.json is not a signed document"]);
    desk.run("bundle verify nowhere").assert(2, &["nowhere is not a bundle"]);
}

#[test]
fn thresholds_and_dates_are_kept() {
    let desk = Desk::new();
    desk.trust();
    desk.ok("key generate --out second.key");
    desk.ok(
        "root init --root-key root.key second.key --root-threshold 2 --release-key release.key.pub second.key.pub \
         --release-threshold 2 --director-key director.key.pub --out two.json",
    );
    let description = desk.digits("1.0.0");
    desk.ok(&format!("bundle build {description} --out bundle"));
    desk.ok("bundle sign bundle --key release.key");
    desk.ok("bundle sign bundle --key release.key");
    desk.run("bundle verify bundle --root two.json").assert(1, &["1 of 2 required signatures"]);
    desk.ok("bundle sign bundle --key second.key");
    desk.ok("bundle verify bundle --root two.json");

    let built: Ended = desk
        .command(&format!("bundle build {description} --out old"))
        .env("SOURCE_DATE_EPOCH", "0")
        .output()
        .unwrap()
        .into();
    assert_eq!(built.code, 0);
    desk.ok("bundle sign old --key release.key second.key");
    desk.run("bundle verify old --root two.json").assert(1, &["expired at 1979-12-30T00:00:00Z"]);
}

#[cfg(unix)]
#[test]
fn keys_are_private_and_never_lost() {
    use std::os::unix::fs::PermissionsExt as _;
    let desk = Desk::new();
    desk.ok("key generate --out a.key");
    assert_eq!(fs::metadata(desk.path("a.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let (private, public) = (desk.read("a.key"), desk.read("a.key.pub"));
    desk.run("key generate --out a.key").assert(2, &["a.key", "--force"]);
    fs::remove_file(desk.path("a.key")).unwrap();
    desk.run("key generate --out a.key").assert(2, &["a.key.pub", "--force"]);
    desk.write("a.key", &private);
    assert_eq!((desk.read("a.key"), desk.read("a.key.pub")), (private, public.clone()));

    fs::set_permissions(desk.path("a.key"), fs::Permissions::from_mode(0o644)).unwrap();
    desk.ok("key generate --out b.key");
    desk.ok("key generate --out c.key");
    desk.run("root init --root-key a.key --release-key b.key.pub --director-key c.key.pub --out r.json")
        .assert(2, &["others can read or change a.key", "chmod 600"]);
    let shown = desk.ok("--output json key show a.key").json();
    assert_eq!(format!("{}\n", shown["public_key"].as_str().unwrap()).into_bytes(), public);
    assert_eq!(desk.ok("--output json key show a.key.pub").json(), shown);
    desk.ok("key generate --out a.key --force");
    assert_ne!(desk.read("a.key.pub"), public);
    assert_eq!(fs::metadata(desk.path("a.key")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn root_documents_must_make_sense() {
    let desk = Desk::new();
    desk.trust();
    let shown = desk.ok("--output json root show root.json").json();
    assert_eq!((shown["version"].as_u64(), shown["roles"]["root"]["threshold"].as_u64()), (Some(1), Some(1)));
    assert!(desk.ok("root show root.json").stdout.contains("1 of 1 must sign"));
    let digits = String::from_utf8(desk.read("director.key.pub")).unwrap();
    desk.ok(&format!(
        "root init --root-key root.key --release-key release.key.pub --director-key {digits} --out hex.json"
    ));
    let base = "root init --root-key root.key --release-key release.key.pub";
    desk.run(&format!("{base} --director-key director.key.pub")).assert(2, &["root.json is there already"]);
    desk.run(&format!("{base} --director-key director.key.pub --root-threshold 2 --out x.json"))
        .assert(2, &["role root has 1 keys and a threshold of 2"]);
    desk.run(&format!("{base} --director-key release.key.pub --out x.json")).assert(2, &["must not be able to sign"]);
    desk.run(&format!("{base} --director-key zz --out x.json")).assert(2, &["zz"]);
    desk.run(
        "root init --root-key root.key.pub --release-key release.key.pub --director-key director.key.pub --out x.json",
    )
    .assert(2, &["it is the public half"]);
    assert!(!desk.path("x.json").exists());

    let mut forged: serde_json::Value = serde_json::from_slice(&desk.read("root.json")).unwrap();
    forged["signatures"] = serde_json::json!([]);
    desk.write("forged.json", forged.to_string());
    desk.run("root show forged.json").assert(1, &["forged.json", "missing signatures"]);
}

#[test]
fn a_bundle_is_shown_from_its_folder() {
    let desk = Desk::new();
    desk.signed_bundle();
    let shown = desk.ok("bundle show bundle");
    for part in [
        "digits@1.0.0",
        "image FP32 [-1, 64] -> probabilities FP32 [-1, 10]",
        "64 inputs, 4 predictions",
        "accuracy 0.895",
    ] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    let json = desk.ok("--output json bundle show bundle").json();
    assert_eq!(json["manifest"]["name"], "digits");
    desk.run("bundle show not-there").assert(2, &["neither a folder nor a bundle's name"]);
}

#[test]
fn a_card_is_declared_signed_and_shown() {
    let desk = Desk::new();
    let plain = desk.digits("1.1.0");
    desk.ok(&format!("bundle build {plain} --out plain"));
    assert!(manifest(&desk, "plain").get("card").is_none(), "older readers know no card");
    let description = String::from_utf8(desk.read(&plain)).unwrap();
    let card =
        "[card]\nowners = ['vision team']\nlicense = 'Apache-2.0'\nintended-use = 'Reading digits of 8 x 8 pixels.'\n";
    desk.write("carded.toml", format!("{description}\n{card}"));
    desk.ok("bundle build carded.toml --out carded");
    assert_eq!(manifest(&desk, "carded")["card"]["license"], "Apache-2.0");
    let shown = desk.ok("bundle card carded").stdout;
    for part in [
        "# digits 1.1.0",
        "- **owners**: vision team",
        "- **signed**: by nobody",
        "*Not declared: limitations.*",
        "## Intended use\n\nReading digits of 8 x 8 pixels.",
        "| input | `image` | FP32 | any × 64 |",
        "- **sample**: 500 rows",
        "*A bundle in a folder: no controller was asked.*",
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    let json = desk.ok("--output json bundle card carded").json();
    assert_eq!((json["bundle"].as_str(), json["live"].is_null()), (Some("digits@1.1.0"), true));
    desk.write("wrong.toml", format!("{description}\n{}", card.replace("license", "licence")));
    desk.run("bundle build wrong.toml --out wrong").assert(2, &["unknown field `licence`"]);
    desk.run("bundle card not-there").assert(2, &["neither a folder nor a bundle's name"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_is_no_success() {
    let desk = Desk::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ended: Ended = desk.command("completions bash").stdout(full).output().unwrap().into();
    ended.assert(1, &["standard output cannot be written", "No space left"]);
}

#[test]
fn every_shell_gets_its_completions() {
    let desk = Desk::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = desk.ok(&format!("completions {shell}")).stdout;
        assert!(script.contains("muster") && script.contains("rollout"), "{shell}");
    }
    desk.run("completions tcsh").assert(2, &["tcsh"]);
    desk.ok("manual made");
    let page = fs::read_to_string(desk.path("made/man/muster-rollout-create.1")).unwrap();
    assert!(page.contains("muster rollout create"), "{page}");
    desk.run("frobnicate").assert(2, &["frobnicate"]);
    assert!(desk.ok("--help").stdout.contains("Exit codes"));
    assert!(desk.ok("--version").stdout.starts_with("muster "));
}
