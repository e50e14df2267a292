//! Bad local input: each mistake ends with exit code 2 and words that say what and where.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::run::{Desk, fixtures};

/// Builds the digits with one of their files changed.
fn build_with(file: &str, change: impl FnOnce(String) -> String) -> crate::run::Ended {
    let desk = Desk::new();
    let description = desk.digits("1.0.0");
    let text = change(String::from_utf8(desk.read(file)).unwrap());
    desk.write(file, text);
    let ended = desk.run(&format!("bundle build {description} --out out"));
    assert!(!desk.path("out").exists(), "nothing is written of a bundle that is refused");
    ended
}

#[test]
fn descriptions_name_file_line_and_field() {
    let file = "bundle-1.0.0.toml";
    for (from, to, parts) in [
        ("release-counter = 1", "release-counter = one", &["bundle-1.0.0.toml", "line 4"][..]),
        ("release-counter = 1\n", "", &["missing field `release-counter`"]),
        ("security-floor = 0", "security-floor = 7", &["security floor 7 is above the bundle's own release counter 1"]),
        ("security-floor", "securty-floor", &["line 5", "unknown field `securty-floor`"]),
        ("name = \"image\"", "name = \"picture\"", &["inputs.name", "no input \"picture\"", "\"image\""]),
        ("\"p0\", ", "", &["inputs.features: 63 names are given", "has 64 elements"]),
        ("\"p1\"", "\"p0\"", &["\"p0\" is named twice"]),
        ("name = \"probabilities\"", "name = \"scores\"", &["outputs.name", "no output \"scores\""]),
        (", \"9\"]", "]", &["outputs.classes: 9 classes are named", "has 10 elements"]),
        ("\"9\"]", "\"8\"]", &["a class is named twice"]),
        ("digits-1.0.0.onnx", "nowhere.onnx", &["cannot open", "nowhere.onnx"]),
        ("reference.csv", "nowhere.csv", &["nowhere.csv: cannot open it"]),
        ("reference.csv", "digits-1.0.0.onnx", &["a .csv or a .npy file"]),
        ("[lineage]", "[lineage", &["bundle-1.0.0.toml", "TOML parse error"]),
    ] {
        build_with(file, |text| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        })
        .assert(2, parts);
    }
    let desk = Desk::new();
    desk.write("latin.toml", b"name = \"a\"\ndescription = \"\xe9\"\n");
    desk.run("bundle build latin.toml --out out").assert(2, &["latin.toml, line 2: this is not UTF-8"]);
    desk.run("bundle build nowhere.toml --out out").assert(2, &["cannot open nowhere.toml"]);
}

#[test]
fn samples_name_file_line_and_column() {
    let third = |text: String, change: &dyn Fn(&str) -> String| {
        let changed = text.lines().enumerate().map(|(at, line)| if at == 2 { change(line) } else { line.to_owned() });
        changed.collect::<Vec<_>>().join("\n")
    };
    build_with("reference.csv", |text| third(text, &|line| format!("{line},5")))
        .assert(2, &["reference.csv, line 3: the row has 65 values where the header names 64"]);
    build_with("reference.csv", |text| third(text, &|line| line[2..].to_owned()))
        .assert(2, &["reference.csv, line 3: the row has 63 values"]);
    build_with("reference.csv", |text| third(text, &|line| format!("ink{}", &line[1..])))
        .assert(2, &["reference.csv, line 3, column \"p0\": \"ink\" is not a number"]);
    build_with("reference.csv", |text| third(text, &|line| format!("inf{}", &line[1..])))
        .assert(2, &["reference.csv, line 3, column \"p0\": infinite"]);
    build_with("reference.csv", |text| text.replacen("p63", "p_63", 1))
        .assert(2, &["reference.csv, line 1: the header has no column \"p63\""]);
    build_with("reference.csv", |text| text.replacen("p63", "p62", 1)).assert(2, &["column \"p62\" is there twice"]);
    build_with("reference.csv", |text| text.lines().next().unwrap().to_owned())
        .assert(2, &["reference.csv: it holds no row"]);
    build_with("reference.csv", |_| String::new()).assert(2, &["reference.csv, line 1"]);
}

