//! The controller's HTTP API, as the commands need it.
//!
//! Every answer is read with a bound and a time limit. A refusal (4xx) becomes exit code 3 with the problem's own
//! words; everything that is the controller's or the network's fault becomes exit code 4.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use indicatif::ProgressBar;
use muster_shared::api::{Page, Problem};
use muster_shared::ids::Digest;
use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode, Url, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk;
use crate::failure::Failure;
use crate::settings::Settings;

const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
const MAX_CA_BYTES: u64 = 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in an exchange.
const SILENCE: Duration = Duration::from_secs(60);
/// Items asked for at once.
const PAGE_SIZE: usize = 200;
/// Most items of one list: far more than a fleet has.
const MAX_LIST_ITEMS: usize = 1_000_000;
const UPLOAD_PIECE_BYTES: usize = 64 * 1024;

/// A client of one controller.
#[derive(Debug)]
pub(crate) struct ApiClient {
    http: Client,
    base: Url,
    token: String,
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        host == "localhost"
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// The certificates in the file `path`, at least one.
fn certificates(path: &Path) -> Result<Vec<Certificate>, Failure> {
    let pem = disk::read(path, MAX_CA_BYTES)?;
    let refuse = || Failure::input(format!("{} holds no certificate in PEM form", path.display()));
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| refuse().because(error))?;
    if certificates.is_empty() { Err(refuse()) } else { Ok(certificates) }
}

/// What an answer other than success means.
fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let said = serde_json::from_slice::<Problem>(body)
        .map(|problem| format!("{} ({}): {}", problem.title, status.as_u16(), problem.detail))
        .unwrap_or_else(|_| {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            format!("{status} {text}").trim_end().to_owned()
        });
    if status == StatusCode::UNAUTHORIZED {
        return Failure::refused(format!("the controller does not accept the access token: {said}"));
    }
    if status.is_client_error() {
        return Failure::refused(format!("the controller refused: {said}"));
    }
    Failure::unavailable(format!("the controller failed: {said}"))
}

/// What an answer of success says.
fn understand<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::unavailable(format!(
            "the controller's answer to {path} is not understood; is it of another version than this command?"
        ))
        .because(error)
    })
}

/// The pages of a list so far.
struct Pages<T> {
    items: Vec<T>,
    cursors: BTreeSet<String>,
}

impl<T> Pages<T> {
    /// Adds a page. Gives the cursor of the next one, none after the last.
    ///
    /// # Errors
    /// [`Failure`] when the list goes round in circles, or on and on.
    fn take(&mut self, page: Page<T>) -> Result<Option<String>, Failure> {
        let empty = page.items.is_empty();
        self.items.extend(page.items);
        let Some(next) = page.next_cursor else { return Ok(None) };
        if empty || !self.cursors.insert(next.clone()) {
            return Err(Failure::unavailable(format!("the controller's list does not go on after {next:?}")));
        }
        if self.items.len() > MAX_LIST_ITEMS {
            return Err(Failure::unavailable(format!("the controller's list is longer than {MAX_LIST_ITEMS} items")));
        }
        Ok(Some(next))
    }
}

