//! Tables scored against bundles and profiles, with no controller in reach.

use std::fs;

use crate::run::{Desk, fixtures};

fn column<'r>(report: &'r serde_json::Value, name: &str) -> &'r serde_json::Value {
    report["columns"].as_array().unwrap().iter().find(|column| column["name"] == name).unwrap()
}

/// `x` runs through 0 to 99, `kind` through three words.
fn table(rows: u32, shift: u32) -> String {
    (0..rows).fold("x,kind\n".to_owned(), |text, row| {
        let kind = ["a", "b", "c"][usize::try_from((row + shift) % 7 % 3).unwrap()];
        format!("{text}{},{kind}\n", (row * 37) % 100 + shift)
    })
}

#[test]
fn a_table_is_scored_against_a_profile() {
    let desk = Desk::new();
    desk.write("reference.csv", table(1_000, 0));
    let built = desk.ok("profile build reference.csv --out profile.json --bins 10");
    assert!(built.stdout.contains("10 bins") && built.stdout.contains("3 classes"), "{}", built.stdout);
    desk.run("profile build reference.csv --out profile.json").assert(2, &["profile.json"]);

    desk.write("same.csv", table(600, 0));
    let same = desk.ok("--output json drift score profile.json same.csv").json();
    assert_eq!((same["drifted"].as_bool(), same["rows"].as_u64()), (Some(false), Some(600)));
    let x = column(&same, "x");
    assert_eq!((x["verdict"].as_str(), x["clustering"].as_str()), (Some("stable"), Some("rows")));
    assert_eq!((x["edges"].as_array().unwrap().len(), x["cells"].as_array().unwrap().len()), (11, 15));
    let sum = |counts: &serde_json::Value| {
        counts.as_array().unwrap().iter().filter_map(serde_json::Value::as_u64).sum::<u64>()
    };
    assert_eq!((sum(&x["reference"]), sum(&x["current"])), (1_000, 600));

    desk.write("moved.csv", table(600, 30));
    let moved = desk.run("--output json drift score profile.json moved.csv");
    moved.assert(3, &["drifted: \"x\""]);
    let moved = moved.json();
    assert!(
        column(&moved, "x")["wasserstein"]["value"].as_f64() > column(&moved, "x")["wasserstein"]["critical"].as_f64()
    );
    assert_eq!(column(&moved, "kind")["classes"], serde_json::json!(["a", "b", "c"]));
    // For people, what moved comes first.
    let shown = desk.run("drift score profile.json moved.csv");
    let rows: Vec<&str> = shown.stdout.lines().collect();
    assert!(rows[2].starts_with('x') && rows[2].ends_with("drifted") && rows[3].ends_with("stable"), "{rows:?}");
}

#[test]
fn rows_of_one_device_are_no_proof_of_a_fleet() {
    let desk = Desk::new();
    desk.write("reference.csv", table(1_000, 0));
    desk.ok("profile build reference.csv --out profile.json");
    let by_device = |device: fn(u32) -> u32| {
        (0..600)
            .fold("device,x,kind\n".to_owned(), |text, row| format!("{text}d{},{},a\n", device(row), (row * 37) % 50))
    };
    // All of it moved; from one device alone that may be its habit, and needs to be larger.
    desk.write("one.csv", by_device(|_| 1));
    desk.write("many.csv", by_device(|row| row % 40));
    let scored =
        |name: &str, rest: &str| desk.run(&format!("--output json drift score profile.json {name}.csv {rest}")).json();
    let one = scored("one", "--device-column device");
    assert_eq!(
        (column(&one, "x")["clustering"].as_str(), one["devices"].as_u64()),
        (Some("within-one-device"), Some(1))
    );
    assert!(column(&one, "x")["n_effective"].as_f64().unwrap() < 25.0, "{one}");
    let many = scored("many", "--device-column device");
    assert_eq!((column(&many, "x")["clustering"].as_str(), many["devices"].as_u64()), (Some("devices"), Some(40)));
    assert!(column(&many, "x")["n_effective"].as_f64().unwrap() > 100.0, "{many}");
    assert_eq!(scored("many", "")["extra_columns"], serde_json::json!(["device"]));
    desk.run("drift score profile.json one.csv --device-column nobody").assert(2, &["one.csv", "nobody"]);
}