#[test]
fn arrays_name_file_and_place() {
    for (npy, parts) in [
        (&b"numpy"[..], &["reference.npy: this is not an NPY file"][..]),
        (b"\x93NUMPY\x01\x00\x40\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9, 64), }    \n", &["shorter than its header says"]),
        (b"\x93NUMPY\x01\x00\x40\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }     \n\0\0\0\0\0\0\0\0", &["2 columns, but the model's inputs take 64"]),
    ] {
        let desk = Desk::new();
        let description = desk.digits("1.0.0");
        let text = String::from_utf8(desk.read(&description)).unwrap().replace("reference.csv", "reference.npy");
        desk.write(&description, text);
        desk.write("reference.npy", npy);
        desk.run(&format!("bundle build {description} --out out")).assert(2, parts);
    }
}

#[test]
fn golden_examples_that_are_none_or_wrong() {
    let file = "golden-1.0.0.json";
    build_with(file, |text| text[..text.len() / 2].to_owned()).assert(2, &["golden-1.0.0.json cannot be used"]);
    build_with(file, |_| "{\"tolerance\": {\"abs\": 1, \"rel\": 0}, \"examples\": []}".to_owned())
        .assert(2, &["1 to 1000 golden examples"]);
    build_with(file, |text| text.replacen("\"shape\": [1, 64]", "\"shape\": [1, 65]", 1))
        .assert(2, &["golden example 1", "needs 65 elements"]);
    // What the examples say of the model is checked, not only read.
    build_with(file, |text| text.replacen("0.9896521", "0.7896521", 1)).assert(1, &["golden example 1", "0.7896521"]);
    build_with(file, |text| text.replacen("\"name\": \"image\"", "\"name\": \"picture\"", 1))
        .assert(1, &["do not fit the model", "picture"]);
}

#[test]
fn models_that_cannot_be_run_are_refused_in_plain_words() {
    for (model, parts) in [
        (
            "refuse-unsupported-operator",
            &["cannot be put into a bundle", "tract cannot run this model", "no operator Unique"][..],
        ),
        ("refuse-truncated", &["cannot be put into a bundle", "not a complete ONNX model"]),
        ("refuse-not-onnx", &["cannot be put into a bundle", "not a complete ONNX model"]),
    ] {
        let desk = Desk::new();
        let description = desk.digits("1.0.0");
        fs::copy(fixtures().join(format!("models/{model}.onnx")), desk.path("digits-1.0.0.onnx")).unwrap();
        let ended = desk.run(&format!("bundle build {description} --out out"));
        ended.assert(2, parts);
        assert!(!ended.stderr.contains("panicked at"), "{}", ended.stderr);
        assert!(!desk.path("out").exists());
    }
}

/// Every fixture model with its cases as golden examples and no sample.
#[test]
fn models_of_every_kind_are_built() {
    for model in [
        "bool-uint8",
        "cnn",
        "float64",
        "gru",
        "gru-symbolic-batch",
        "int64",
        "two-inputs-two-outputs",
        "two-symbols",
        "value-info-batch",
    ] {
        bare("models", model).ok("bundle build b.toml --out out");
    }
    for model in ["columns-logistic", "forest-texts", "lightgbm-categories", "logistic-maps", "xgboost-binary"] {
        bare("tabular", model).ok("bundle build b.toml --out out");
    }
}

/// A description of nothing but the model and its cases.
fn bare(folder: &str, model: &str) -> Desk {
    let desk = Desk::new();
    for name in [format!("{model}.onnx"), format!("{model}.cases.json")] {
        fs::copy(fixtures().join(folder).join(&name), desk.path(&name)).unwrap();
    }
    desk.write(
        "b.toml",
        format!("name = \"{model}\"\nversion = \"1.0.0\"\nrelease-counter = 1\nmodel = \"{model}.onnx\"\ngolden = \"{model}.cases.json\"\n"),
    );
    desk
}

