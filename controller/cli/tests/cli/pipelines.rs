//! Bundles with a pipeline and a data schema, built from raw data.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::run::{Desk, fixtures};

/// A desk with the files of the pipelines' fixtures.
fn desk() -> Desk {
    let desk = Desk::new();
    for entry in fs::read_dir(fixtures().join("pipelines")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), desk.path(entry.file_name().to_str().unwrap())).unwrap();
    }
    desk
}

fn text(desk: &Desk, name: &str) -> String {
    String::from_utf8(desk.read(name)).unwrap()
}

fn manifest(desk: &Desk, dir: &str) -> serde_json::Value {
    let envelope: serde_json::Value = serde_json::from_slice(&desk.read(&format!("{dir}/manifest.json"))).unwrap();
    serde_json::from_slice(&STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap()).unwrap()
}

#[test]
fn a_bundle_on_raw_data_is_fitted_built_and_verified() {
    let desk = desk();
    desk.trust();
    let built = desk.ok("--output json bundle build diabetes.toml --out out");
    assert_eq!(built.json()["golden_examples"], 6);
    let manifest = manifest(&desk, "out");
    let steps = manifest["pipeline"]["pre"].as_array().unwrap();
    assert_eq!(steps[2]["do"]["one-hot"]["categories"], serde_json::json!([["female", "male"]]));
    assert!(steps[1]["do"]["scale"]["center"][0].as_f64().unwrap() > 40.0, "the mean age, in years: {}", steps[1]);
    let inputs: Vec<_> = manifest["signature"]["inputs"].as_array().unwrap().iter().map(|i| &i["name"]).collect();
    assert!(
        inputs.len() == 10 && inputs.contains(&&serde_json::json!("sex")),
        "callers send what they have: {inputs:?}"
    );
    desk.ok("bundle sign out --key release.key");
    desk.ok("bundle verify out --root root.json");
}

#[test]
fn a_wrong_mean_is_caught_by_the_golden_examples() {
    let desk = desk();
    // What a careless copy of the training code's numbers would be: means of another cut of the data.
    let scale = format!("do.scale = {{ center = {:?}, scale = {:?} }}", vec![0.5; 9], vec![1.0; 9]);
    desk.write("skewed.toml", text(&desk, "diabetes.toml").replace("fit = \"standard\"", &scale));
    desk.run("bundle build skewed.toml --out out").assert(1, &["golden example 1", "\"progression\" should be"]);
    assert!(!desk.path("out").exists());
}

#[test]
fn mistakes_in_a_pipeline_name_step_and_reason() {
    let desk = desk();
    let good = text(&desk, "diabetes.toml");
    for (from, to, code, expected) in [
        ("fit = \"standard\"", "fit = \"standard\"\ndo = \"join\"", 2, "a step has one of do, fit and select"),
        ("from = [\"sex\"]", "from = [\"gender\"]", 2, "pipeline, pre step 3"),
        ("do.threshold.at = 150.0", "do.threshold.above = 150.0", 2, "unexpected keys in table: above"),
        ("do.threshold.at = 150.0", "fit = \"standard\"", 2, "holds no answers to fit it to"),
        ("labels = [\"fine\", \"watch\"]", "labels = []", 2, "post step 3 (labels to \"advice\")"),
        ("outputs = [\"progression\", \"advice\"]", "outputs = [\"risk\"]", 2, "output \"risk\" is written by no step"),
        ("reference = \"diabetes.csv\"", "", 2, "is to be fitted, but there is no reference sample"),
        ("\"numbers\", \"sex-columns\"]", "\"numbers\"]", 2, "the model's input \"x\" has the shape [-1, 11]"),
    ] {
        assert!(good.contains(from), "{from}");
        desk.write("bad.toml", good.replacen(from, to, 1));
        desk.run("bundle build bad.toml --out out").assert(code, &[expected]);
    }
}

#[test]
fn images_are_built_from_files() {
    let desk = desk();
    let built = desk.ok("--output json bundle build digits.toml --out out");
    assert_eq!(built.json()["golden_examples"], 10);
    // The examples are of a network that scales and takes the softmax itself; here both are steps, and folded into it again.
    let folded = serde_json::json!([
        {"half": "pre", "number": 3, "operation": "scale"},
        {"half": "post", "number": 1, "operation": "softmax"},
    ]);
    assert_eq!((&built.json()["pipeline_steps"], &built.json()["folded_steps"]), (&serde_json::json!(6), &folded));
    let words = "6 steps, 2 folded into the model (pre 3 scale, post 1 softmax)";
    assert!(built.stderr.contains(words), "{}", built.stderr);
    assert!(desk.ok("bundle show out").stdout.contains(words));
    let upside_down = text(&desk, "digits.toml").replace("divide-by = 15.0", "divide-by = 255.0");
    desk.write("d.toml", upside_down);
    desk.run("bundle build d.toml --out other").assert(1, &["golden example 1"]);
}