#[test]
fn what_a_table_lacks_is_said_and_harms_nothing() {
    let desk = Desk::new();
    desk.write("reference.csv", table(500, 0));
    desk.ok("profile build reference.csv --out profile.json");
    desk.write("lacking.csv", table(500, 0).replace("kind", "sort"));
    let lacking = desk.run("--output json drift score profile.json lacking.csv");
    lacking.assert(0, &["the table lacks \"kind\"", "the reference knows no \"sort\""]);
    assert_eq!(lacking.json()["missing_columns"], serde_json::json!(["kind"]));

    // Nothing but missing values, text among numbers, classes never seen.
    desk.write(
        "odd.csv",
        (0..300).fold("x,kind\n".to_owned(), |text, row| text + ["NaN,q\n", ",q\n", "none,q\n"][row % 3]),
    );
    let odd = desk.run("--output json drift score profile.json odd.csv");
    odd.assert(3, &["100 cells in columns of numbers hold text"]);
    let odd = odd.json();
    assert_eq!(column(&odd, "x")["missing_share"].as_f64(), Some(1.0));
    assert_eq!(column(&odd, "kind")["unexpected_share"].as_f64(), Some(1.0));
    assert!(column(&odd, "kind")["beyond_chance"].to_string().contains("unexpected"));

    // One bin, and the largest numbers there are.
    desk.write("constant.csv", "x\n5\n5\n5\n");
    let one = desk.ok("profile build constant.csv --out constant.json --bins 1");
    assert!(one.stdout.contains("1 bin ") && !one.stdout.contains("1 bins"), "{}", one.stdout);
    desk.write("wide.csv", "x\n5\n1e300\n-1e300\ninf\n-inf\n");
    desk.run("drift score constant.json wide.csv").assert(0, &[]);

    for (name, content, said) in [
        ("empty.csv", "", "the file is empty"),
        ("header.csv", "x,kind\n", "no row"),
        ("strange.csv", "y\n1\n", "none of the reference's columns"),
        ("twice.csv", "x,x\n1,2\n", "\"x\" is there twice"),
        ("short.csv", "x,kind\n1\n", "line 2: the row has 1 values"),
        ("bytes.csv", "x,kind\n\u{0}", "the row has 1 values"),
    ] {
        desk.write(name, content);
        desk.run(&format!("drift score profile.json {name}")).assert(2, &[name, said]);
    }
    desk.run("profile build header.csv").assert(2, &["header.csv", "no row"]);
    desk.run("profile build nowhere.csv").assert(2, &["nowhere.csv"]);
    // Images need the model that looks at them.
    fs::create_dir(desk.path("photos")).unwrap();
    desk.run("profile build photos").assert(2, &["photos is a folder", "bundle build"]);
    desk.run("drift score profile.json photos").assert(2, &["photos is a folder", "one that names their files"]);
    desk.write("names.csv", "file,x\na.png,1\nb.JPG,2\n");
    desk.run("profile build names.csv").assert(0, &["column \"file\" names images, and only the names are counted"]);
    desk.run("profile build reference.csv --bins 0").assert(2, &["1 to 64 bins"]);
    desk.write("text.json", "{}");
    for reference in ["text.json", "reference.csv", "nowhere.json", "."] {
        desk.run(&format!("drift score {reference} lacking.csv")).assert(2, &[]);
    }
    desk.run("drift score profile.json lacking.csv --alpha 1").assert(2, &["--alpha"]);
}

#[test]
fn a_bundles_answers_are_scored_with_its_inputs() {
    let desk = Desk::new();
    for version in ["1.1.0", "1.2.0"] {
        let description = desk.digits(version);
        desk.ok(&format!("bundle build {description} --out {version}"));
    }
    fs::copy(fixtures().join("digits/heldout.csv"), desk.path("heldout.csv")).unwrap();
    let good = desk.ok("--output json drift score 1.1.0 heldout.csv").json();
    assert_eq!(good["columns"].as_array().unwrap().len(), 68);
    assert_eq!(good["extra_columns"], serde_json::json!(["label"]));
    let classes: u64 = column(&good, "probabilities.class")["current"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(serde_json::Value::as_u64)
        .sum();
    assert_eq!((classes, good["rows_without_answer"].as_u64()), (500, Some(0)));

    // The same model asked with every image turned over: inputs and answers have moved.
    let heldout = String::from_utf8(desk.read("heldout.csv")).unwrap();
    let turned: Vec<String> = heldout
        .lines()
        .enumerate()
        .map(|(at, line)| {
            let mut cells: Vec<&str> = line.split(',').collect();
            if at > 0 {
                cells[1..].reverse();
            }
            cells.join(",")
        })
        .collect();
    desk.write("turned.csv", turned.join("\n"));
    let moved = desk.run("--output json drift score 1.1.0/manifest.json turned.csv");
    moved.assert(3, &["drifted: "]);
    assert_eq!(column(&moved.json(), "probabilities.class")["drifted"], true);
    let inputs = desk.run("--output json drift score 1.1.0 turned.csv --inputs-only");
    inputs.assert(3, &["answers are not scored: only inputs were asked for"]);
    assert_eq!(inputs.json()["columns"].as_array().unwrap().len(), 64);
    // Without all its inputs the model is not run.
    desk.write("few.csv", "p0,p10\n0,1\n0,2\n");
    desk.run("drift score 1.1.0 few.csv")
        .assert(0, &["answers are not scored: the table has no column \"p1\"", "the table lacks"]);
}