/// tract loads it and runs it without a word, and every answer is wrong.
#[test]
fn models_that_the_runtime_computes_wrongly_are_refused() {
    let desk = bare("models", "refuse-quantised-softmax");
    desk.run("bundle build b.toml --out out").assert(
        1,
        &[
            "refuse-quantised-softmax.cases.json",
            "the runtime computes this one differently, as it does some with quantised operators",
            "golden example 1: element 0 of output \"probabilities\" should be 0.02",
            "but is 1",
        ],
    );
    assert!(!desk.path("out").exists(), "nothing is written of a bundle that is refused");
}

#[test]
fn several_inputs_are_filled_from_one_table() {
    let desk = Desk::new();
    for name in ["two-inputs-two-outputs.onnx", "two-inputs-two-outputs.cases.json"] {
        fs::copy(fixtures().join("models").join(name), desk.path(name)).unwrap();
    }
    let head = "name = \"sums\"\nversion = \"1.0.0\"\nrelease-counter = 1\nmodel = \"two-inputs-two-outputs.onnx\"\n\
        golden = \"two-inputs-two-outputs.cases.json\"\nreference = \"r.csv\"\n\
        [[outputs]]\nname = \"sum\"\nkind = \"numeric\"\n\
        [[outputs]]\nname = \"score\"\nkind = \"class-probabilities\"\nclasses = [\"no\", \"yes\"]\n";
    let left = "[[inputs]]\nname = \"left\"\nfeatures = [\"a\", \"b\", \"c\"]\n";
    let right = "[[inputs]]\nname = \"right\"\nfeatures = [\"d\", \"e\", \"f\"]\nmonitor = false\n";
    desk.write("r.csv", "a,b,c,d,e,f\n1,2,3,4,5,6\n2,3,4,5,6,7\n");
    desk.write("b.toml", format!("{head}{left}"));
    desk.run("bundle build b.toml --out out").assert(2, &["input \"right\" of the model is not described"]);
    desk.write("b.toml", format!("{head}{left}{right}"));
    desk.ok("bundle build b.toml --out out");
    let shown = desk.ok("--output json bundle show out").json();
    let columns = shown["manifest"]["profile"]["columns"].as_array().unwrap();
    let names: Vec<_> = columns.iter().map(|column| column["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c", "sum.0", "sum.1", "sum.2", "score.class", "score.confidence", "score.margin"]);
    assert_eq!(columns[3]["reference"]["lower-edges"], serde_json::json!([5.0, 7.0]));
}

/// Writes `dir/manifest.json` anew with `payload` under the type of a manifest.
fn put_payload(desk: &Desk, dir: &str, payload: impl AsRef<[u8]>) {
    let envelope = serde_json::json!({
        "payload": STANDARD.encode(payload),
        "payloadType": "application/vnd.muster.manifest.v1+json",
        "signatures": [],
    });
    desk.write(&format!("{dir}/manifest.json"), envelope.to_string());
}

#[test]
fn manifests_that_are_none() {
    let desk = Desk::new();
    desk.signed_bundle();
    let good = desk.read("bundle/manifest.json");
    let envelope: serde_json::Value = serde_json::from_slice(&good).unwrap();
    let manifest = String::from_utf8(STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap()).unwrap();
    for (payload, part) in [
        ("\u{0}\u{1}".to_owned(), "expected value"),
        ("{}".to_owned(), "missing field"),
        (manifest.replacen("\"name\"", "\"nom\"", 1), "unknown field `nom`"),
        (manifest.replacen("golden.json", "../golden.json", 1), "a path must be relative"),
        (manifest.replacen("\"security_floor\":0", "\"security_floor\":9", 1), "security floor 9"),
    ] {
        assert_ne!(payload, manifest);
        put_payload(&desk, "bundle", &payload);
        for command in ["verify bundle", "show bundle", "sign bundle --key release.key", "push bundle"] {
            let ended = desk.run(&format!("--url https://127.0.0.1:1 --token t bundle {command}"));
            ended.assert(1, &["bundle/manifest.json is not a valid manifest", part]);
        }
    }
    let mut broken = envelope;
    broken["payload"] = "no base64!".into();
    desk.write("bundle/manifest.json", broken.to_string());
    desk.run("bundle verify bundle").assert(1, &["is not a valid manifest", "not base64"]);
    desk.write("bundle/manifest.json", vec![b' '; 2 * 1024 * 1024]);
    desk.run("bundle verify bundle").assert(2, &["manifest.json is longer than"]);
}

