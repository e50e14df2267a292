//! SECURITY.md names tests; a name that no test has would claim what nobody shows.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};

fn sources(folder: &Path, into: &mut String) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                sources(&path, into)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn every_test_that_the_threat_model_names_is_there() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let page = fs::read_to_string(root.join("SECURITY.md"))?;
    let mut code = String::new();
    for folder in ["agent", "controller", "shared", "tests"] {
        sources(&root.join(folder), &mut code)?;
    }
    let rows = page.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut names = 0;
    for row in rows {
        let shown_by = row.trim_end_matches([' ', '|']).rsplit('|').next().context("a row has columns")?;
        let before = names;
        // Every other piece is between backticks.
        for name in shown_by.split('`').skip(1).step_by(2) {
            let name = name.rsplit("::").next().unwrap_or(name);
            let is_test = name.chars().filter(|c| *c == '_').count() >= 2;
            if is_test {
                names += 1;
                ensure!(code.contains(&format!("fn {name}(")), "SECURITY.md names {name}, and there is no such test");
            }
        }
        ensure!(names > before, "a row of the threat model names no test: {row}");
    }
    ensure!(names > 20, "only {names} names were found");
    Ok(())
}
