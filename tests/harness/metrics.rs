//! Reads single figures from a `/metrics` page.

/// The value of a counter or gauge on the page of `url`, summed over the labels that `name` leaves open, as in `name` or
/// `name{label="value"}`; 0 when it is not there.
///
/// # Errors
/// When the page cannot be read.
pub(crate) async fn read(client: &reqwest::Client, url: &str, name: &str) -> anyhow::Result<f64> {
    let page = client.get(format!("{url}/metrics")).send().await?.text().await?;
    let (name, labels) = name.split_once('{').unwrap_or((name, ""));
    let labels: Vec<&str> = labels.trim_end_matches('}').split(',').collect();
    let values = page
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with([' ', '{']) && labels.iter().all(|label| rest.contains(label)))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok());
    // A sum of nothing is minus zero.
    Ok(values.sum::<f64>() + 0.0)
}