#[test]
fn a_schema_is_inferred_edited_and_held_against_sample_and_examples() {
    let desk = desk();
    desk.ok("bundle schema infer diabetes.toml --out schema.toml");
    desk.run("bundle schema infer diabetes.toml --out schema.toml").assert(2, &["is there already"]);
    let inferred = text(&desk, "schema.toml");
    for expected in ["name = \"bmi\"", "may-be-missing = true", "categories = [\"female\", \"male\"]"] {
        assert!(inferred.contains(expected), "{expected}: {inferred}");
    }
    let with_schema = format!("schema = \"schema.toml\"\n{}", text(&desk, "diabetes.toml"));
    desk.write("with.toml", &with_schema);
    let built = desk.ok("bundle build with.toml --out out");
    assert!(built.stderr.contains("schema     10 features; in the sample: bmi missing in"), "{}", built.stderr);
    assert_eq!(manifest(&desk, "out")["schema"]["features"].as_array().unwrap().len(), 10);

    // The sixth golden example is of unknown sex.
    desk.write("schema.toml", inferred.replace("on-violation = \"flag\"", "on-violation = \"reject\""));
    desk.run("bundle build with.toml --out strict")
        .assert(1, &["no device would let through", "the data schema rejects"]);
    desk.write("schema.toml", inferred.replace("name = \"bmi\"", "name = \"bmi\"\nmin = 1000.0\nmaxx = 1"));
    desk.run("bundle build with.toml --out bad").assert(2, &["schema.toml", "line"]);
    desk.write("with.toml", with_schema.replace("schema.toml", "none.toml"));
    desk.run("bundle build with.toml --out none").assert(2, &["muster bundle schema"]);
}

/// Every column scored, with the counts of both sides.
fn scored(desk: &Desk, arguments: &str) -> serde_json::Value {
    let ended = desk.run(&format!("--output json drift score {arguments}"));
    assert!(ended.stdout.starts_with('{'), "{} {}", ended.stdout, ended.stderr);
    ended.json()
}

fn assert_same_counts(report: &serde_json::Value, names: &[&str]) {
    let columns = report["columns"].as_array().unwrap();
    for name in names {
        let column =
            columns.iter().find(|column| column["name"] == *name).unwrap_or_else(|| panic!("no {name} in {report}"));
        assert_eq!(column["reference"], column["current"], "{name}");
        assert_eq!(column["verdict"], "stable");
    }
    assert_eq!(
        (report["rows_without_answer"].as_u64(), &report["answers_left_out"]),
        (Some(0), &serde_json::Value::Null)
    );
}

#[test]
fn answers_behind_a_pipeline_are_scored_as_they_were_measured() {
    let desk = desk();
    desk.ok("bundle build diabetes.toml --out out");
    // The reference itself: the same rows through the same steps fall into the same cells, words and missing values included.
    let report = scored(&desk, "out diabetes.csv");
    assert_same_counts(&report, &["age", "bmi", "progression"]);
    assert_eq!(report["drifted"], false);
    assert_eq!(report["extra_columns"], serde_json::json!([]), "the model reads what is not watched");
    // The model answers otherwise once what it reads has moved, although that column is not watched itself.
    let table = text(&desk, "diabetes.csv");
    desk.write("women.csv", table.replace("female", "male").replace("male", "female"));
    let moved = scored(&desk, "out women.csv");
    let progression = |report: &serde_json::Value| {
        let columns = report["columns"].as_array().unwrap();
        columns.iter().find(|column| column["name"] == "progression").unwrap()["current"].clone()
    };
    assert_ne!(progression(&moved), progression(&report));
    let (_, without) = table.split_once('\n').unwrap();
    desk.write("other.csv", format!("{}\n{without}", table.lines().next().unwrap().replace("sex", "gender")));
    let left_out = scored(&desk, "out other.csv");
    assert_eq!(left_out["answers_left_out"], "the table has no column \"sex\"");
}

/// The rules of a schema that hold one feature of the diabetes bundle to something.
fn rule(feature: &str, rules: &str) -> String {
    let datatype = if feature == "sex" { "BYTES" } else { "FP32" };
    format!("[[features]]\nname = \"{feature}\"\ntensor = \"{feature}\"\ndatatype = \"{datatype}\"\n{rules}\n")
}

fn fault<'r>(report: &'r serde_json::Value, feature: Option<&str>, cause: &str) -> &'r serde_json::Value {
    let faults = report["quality"]["faults"].as_array().unwrap();
    let found = faults.iter().find(|fault| fault["feature"] == serde_json::json!(feature) && fault["cause"] == cause);
    found.unwrap_or_else(|| panic!("no {cause} of {feature:?} in {}", report["quality"]))
}