impl ApiClient {
    /// A client for the controller in `settings`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Failure`] when the CA file cannot be used.
    pub(crate) fn new(settings: &Settings) -> Result<Self, Failure> {
        // A second installation finds the first, which is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // No time limit of reqwest's: that for reading runs while a request is being sent, too.
        let mut builder = Client::builder()
            .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .https_only(true);
        if is_loopback(&settings.url) {
            builder = builder.no_proxy();
        }
        if let Some(path) = &settings.ca_file {
            // These and no others: whoever can get a certificate from a public CA is not the controller.
            builder = builder.tls_certs_only(certificates(path)?);
        }
        let http = builder.build().map_err(|error| {
            let what = match &settings.ca_file {
                Some(path) => format!("{} holds a certificate that cannot be used", path.display()),
                None => "cannot set up TLS".to_owned(),
            };
            Failure::input(what).because(error)
        })?;
        Ok(Self { http, base: settings.url.clone(), token: settings.token.clone() })
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, Failure> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| Failure::input(format!("{} cannot be a controller's address", self.base)))?
            .pop_if_empty()
            .extend(["api", "v1"])
            .extend(path);
        Ok(self.http.request(method, url).bearer_auth(&self.token))
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let mut chain = String::new();
        let mut cause: Option<&dyn Error> = Some(&error);
        while let Some(current) = cause {
            chain.push_str(&current.to_string());
            cause = current.source();
        }
        // Two controllers' CAs may have the same name; then the signature is what tells them apart.
        let hint = if chain.contains("UnknownIssuer") || chain.contains("BadSignature") {
            ": its certificate is not from a CA trusted here; give the controller's CA certificate with --ca-file"
        } else if chain.contains("certificate expired") || chain.contains("certificate not valid yet") {
            ": its certificate is out of date, or the clock here is wrong"
        } else if chain.contains("certificate not valid for name") {
            ": its certificate is for another name than this address"
        } else if error.is_timeout() {
            ": it does not answer in time"
        } else {
            ""
        };
        Failure::unavailable(format!("the controller at {} cannot be reached{hint}", self.base)).because(error)
    }

    /// What comes of `step` of an exchange.
    async fn within_silence<T>(&self, step: impl Future<Output = Result<T, reqwest::Error>>) -> Result<T, Failure> {
        match tokio::time::timeout(SILENCE, step).await {
            Ok(result) => result.map_err(|error| self.unreachable(error)),
            Err(_) => Err(Failure::unavailable(format!(
                "the controller at {} cannot be reached: it does not answer in time",
                self.base
            ))),
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        self.accept(self.within_silence(request.send()).await?).await
    }

    /// `response`, where it is one of success.
    async fn accept(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        Err(refusal(status, &self.read(response).await.unwrap_or_default()))
    }

    async fn read(&self, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(piece) = self.within_silence(response.chunk()).await? {
            if body.len() + piece.len() > MAX_ANSWER_BYTES {
                return Err(Failure::unavailable(format!(
                    "the controller's answer is longer than {MAX_ANSWER_BYTES} bytes"
                )));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    async fn exchange<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let response = self.send(request).await?;
        let path = response.url().path().to_owned();
        understand(&path, &self.read(response).await?)
    }

    /// Reads one thing.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be had.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, String)]) -> Result<T, Failure> {
        self.exchange(self.request(Method::GET, path)?.query(query)).await
    }

    /// Reads one thing that is text and no JSON.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be had.
    pub(crate) async fn get_text(&self, path: &[&str]) -> Result<String, Failure> {
        let response = self.send(self.request(Method::GET, path)?).await?;
        let path = response.url().path().to_owned();
        let said = self.read(response).await?;
        String::from_utf8(said).map_err(|error| {
            Failure::unavailable(format!("the controller's answer to {path} is no text")).because(error)
        })
    }

    /// Reads something of any length, handing each piece to `take` as it comes.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be had to its end, or of `take`.
    pub(crate) async fn get_stream(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut response = self.send(self.request(Method::GET, path)?.query(query)).await?;
        while let Some(piece) = self.within_silence(response.chunk()).await? {
            take(&piece)?;
        }
        Ok(())
    }

    /// Reads a list to its end, page by page.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be had, or never ends.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Vec<T>, Failure> {
        let mut pages = Pages { items: Vec::new(), cursors: BTreeSet::new() };
        let mut cursor: Option<String> = None;
        loop {
            let mut query = query.to_vec();
            query.push(("limit", PAGE_SIZE.to_string()));
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            cursor = pages.take(self.get(path, &query).await?)?;
            if cursor.is_none() {
                return Ok(pages.items);
            }
        }
    }

    /// Sends something and reads what came of it.
    ///
    /// # Errors
    /// [`Failure`] when it was not taken.
    pub(crate) async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T, Failure> {
        self.exchange(self.request(Method::POST, path)?.json(body)).await
    }

    /// As [`Self::post`], for what must not happen twice: `key` lets the controller tell a repetition from another
    /// wish, so that a lost answer is asked for once more.
    ///
    /// # Errors
    /// [`Failure`] when it was not taken.
    pub(crate) async fn post_once<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
        key: &str,
    ) -> Result<T, Failure> {
        let request = || Ok(self.request(Method::POST, path)?.header("Idempotency-Key", key).json(body));
        match self.exchange(request()?).await {
            Err(failure) if failure.is_unavailable() => self.exchange(request()?).await,
            result => result,
        }
    }

    /// Changes something and reads how it stands.
    ///
    /// # Errors
    /// [`Failure`] when it was not changed.
    pub(crate) async fn patch<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
    ) -> Result<T, Failure> {
        self.exchange(self.request(Method::PATCH, path)?.json(body)).await
    }

    /// Removes something and reads how what is left stands.
    ///
    /// # Errors
    /// [`Failure`] when that was not done.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        self.exchange(self.request(Method::DELETE, path)?).await
    }

    /// Whether the controller has the file with this digest.
    ///
    /// # Errors
    /// [`Failure`] when it does not say.
    pub(crate) async fn has_file(&self, digest: &Digest) -> Result<bool, Failure> {
        let request = self.request(Method::HEAD, &["files", &digest.to_string()])?;
        let response = self.within_silence(request.send()).await?;
        match response.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            StatusCode::UNAUTHORIZED => Err(Failure::refused("the controller does not accept the access token")),
            status if status.is_client_error() => {
                Err(Failure::refused(format!("the controller does not say whether it has file {digest}: {status}")))
            }
            status => Err(Failure::unavailable(format!("the controller failed: {status}"))),
        }
    }

    /// Uploads `file`, which has `length` bytes, moving `progress` along.
    ///
    /// # Errors
    /// [`Failure`] when it was not taken.
    pub(crate) async fn put_file(
        &self,
        digest: &Digest,
        file: File,
        length: u64,
        progress: &ProgressBar,
    ) -> Result<(), Failure> {
        let body = Upload { file, left: length, progress: progress.clone() };
        let request = self
            .request(Method::PUT, &["files", &digest.to_string()])?
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, length)
            .body(reqwest::Body::wrap(body));
        let response = tokio::select! {
            response = request.send() => response.map_err(|error| self.unreachable(error))?,
            () = stalls(progress) => return Err(Failure::unavailable(format!(
                "the controller at {} takes nothing more of file {digest}, and does not answer: {} s without a byte",
                self.base,
                SILENCE.as_secs()
            ))),
        };
        self.accept(response).await.map(|_| ())
    }
}

/// Ends when nothing moves `progress` along any more.
async fn stalls(progress: &ProgressBar) {
    loop {
        let before = progress.position();
        tokio::time::sleep(SILENCE).await;
        if progress.position() == before {
            return;
        }
    }
}

/// A file on its way, piece by piece.
struct Upload {
    file: File,
    left: u64,
    progress: ProgressBar,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(UPLOAD_PIECE_BYTES);
        let mut piece = vec![0; most];
        // Blocks for a local disk at most, on a thread that has nothing else to do.
        let result = self.file.read(&mut piece).and_then(|read| match read {
            0 => Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file became shorter meanwhile")),
            read => Ok(read),
        });
        Poll::Ready(Some(result.map(|read| {
            piece.truncate(read);
            self.left -= read as u64;
            self.progress.inc(read as u64);
            Frame::data(piece.into())
        })))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests;