#[test]
fn root_documents_that_are_none() {
    let desk = Desk::new();
    desk.signed_bundle();
    desk.write("noise.json", [0u8, 159, 146, 150]);
    desk.write("half.json", &desk.read("root.json")[..100]);
    desk.write("list.json", "[]");
    let reach = "--url https://127.0.0.1:1 --token t";
    for file in ["noise.json", "half.json", "list.json"] {
        let said = format!("{file} is not a signed document (a DSSE envelope in JSON)");
        desk.run(&format!("root show {file}")).assert(2, &[&said]);
        desk.run(&format!("{reach} root push {file}")).assert(2, &[&said]);
        desk.run(&format!("bundle verify bundle --root {file}")).assert(2, &[&said]);
    }
    let said = "is of type \"application/vnd.muster.manifest.v1+json\" where";
    desk.run("root show bundle/manifest.json").assert(1, &["bundle/manifest.json", said]);
    desk.run(&format!("{reach} root push bundle/manifest.json")).assert(1, &["bundle/manifest.json", said]);
    desk.run("bundle verify bundle --root bundle/manifest.json").assert(1, &["bundle/manifest.json", said]);
    desk.run("root show nowhere.json").assert(2, &["cannot open nowhere.json"]);
    desk.run("bundle verify bundle --root nowhere.json").assert(2, &["cannot open nowhere.json"]);
}

#[test]
fn keys_and_flags() {
    let desk = Desk::new();
    desk.signed_bundle();
    desk.write("bad.key", "algorithm = \"ed25519\"\nseed = \"00\"\n");
    desk.run("bundle sign bundle --key bad.key").assert(2, &["bad.key is not a Muster signing key"]);
    desk.run("bundle sign bundle --key nowhere.key").assert(2, &["cannot open nowhere.key"]);
    desk.run("bundle sign bundle --key release.key.pub").assert(2, &["public half"]);
    desk.run("key show bundle-1.0.0.toml").assert(2, &["not a public key", "64 hexadecimal digits"]);
    let zeros = "0".repeat(64);
    desk.write("zeros.pub", &zeros);
    desk.run("key show zeros.pub").assert(2, &["zeros.pub is not a public key", "weak key"]);
    desk.run(&format!(
        "root init --root-key root.key --release-key release.key.pub --director-key {zeros} --out x.json"
    ))
    .assert(2, &[&zeros, "weak key"]);
    for (arguments, part) in [
        ("token create --valid-for 5", "is not a duration"),
        ("token create --uses 0", "--uses"),
        ("token create --label site", "is not a label"),
        ("device list --selector =", "requirement 1 of the selector"),
        ("device show A", "device id"),
        ("device label dev-1 site", "is not a change of a label"),
        ("device label dev-1 a=1 a-", "a label is named twice"),
        ("rollout create --bundle digits --selector *", "is not a bundle reference"),
        ("rollout create --bundle digits@1.0.0", "--selector"),
        ("rollout create --bundle digits@1.0.0 --selector * --wave 0", "is not the size of a wave"),
        ("rollout create --bundle digits@1.0.0 --selector * --wave 1", "the last wave must reach every device"),
        ("rollout create --bundle digits@1.0.0 --selector * --soak 2h", "wave 1"),
        ("rollout create --bundle digits@1.0.0 --selector * --max-error-rate 2", "max_error_rate"),
        ("rollout create --bundle digits@1.0.0 --selector * --file x.toml", "cannot be used with"),
        ("rollout create --file nowhere.toml", "cannot open nowhere.toml"),
        ("drift show digits", "is not a bundle reference"),
        ("events --after x", "--after"),
    ] {
        let reach = "--url https://127.0.0.1:1 --token t";
        desk.run(&format!("{reach} {arguments}")).assert(2, &[part]);
    }
}