#[test]
fn a_table_is_held_against_the_schema_as_devices_hold_requests() {
    let desk = desk();
    let rules = [
        "[duplicates]\namong-last = 8\n".to_owned(),
        rule("age", "may-be-missing = true\nmax = 120\non-violation = \"reject\""),
        rule(
            "bmi",
            "max = 80\nmay-be-missing = true\nmax-missing-share = 0.1\non-violation = \"impute\"\nimpute = 26.5",
        ),
        rule("bp", "stuck-after = 3"),
        rule("sex", "categories = [\"female\", \"male\"]"),
    ];
    desk.write("schema.toml", rules.concat());
    desk.write("with.toml", format!("schema = \"schema.toml\"\n{}", text(&desk, "diabetes.toml")));
    desk.ok("bundle build with.toml --out out");
    let table = text(&desk, "diabetes.csv");
    let header = table.lines().next().unwrap();
    let clean: Vec<Vec<&str>> = table.lines().skip(1).map(|line| line.split(',').collect()).collect();
    let write = |name: &str, header: &str, rows: &[Vec<&str>]| {
        let rows: Vec<String> = rows.iter().map(|row| row.join(",")).collect();
        desk.write(name, format!("{header}\n{}\n", rows.join("\n")));
    };
    let answers = |report: &serde_json::Value| {
        let columns = report["columns"].as_array().unwrap();
        columns.iter().find(|column| column["name"] == "progression").unwrap()["current"].clone()
    };
    let mut faulty = clean.clone();
    faulty[3][0] = "500";
    faulty[5][1] = "9999";
    faulty[7][9] = "unknown";
    faulty[11] = faulty[10].clone();
    write("faulty.csv", header, &faulty);
    let report = scored(&desk, "out faulty.csv");
    let (rejected, imputed) = (fault(&report, Some("age"), "above-max"), fault(&report, Some("bmi"), "above-max"));
    assert_eq!((rejected["count"].as_u64(), &rejected["handling"]), (Some(1), &"rejected".into()));
    assert_eq!((imputed["count"].as_u64(), &imputed["handling"]), (Some(1), &"imputed".into()));
    assert_eq!(fault(&report, Some("sex"), "unknown-category")["handling"], "flagged");
    assert_eq!(fault(&report, None, "duplicate")["count"], 1);
    let quality = &report["quality"];
    assert_eq!((quality["rows"].as_u64(), quality["rejected"].as_u64()), (Some(clean.len() as u64), Some(1)));
    assert_eq!(report["rows_without_answer"], 0);
    // The model has seen what it sees on a device: not the row that is rejected, and another value for the one that is imputed.
    let mut as_seen = faulty.clone();
    as_seen[5][1] = "26.5";
    as_seen.remove(3);
    write("seen.csv", header, &as_seen);
    assert_eq!(answers(&report), answers(&scored(&desk, "out seen.csv")));
    let shown = desk.run("drift score out faulty.csv");
    assert!(
        shown.stdout.contains("inputs against the data schema") && shown.stdout.contains("(row or request)"),
        "{}",
        shown.stdout
    );

    // A third is missing where a tenth may be: drift by itself, and more than is allowed.
    let mut lacking = clean.clone();
    lacking.iter_mut().step_by(3).for_each(|row| row[1] = "");
    write("lacking.csv", header, &lacking);
    let ended = desk.run("--output json drift score out lacking.csv");
    ended.assert(3, &["drifted: \"bmi\""]);
    let limit = ended.json()["quality"]["missing_limits"][0].clone();
    assert!(limit["exceeded"] == true && limit["limit"] == 0.1 && limit["q_value"].as_f64() < Some(0.01), "{limit}");

    // Four times the same is stuck where it is one device, and not where it is two.
    let mut constant: Vec<Vec<&str>> = clean.iter().take(40).cloned().collect();
    for (at, row) in constant.iter_mut().enumerate() {
        row[2] = if at % 8 < 4 { "90" } else { "95" };
        row.push(["left", "right"][at % 2]);
    }
    write("constant.csv", &format!("{header},device"), &constant);
    let stuck = scored(&desk, "out constant.csv --inputs-only");
    assert_eq!(fault(&stuck, Some("bp"), "stuck")["count"], 10);
    let apart = scored(&desk, "out constant.csv --inputs-only --device-column device");
    assert_eq!(
        apart["quality"]["faults"].as_array().unwrap().iter().filter(|fault| fault["cause"] == "stuck").count(),
        0
    );

    // What the table lacks is not looked at, and the rest is.
    let renamed = header.replace("sex", "gender").replace("bp", "pressure");
    write("other.csv", &renamed, &faulty);
    let ended = desk.run("--output json drift score out other.csv");
    ended.assert(0, &["the data schema has rules for \"bp\", \"sex\", which the table lacks"]);
    let report = ended.json();
    assert_eq!(fault(&report, Some("age"), "above-max")["count"], 1);
    assert_eq!(report["unchecked_features"], serde_json::json!(["bp", "sex"]));
    // Rows that no request can be made of are counted, too; of a profile alone there is no schema.
    desk.ok("profile build diabetes.csv --out profile.json");
    assert_eq!(scored(&desk, "profile.json faulty.csv")["quality"], serde_json::Value::Null);
}

