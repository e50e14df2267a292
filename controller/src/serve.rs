//! The life of the controller: in which order its parts start, what ends it, and in which order they stop.
//!
//! Nothing is announced (`endpoints.json`, systemd's READY) before it can be used.

use std::future::Future;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use rustix::process::{Resource, Rlimit};
use sd_notify::NotifyState;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};

use crate::admission::EnrolledDevices;
use crate::alerts::{self, Alerts, AlertsError};
use crate::auth::{self, AdminToken, AuthError};
use crate::blobs::Blobs;
use crate::broker::{self, BrokerError};
use crate::collections::{self, CollectionIndex};
use crate::config::Config;
use crate::content::{self, Catalogue};
use crate::director::{Director, DirectorError};
use crate::durable::{self, FileError};
use crate::endpoints::Endpoints;
use crate::events::{ACTOR_CONTROLLER, EventLog, NewEvent};
use crate::executor::{self, Schedule};
use crate::feedback::{self, FeedbackQueue};
use crate::fleet::FleetIndex;
use crate::metrics::Metrics;
use crate::pki::{Pki, PkiError, ServerNames};
use crate::readiness::Readiness;
use crate::state::App;
use crate::store::{Records, SledStore, StoreError, records};
use crate::trust::{self, RootError};
use crate::{api, clock, ingest, orphans};

