//! Sockets and connections: where requests come in, how many connections at once, and how long an idle one is kept.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::accounts;
use crate::config::SocketMode;

/// Connections open at once; more wait to be accepted.
const MAX_CONNECTIONS: u32 = 256;
/// How long a connection may be silent between requests or within a request's head, in seconds.
const IDLE_S: u64 = 120;
/// Pause after the system refused to accept, as when it is out of file descriptors, in milliseconds.
const ACCEPT_PAUSE_MS: u64 = 100;

/// Why the endpoint cannot listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}; is it in use? Set [serve] listen to another, or to port 0 for a free one")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The Unix socket cannot be made.
    #[error("cannot listen on the Unix socket {path:?}; does its folder exist, and may the agent write to it?")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process listens on the Unix socket.
    #[error("another process answers on the Unix socket {path:?}: set [serve] unix-socket to another path")]
    SocketInUse {
        /// Its path.
        path: PathBuf,
    },
    /// The Unix socket cannot be given to its group.
    #[error(
        "the Unix socket {path:?} cannot be given to the group {group:?}: does it exist, and does the agent's user belong to it? See [serve] unix-socket-group"
    )]
    Group {
        /// Its path.
        path: PathBuf,
        /// The group.
        group: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something that is no socket is in the way.
    #[error("{path:?} exists and is no socket: remove it, or set [serve] unix-socket to another path")]
    NotASocket {
        /// Its path.
        path: PathBuf,
    },
}

/// Something that connections come in on.
pub(super) trait Listener: Send + Sync {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, or what the system says.
    fn next(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

/// A TCP port.
pub(super) struct TcpPort {
    listener: TcpListener,
    /// The address it is bound to.
    pub(super) local_addr: SocketAddr,
}

impl TcpPort {
    /// Listens at `address`.
    ///
    /// # Errors
    /// [`ServeError::Bind`].
    pub(super) async fn bind(address: SocketAddr) -> Result<Self, ServeError> {
        let refuse = |source| ServeError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(refuse)?;
        let local_addr = listener.local_addr().map_err(refuse)?;
        Ok(Self { listener, local_addr })
    }
}

impl Listener for TcpPort {
    type Io = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        // Answers are sent at once rather than collected into full packets.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A Unix socket that is removed with the listener.
pub(super) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixSocket {
    /// Listens at `path`, in place of a socket that nobody listens on any more; those may use it whom `group` and `mode` let.
    ///
    /// # Errors
    /// [`ServeError`] when something else is there, or the system refuses.
    pub(super) async fn bind(path: &Path, group: Option<&str>, mode: SocketMode) -> Result<Self, ServeError> {
        let refuse = |source| ServeError::Socket { path: path.to_owned(), source };
        match tokio::fs::symlink_metadata(path).await {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ServeError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if UnixStream::connect(path).await.is_ok() => {
                return Err(ServeError::SocketInUse { path: path.to_owned() });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refuse(error)),
        }
        // Made under another name first, so that it never exists with other permissions, nor for a moment not at all.
        let mut made = path.as_os_str().to_owned();
        made.push(".new");
        let made = PathBuf::from(made);
        match tokio::fs::remove_file(&made).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refuse(error)),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&made).map_err(refuse)?;
        if let Some(group) = group {
            give(&made, group).map_err(|source| ServeError::Group {
                path: path.to_owned(),
                group: group.to_owned(),
                source,
            })?;
        }
        let permissions = std::fs::Permissions::from_mode(mode.0);
        tokio::fs::set_permissions(&made, permissions).await.map_err(refuse)?;
        tokio::fs::rename(&made, path).await.map_err(refuse)?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

/// Gives the file `path` to the group `name`.
fn give(path: &Path, name: &str) -> io::Result<()> {
    let group =
        accounts::group(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such group"))?;
    std::os::unix::fs::chown(path, None, Some(group))
}

impl Listener for UnixSocket {
    type Io = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = ?self.path, %error, "the Unix socket was gone already");
        }
    }
}

/// All connections of the endpoint.
pub(super) struct Connections {
    router: Router,
    shutdown: watch::Receiver<bool>,
    free: Arc<Semaphore>,
}

impl Connections {
    /// Connections answered by `router` until `shutdown` becomes true.
    pub(super) fn new(router: Router, shutdown: watch::Receiver<bool>) -> Self {
        let free = usize::try_from(MAX_CONNECTIONS).unwrap_or(usize::MAX);
        Self { router, shutdown, free: Arc::new(Semaphore::new(free)) }
    }

    /// Accepts connections on `listener` until the shutdown.
    pub(super) async fn accept(&self, listener: &impl Listener) {
        let mut shutdown = self.shutdown.clone();
        let mut over = pin!(stopped(&mut shutdown));
        loop {
            let next = async {
                let place = Arc::clone(&self.free).acquire_owned().await;
                let place = place.map_err(io::Error::other)?;
                listener.next().await.map(|io| (io, place))
            };
            tokio::select! {
                () = &mut over => return,
                accepted = next => match accepted {
                    Ok((io, place)) => {
                        tokio::spawn(answer(io, self.router.clone(), self.shutdown.clone(), place));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                    }
                },
            }
        }
    }

    /// Waits until every connection is closed.
    pub(super) async fn ended(&self) {
        drop(self.free.acquire_many(MAX_CONNECTIONS).await);
    }
}

/// Waits until the agent is told to stop.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // The sender is gone only when the agent is going.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// Answers the requests of one connection. After the shutdown the one under way is the last.
async fn answer<I>(io: I, router: Router, mut shutdown: watch::Receiver<bool>, _place: OwnedSemaphorePermit)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(IDLE_S))
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(router))
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut shutdown) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let socket = UnixSocket::bind(&path, None, SocketMode::default()).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let (accepted, connected) = tokio::join!(socket.next(), UnixStream::connect(&path));
        assert!(accepted.is_ok() && connected.is_ok());
        drop(socket);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the system leaves the file behind");
        let live = UnixSocket::bind(&path, None, SocketMode::default()).await.unwrap();
        assert!(matches!(
            UnixSocket::bind(&path, None, SocketMode::default()).await,
            Err(ServeError::SocketInUse { .. })
        ));
        drop(live);
    }

    #[tokio::test]
    async fn what_is_in_the_way_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            UnixSocket::bind(&path, None, SocketMode::default()).await,
            Err(ServeError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let missing = folder.path().join("missing/agent.sock");
        assert!(matches!(
            UnixSocket::bind(&missing, None, SocketMode::default()).await,
            Err(ServeError::Socket { .. })
        ));
    }
}
