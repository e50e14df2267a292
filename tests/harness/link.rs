//! A network link that can be cut: a TCP relay on loopback.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A relay to one address. While it is cut, connections break and new ones are closed at once.
#[derive(Debug)]
pub struct Link {
    /// Where to connect instead of the real address.
    pub address: SocketAddr,
    up: Arc<watch::Sender<bool>>,
    task: tokio::task::JoinHandle<()>,
}

impl Link {
    /// Opens a relay to `target`, `host:port`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn open(target: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for a link")?;
        let address = listener.local_addr()?;
        let up = Arc::new(watch::Sender::new(true));
        let accepting = Arc::clone(&up);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *accepting.borrow() {
                    tokio::spawn(relay(near, target.clone(), accepting.subscribe()));
                }
            }
        });
        Ok(Self { address, up, task })
    }

    /// Cuts the link.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    /// Mends the link.
    pub fn mend(&self) {
        self.up.send_replace(true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut near: TcpStream, target: String, mut up: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(target).await else {
        return;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = up.wait_for(|up| !up) => {}
    }
}
