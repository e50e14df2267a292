//! Names, types and labels of metrics are a promise: docs/metrics.md holds what the programs really show.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, ensure};
use muster_tests::fleet::Fleet;

/// A family's type and the labels of its samples.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

/// What a page in Prometheus' text form shows.
fn shown(page: &str) -> anyhow::Result<Families> {
    let mut families = Families::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let end = line.find(['{', ' ']).context("a sample has a value")?;
            let sample = &line[..end];
            let family = ["", "_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| sample.strip_suffix(suffix))
                .find(|name| families.contains_key(*name))
                .with_context(|| format!("{sample} has no type"))?
                .to_owned();
            let labels = line[end..].strip_prefix('{').and_then(|rest| rest.rsplit_once('}')).map(|(inside, _)| inside);
            let names = labels.unwrap_or_default().split("\",").filter_map(|pair| pair.split_once("=\""));
            let names = names.map(|(name, _)| name.to_owned()).filter(|name| name != "le");
            families.entry(family).or_default().1.extend(names);
        }
    }
    Ok(families)
}

/// What the tables of docs/metrics.md say of names that begin with `prefix`.
fn documented(prefix: &str) -> anyhow::Result<Families> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"))?;
    let row = |line: &str| -> Option<(String, (String, BTreeSet<String>))> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells.first()?.trim_matches('`');
        let labels = cells.get(2)?.split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        name.starts_with(prefix).then(|| (name.to_owned(), (cells[1].to_owned(), labels)))
    };
    Ok(page.lines().filter(|line| line.starts_with('|')).filter_map(row).collect())
}

/// Names that the page says are shown only once there is something to show.
fn rare() -> anyhow::Result<BTreeSet<String>> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"))?;
    let rows = page.lines().filter(|line| line.contains("| (once there are any)"));
    Ok(rows.filter_map(|line| line.split('`').nth(1)).map(str::to_owned).collect())
}

/// Holds both programs of a fleet that has done everything against the page.
pub(crate) async fn are_documented(fleet: &Fleet) -> anyhow::Result<()> {
    let pem = std::fs::read(&fleet.controller.endpoints.ca_file)?;
    let client = reqwest::Client::builder().tls_certs_merge([reqwest::Certificate::from_pem(&pem)?]).build()?;
    let rare = rare()?;
    let agent = fleet.devices.first().context("a device")?;
    for (prefix, base) in
        [("muster_controller_", &fleet.controller.endpoints.api_url), ("muster_agent_", &agent.inference_url)]
    {
        let page = client.get(format!("{}/metrics", base.trim_end_matches('/'))).send().await?.text().await?;
        let (shown, documented) = (shown(&page)?, documented(prefix)?);
        ensure!(shown.keys().all(|name| name.starts_with(prefix)), "{:?}", shown.keys());
        for (name, what) in &shown {
            ensure!(
                documented.get(name) == Some(what),
                "{name} is {what:?}; docs/metrics.md: {:?}",
                documented.get(name)
            );
        }
        for name in documented.keys().filter(|name| !rare.contains(*name)) {
            ensure!(shown.contains_key(name), "docs/metrics.md lists {name}, which {base} does not show");
        }
    }
    Ok(())
}
