//! The leanest HTTP/1.1 client there is, so that what is measured is the server: one blocking connection that is kept, and
//! requests that are bytes before the clock starts.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// More than any answer here.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// A request, ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Request(Vec<u8>);

impl Request {
    pub(crate) fn get(path: &str) -> Self {
        Self(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes())
    }

    /// `headers` are whole lines, each ended by CR LF.
    pub(crate) fn post(path: &str, headers: &str, body: &[u8]) -> Self {
        let length = body.len();
        let mut bytes = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n")
            .into_bytes();
        bytes.extend_from_slice(body);
        Self(bytes)
    }
}

/// What came back, in the connection's own memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'c> {
    pub(crate) status: u16,
    pub(crate) body: &'c [u8],
}

/// A kept connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects; nothing may take longer than `patience`.
    ///
    /// # Errors
    /// When nobody listens.
    pub(crate) fn open(address: SocketAddr, patience: Duration) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience).with_context(|| format!("{address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends `request` and takes the whole answer.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is not one with a length.
    pub(crate) fn exchange(&mut self, request: &Request) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(&request.0)?;
        self.buffer.clear();
        let head = loop {
            self.receive()?;
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
        };
        let (status, length) = read_head(&self.buffer[..head])?;
        let (start, end) = (head + 4, head + 4 + length);
        while self.buffer.len() < end {
            self.receive()?;
        }
        ensure!(self.buffer.len() == end, "the answer is longer than it says");
        Ok(Answer { status, body: &self.buffer[start..end] })
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        ensure!(self.buffer.len() < MAX_ANSWER_BYTES, "the answer is larger than {MAX_ANSWER_BYTES} bytes");
        let filled = self.buffer.len();
        self.buffer.resize(filled + 8 * 1024, 0);
        let got = self.stream.read(&mut self.buffer[filled..])?;
        self.buffer.truncate(filled + got);
        ensure!(got > 0, "the connection was closed in the middle of an answer");
        Ok(())
    }
}

/// Status and length of the body.
fn read_head(head: &[u8]) -> anyhow::Result<(u16, usize)> {
    let text = std::str::from_utf8(head).context("the answer's head is not text")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok());
    status.zip(length).with_context(|| format!("not an HTTP/1.1 answer with a length: {text:?}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn heads() {
        assert_eq!(read_head(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 12").unwrap(), (200, 12));
        for bad in ["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", "HTTP/2 200", "", "HTTP/1.1 2"] {
            assert!(read_head(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_connection_is_kept_and_answers_may_come_in_pieces() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            for answer in [
                ["HTTP/1.1 200 OK\r\nContent-", "Length: 5\r\n\r\nhe", "llo"],
                ["HTTP/1.1 404 No\r\n", "content-length:0\r\n", "\r\n"],
            ] {
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                for piece in answer {
                    stream.write_all(piece.as_bytes()).unwrap();
                }
            }
        });
        let mut connection = Connection::open(address, Duration::from_secs(10)).unwrap();
        let answer = connection.exchange(&Request::get("/")).unwrap();
        assert_eq!((answer.status, answer.body), (200, &b"hello"[..]));
        let answer = connection.exchange(&Request::post("/", "X: y\r\n", b"body")).unwrap();
        assert_eq!((answer.status, answer.body), (404, &b""[..]));
        server.join().unwrap();
        assert!(connection.exchange(&Request::get("/")).is_err());
    }
}