/// Open files that are no device's connection: the store, the API, uploads.
const OTHER_FILES: u64 = 512;
/// Time that requests and tasks get to end in order.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the controller cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// A file or folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store could not write.
    #[error("the store failed, so the controller ends; everything acknowledged is kept, start it again")]
    StoreFailed(#[source] StoreError),
    /// The certificate authority cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The director's key cannot be used.
    #[error(transparent)]
    Director(#[from] DirectorError),
    /// The stored root documents are of no use.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The first access token cannot be made.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Alerts cannot be read, or a receiver cannot be used.
    #[error(transparent)]
    Alerts(#[from] AlertsError),
    /// The broker cannot start.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The API's address is taken or not ours.
    #[error("the API cannot listen on {address}: choose another [api] listen, or stop what uses it")]
    Bind {
        /// The address from the configuration.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The API stopped by itself.
    #[error("the API stopped")]
    Api(#[source] std::io::Error),
    /// The broker stopped by itself.
    #[error("the broker stopped; the log says why")]
    BrokerStopped,
    /// A part stopped by itself, and the others would go on as if all were well.
    #[error("{part} stopped by itself, so the controller ends; the log says why")]
    PartStopped {
        /// Which one.
        part: &'static str,
    },
}

/// Runs the controller until `told_to_stop` is done.
///
/// # Errors
/// [`ServeError`] when a part cannot start, or stops by itself.
pub(crate) async fn serve(config: Config, told_to_stop: impl Future<Output = ()>) -> Result<(), ServeError> {
    raise_file_limit(config.broker.max_connections);
    let data = config.data_dir.clone();
    durable::make_folder(&data)?;
    let store = SledStore::open(&data.join("store"))?;
    let store_failed = store.failure();
    end_by_force_after(store.failure());
    let records = Records::new(Arc::new(store));
    // The store is ours, hence the folder. A file from an earlier run must not be taken for this one's.
    durable::remove(&Endpoints::path(&data))?;
    let pki = Pki::open(&data.join("pki"), &ServerNames::of(&config), &config.pki.outside, clock::now_ms())?;
    let director = Director::open(&data)?;
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let admin_token = AdminToken::locate(config.api.admin_token_file.as_deref(), &data, set);
    auth::ensure_admin(&records, &admin_token, clock::now_ms()).await?;
    let idle_timeout = Duration::from_millis(config.api.request_timeout_ms);
    let blobs = Blobs::open(&data.join("blobs"), config.api.max_file_bytes, idle_timeout)?;
    let fleet = FleetIndex::load(&records).await?;
    let feedback_queue = FeedbackQueue::load(&records).await?;
    let collections = CollectionIndex::load(&records).await?;
    let events = EventLog::open(records.clone()).await?;
    records::check(&records).await?;
    let alerts = Alerts::load(&records, &config.alerts, clock::now_ms()).await?;
    if let Some(root) = trust::current(&records).await? {
        director.follow(&root)?;
    }

    events
        .append(NewEvent {
            kind: "controller.started".into(),
            actor: ACTOR_CONTROLLER.into(),
            detail: concat!("version ", env!("CARGO_PKG_VERSION")).into(),
            ..NewEvent::default()
        })
        .await?;

    let (listener, api_address) = bind(config.api.listen)?;
    let tls = pki.api_tls();
    let admit = Arc::new(EnrolledDevices::new(records.clone(), fleet.clone()));
    let started = broker::start_embedded(&config.broker, pki.broker_files(), admit).await?;
    let endpoints = Endpoints::new(&config, api_address, started.local_addr, &pki.ca_file());
    let app = Arc::new(App {
        metrics: Metrics::new(&config),
        alerts,
        config,
        endpoints,
        catalogue: Catalogue::new(records.clone()),
        records,
        blobs,
        schedule: Schedule::default(),
        collections,
        director,
        pki,
        broker: started.broker,
        readiness: Readiness::default(),
        fleet,
        feedback: feedback_queue,
        events,
        nudge: Arc::new(Notify::new()),
    });

    let (stop, stopping) = watch::channel(false);
    let chunks = content::spawn(&app, started.room, stopping.clone());
    let ingest = ingest::spawn(Arc::clone(&app), started.events, chunks, stopping.clone());
    let labels = feedback::spawn(Arc::clone(&app), stopping.clone());
    collections::clear_left_over(&app).await;
    let collecting = collections::spawn(Arc::clone(&app), stopping.clone());
    let executor = executor::spawn(Arc::clone(&app), stopping.clone());
    let windows = tokio::spawn(ingest::retention::keep_house(Arc::clone(&app), stopping.clone()));
    let files = tokio::spawn(orphans::keep_house(Arc::clone(&app), stopping.clone()));
    let alerts = alerts::spawn(&app, stopping).into_iter().map(|task| ("alerts", task));
    let mut parts = Parts::new();
    let tasks = [
        ("ingest", ingest),
        ("collections", collecting),
        ("executor", executor),
        ("feedback", labels),
        ("retention", windows),
        ("orphans", files),
    ];
    for (part, task) in tasks.into_iter().chain(alerts) {
        parts.spawn(async move { (part, task.await) });
    }
    let handle = Handle::new();
    let mut server = axum_server::from_tcp_rustls(listener, tls)
        .map_err(ServeError::Api)?
        .map(api::AcceptDevices)
        .handle(handle.clone());
    // Without a limit, clients that send half a header would be kept for ever.
    server.http_builder().http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(Some(idle_timeout));
    let mut api = tokio::spawn(server.serve(api::router(Arc::clone(&app)).into_make_service()));
    let mut broker_task = started.task;

    app.endpoints.write(&Endpoints::path(&data))?;
    tracing::info!(
        api = app.endpoints.api_url,
        broker = format!("{}:{}", app.endpoints.broker_host, app.endpoints.broker_port),
        data = %data.display(),
        "ready"
    );
    notify(NotifyState::Ready);

    let outcome = tokio::select! {
        // Parts end with the broker, which then is what there is to tell.
        biased;
        () = told_to_stop => Ok(()),
        ended = &mut api => Err(ServeError::Api(match ended {
            Ok(Ok(())) => std::io::Error::other("it ended without being told to"),
            Ok(Err(error)) => error,
            Err(error) => std::io::Error::other(error),
        })),
        _ = &mut broker_task => Err(ServeError::BrokerStopped),
        // Opening it anew in this process would keep what is in memory and may not be on the disk. Whoever supervises the process
        // starts it again; the next start says what is missing until there is room.
        Some(error) = store_failed => Err(ServeError::StoreFailed(error)),
        // Without it a panic would leave a controller that is ready and, say, carries no rollout out.
        Some(part) = next_end(&mut parts) => Err(ServeError::PartStopped { part }),
    };

    tracing::info!("stopping");
    notify(NotifyState::Stopping);
    app.readiness.broker_ended();
    durable::remove(&Endpoints::path(&data))?;
    handle.graceful_shutdown(Some(STOP_TIMEOUT));
    // Nobody is left when every part has ended already.
    let _ = stop.send(true);
    let parts = async {
        if !api.is_finished() {
            let _ = api.await;
        }
        while next_end(&mut parts).await.is_some() {}
    };
    if tokio::time::timeout(STOP_TIMEOUT + Duration::from_secs(2), parts).await.is_err() {
        tracing::warn!("not every part ended in time; what they were acknowledged is durable");
    }
    broker_task.abort();
    outcome
}

/// The parts of the controller at work, each with its name.
type Parts = JoinSet<(&'static str, Result<(), JoinError>)>;

/// Waits for the next part to end, and says which; none when none is left.
async fn next_end(parts: &mut Parts) -> Option<&'static str> {
    // What waits for a part does not panic.
    let (part, ended) = parts.join_next().await?.ok()?;
    if let Err(error) = ended {
        tracing::error!(part, %error, "a part ended badly");
    }
    Some(part)
}

/// Ends the process some time after the store has failed. Those who read from it at that moment may hang for ever, and take
/// every thread with them that could end it in order.
fn end_by_force_after(store_failed: impl Future<Output = Option<StoreError>> + Send + 'static) {
    let wait = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
        if let Some(error) = runtime.block_on(store_failed) {
            std::thread::sleep(STOP_TIMEOUT * 2);
            let _ = writeln!(std::io::stderr(), "error: {}: {error}", ServeError::StoreFailed(error.clone()));
            std::process::exit(1);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("end".into()).spawn(wait) {
        tracing::warn!(%error, "no thread watches over the store");
    }
}

fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Every connection is an open file, and many systems allow 1,024 of them unless asked for more.
fn raise_file_limit(max_connections: usize) {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files was not raised");
    }
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    if limit.is_some_and(|limit| limit < (max_connections as u64).saturating_add(OTHER_FILES)) {
        tracing::warn!(limit, max_connections, "the system allows fewer open files than broker.max-connections needs");
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::Value;
    use tokio::sync::oneshot;

    use super::*;
    use crate::store::records::RootRecord;
    use crate::store::{Change, Expect, Table};

    fn config(folder: &Path) -> Config {
        let mut config = Config { data_dir: folder.to_owned(), ..Config::default() };
        config.api.listen.set_port(0);
        config.broker.listen.set_port(0);
        config
    }

    async fn announced(path: PathBuf) -> Value {
        loop {
            match std::fs::read(&path) {
                Ok(text) => return serde_json::from_slice(&text).unwrap(),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_starts_announces_itself_and_stops() {
        // Another test may have done so.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (stop, told_to_stop) = oneshot::channel::<()>();
        let running = tokio::spawn(serve(config(folder.path()), async {
            let _ = told_to_stop.await;
        }));
        let path = folder.path().join("endpoints.json");
        let endpoints = announced(path.clone()).await;
        let port = endpoints["broker_port"].as_u64().unwrap();
        let api = endpoints["api_url"].as_str().unwrap().strip_prefix("https://").unwrap().to_owned();
        for address in [api.clone(), format!("127.0.0.1:{port}")] {
            tokio::net::TcpStream::connect(&address).await.unwrap();
        }
        assert!(Path::new(endpoints["ca_file"].as_str().unwrap()).exists());

        let mut second = config(other.path());
        second.api.listen = api.parse().unwrap();
        let error = serve(second, std::future::pending()).await.unwrap_err().to_string();
        assert!(error.contains(&api) && error.contains("[api] listen"), "{error}");
        let error = serve(config(folder.path()), std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("in use by another process"), "{error}");
        assert!(path.exists(), "a second controller must not touch the first one's files");

        stop.send(()).unwrap();
        running.await.unwrap().unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_part_that_panics_is_named_while_others_go_on() {
        let mut parts = Parts::new();
        let (stop, told_to_stop) = oneshot::channel::<()>();
        let at_work = tokio::spawn(async {
            let _ = told_to_stop.await;
        });
        let broken = tokio::spawn(async { panic!("as a fault would") });
        for (part, task) in [("at work", at_work), ("broken", broken)] {
            parts.spawn(async move { (part, task.await) });
        }
        assert_eq!(next_end(&mut parts).await, Some("broken"));
        stop.send(()).unwrap();
        assert_eq!(next_end(&mut parts).await, Some("at work"));
        assert_eq!(next_end(&mut parts).await, None);
    }

    /// Stores `value`, and says what the next start says.
    async fn start_with(table: Table, key: &str, value: &[u8]) -> String {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let store = SledStore::open(&folder.path().join("store")).unwrap();
        let put = Change::Put { table, key: key.into(), expect: Expect::Anything, value: value.into() };
        Records::new(Arc::new(store)).commit(vec![put]).await.unwrap();
        format!("{:#}", anyhow::Error::from(serve(config(folder.path()), std::future::ready(())).await.unwrap_err()))
    }

    #[tokio::test]
    async fn a_damaged_document_is_named_by_table_and_key() {
        for (table, key) in [
            (Table::Devices, "dev-1"),
            (Table::Reports, "dev-1"),
            (Table::Windows, "00000000000000000007/dev-1/telemetry/0/1"),
            (Table::Positions, "dev-1/state"),
            (Table::EnrolmentTokens, "abc"),
            (Table::AccessTokens, "abc"),
            (Table::Roots, "0000000001"),
            (Table::Bundles, "digits@1.0.0"),
            (Table::Rollouts, "r1"),
            (Table::Events, "00000000000000000001"),
            (Table::Meta, "manifest/abc"),
            (Table::Alerts, "abc"),
            (Table::AlertRules, "own"),
            (Table::Silences, "s1"),
            (Table::AlertDeliveries, "on-call/00000000000000000001"),
            (Table::Collections, "c1"),
            (Table::CollectionOrders, "dev-1"),
            (Table::AnalysisTemplates, "success-rate"),
        ] {
            let said = start_with(table, key, b"{\"half\":").await;
            assert!(said.contains(table.name()) && said.contains(key) && said.contains("damaged"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_chain_of_roots_that_does_not_hold_is_named() {
        let mut envelope = crate::testing::signed_root(1, crate::testing::key(9).public());
        envelope.signatures.clear();
        let root = serde_json::to_vec(&RootRecord { envelope }).unwrap();
        let said = start_with(Table::Roots, "0000000001", &root).await;
        assert!(said.contains("root documents do not follow from each other at version 1"), "{said}");
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let error = serve(config(&folder.path().join("file/below")), std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("file/below"), "{error}");
    }
}
