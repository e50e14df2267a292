//! The controller's API, asked directly: an operator's program for every look would be most of the work.

use std::collections::BTreeMap;

use anyhow::Context as _;
use muster_shared::api::{DeviceView, DriftReport};
use muster_shared::comparison::ComparisonReport;
use muster_tests::fleet::{Fleet, PATIENCE};
use serde::de::DeserializeOwned;

/// The label that tells devices apart.
pub(crate) const NAME: &str = "name";

/// The API with an administrator's token.
pub(crate) struct Api {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Api {
    pub(crate) fn of(fleet: &Fleet) -> anyhow::Result<Self> {
        let endpoints = &fleet.controller.endpoints;
        let ca = reqwest::Certificate::from_pem(&std::fs::read(&endpoints.ca_file)?)?;
        Ok(Self {
            client: reqwest::Client::builder().tls_certs_only([ca]).timeout(PATIENCE).build()?,
            url: format!("{}/api/v1", endpoints.api_url.trim_end_matches('/')),
            token: fleet.controller.token.clone(),
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let request = self.client.get(format!("{}/{path}", self.url)).bearer_auth(&self.token);
        let answer = request.send().await?.error_for_status()?;
        answer.json().await.with_context(|| format!("GET {path}"))
    }

    pub(crate) async fn device(&self, id: &str) -> anyhow::Result<DeviceView> {
        self.get(&format!("devices/{id}")).await
    }

    /// How many requests `version` had beside another on `device`, and how many of these were compared.
    pub(crate) async fn beside(&self, device: &str, version: &str) -> anyhow::Result<(u64, u64)> {
        let report: ComparisonReport = self.get(&format!("comparison?bundle=digits@{version}&group-by={NAME}")).await?;
        let groups = report.groups.iter().filter(|group| group.group == device);
        Ok(groups.fold((0, 0), |(requests, compared), group| {
            (requests + group.candidate_figures.requests, compared + group.compared)
        }))
    }

    /// How many requests to each of `versions` the windows of `device` tell of: every request has one prediction.
    pub(crate) async fn counted(&self, device: &str, versions: &[&str]) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut counted = BTreeMap::new();
        for version in versions {
            let report: DriftReport = self.get(&format!("drift?bundle=digits@{version}&group-by={NAME}")).await?;
            let group = report.groups.iter().find(|group| group.group == device);
            let column = group.and_then(|group| group.columns.iter().find(|column| column.prediction));
            counted.insert((*version).to_owned(), column.map_or(0, |column| column.n));
        }
        Ok(counted)
    }
}