#[test]
fn a_sample_of_images_is_a_folder_or_a_table_of_names() {
    let desk = desk();
    fs::create_dir(desk.path("photos")).unwrap();
    let mut names: Vec<String> = (0..20).map(|n| format!("expected-{n}.png")).collect();
    names.extend(["photo.jpg".to_owned(), "digit.png".to_owned()]);
    for name in &names {
        fs::copy(desk.path(name), desk.path(&format!("photos/{name}"))).unwrap();
    }
    let described = |reference: &str| {
        let watched = "[[inputs]]\nname = \"png\"\nfeatures = [\"file\"]\n\n[[outputs]]\nname = \"probabilities\"\nkind = \"class-probabilities\"\n\
                       classes = [\"0\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\"]\n";
        format!("reference = \"{reference}\"\n{}\n{watched}", text(&desk, "digits.toml"))
    };
    desk.write("folder.toml", described("photos"));
    let built = desk.ok("--output json bundle build folder.toml --out folder").json();
    assert_eq!((built["reference_rows"].as_u64(), built["columns"].as_u64()), (Some(22), Some(28)));
    let table = names.iter().fold("file\n".to_owned(), |table, name| format!("{table}photos/{name}\n"));
    desk.write("photos.csv", &table);
    desk.write("table.toml", described("photos.csv"));
    desk.ok("bundle build table.toml --out table");
    let counts = |dir: &str| manifest(&desk, dir)["profile"]["columns"].clone();
    assert_eq!(counts("folder"), counts("table"));
    desk.write("today.csv", table.replacen("file", "png", 1));
    let of_answers = ["probabilities.class", "probabilities.confidence", "probabilities.margin"];
    assert_same_counts(&scored(&desk, "folder today.csv"), &of_answers);
    // A folder is a table that names its files, and what is watched of an image is what the pipeline decodes from it.
    let report = scored(&desk, "folder photos");
    let of_images =
        ["png.mean", "png.std", "png.max", "png.saturated", "png.roughness", "png.projection-0", "png.projection-15"];
    assert_same_counts(&report, &[&of_images[..], &of_answers[..]].concat());
    assert_eq!(report["columns"].as_array().unwrap().len(), 28);
    assert_eq!(report["columns"], scored(&desk, "folder today.csv")["columns"]);
    // A gray image has no channels apart; 255 / 15 is the greatest there can be.
    let saturated = counts("folder").as_array().unwrap()[7].clone();
    let probe = serde_json::json!({"saturated": {"at": 17.0}});
    assert_eq!((&saturated["name"], &saturated["source"]["probe"]), (&"png.saturated".into(), &probe));
    fs::create_dir(desk.path("alike")).unwrap();
    for n in 0..40 {
        fs::copy(desk.path("digit.png"), desk.path(&format!("alike/{n}.png"))).unwrap();
    }
    desk.run("drift score folder alike").assert(3, &["png.std", "drifted"]);
    desk.write("unwatched.toml", described("photos").replace("[\"file\"]", "[\"file\"]\nmonitor = false"));
    assert_eq!(desk.ok("--output json bundle build unwatched.toml --out unwatched").json()["columns"], 4);
    desk.ok("bundle build diabetes.toml --out diabetes");
    desk.run("drift score diabetes photos").assert(2, &["photos is a folder", "only input"]);
    desk.write("gone.csv", "png\nphotos/nothing.png\nphotos/digit.png\n");
    assert_eq!(scored(&desk, "folder gone.csv")["rows_without_answer"], 1);

    fs::create_dir(desk.path("empty")).unwrap();
    desk.write("empty.toml", described("empty"));
    desk.run("bundle build empty.toml --out no").assert(2, &["empty", "no .png, .jpg or .jpeg file"]);
    desk.write("broken.csv", "file\ndigits.toml\n");
    desk.write("broken.toml", described("broken.csv"));
    desk.run("bundle build broken.toml --out no").assert(1, &["row", "neither PNG nor JPEG"]);
}
