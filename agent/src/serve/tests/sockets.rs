use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

use super::*;
use crate::config::ServeConfig;
use crate::feedback::Feedback;
use crate::host::fixtures::{column_of, doubling, scripted};
use crate::serve::{ServeError, Serving, serve};

const REQUEST: &str = r#"{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP64","data":[4]}]}"#;

fn config(folder: &std::path::Path) -> ServeConfig {
    ServeConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        unix_socket: Some(folder.join("agent.sock")),
        max_concurrency: 2,
        max_queue: 2,
        max_body_bytes: MAX_BODY_BYTES,
        ..ServeConfig::default()
    }
}

fn host() -> ModelHost {
    let monitor = Monitor::new(WINDOW_MS);
    let feedback = Feedback::for_tests();
    let host = ModelHost::new(HostLimits { max_concurrency: 2, max_queue: 2 }, monitor, feedback);
    host.activate(doubling("1.0.0", 1), 1);
    host
}

async fn ask(stream: &mut (impl AsyncWrite + Unpin)) {
    let head =
        format!("POST /v2/models/scripted/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", REQUEST.len());
    stream.write_all(format!("{head}{REQUEST}").as_bytes()).await.unwrap();
}

/// Reads until `end` has come.
async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), end: &str) -> String {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains(end) {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece).await.unwrap();
        assert!(count > 0, "closed after {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&piece[..count]);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn both_sockets_answer_and_both_close_at_the_shutdown() {
    let folder = tempfile::tempdir().unwrap();
    let (stop, shutdown) = watch::channel(false);
    let config = config(folder.path());
    let Serving { local_addr, join } =
        serve(&config, host(), Metrics::new(), Condition::default(), shutdown).await.unwrap();
    let mut tcp = TcpStream::connect(local_addr).await.unwrap();
    let mut unix = UnixStream::connect(config.unix_socket.as_ref().unwrap()).await.unwrap();
    for _ in 0..3 {
        ask(&mut tcp).await;
        assert!(read_until(&mut tcp, "}]}").await.contains("\"data\":[8.0]"));
        ask(&mut unix).await;
        assert!(read_until(&mut unix, "}]}").await.contains("\"data\":[8.0]"));
    }
    stop.send(true).unwrap();
    join.await.unwrap();
    assert_eq!(tcp.read(&mut [0; 1]).await.unwrap(), 0, "an idle connection is closed");
    assert!(TcpStream::connect(local_addr).await.is_err());
    assert!(!config.unix_socket.unwrap().exists());
}

#[tokio::test]
async fn a_request_under_way_is_answered_and_counted_before_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (stop, shutdown) = watch::channel(false);
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let host = host();
    let slow = scripted(muster_shared::bundle::DataType::Fp64, "1.0.0", 1, move |_| {
        gate.lock().unwrap().recv().unwrap();
        Ok(vec![column_of("y", &[8.0])])
    });
    host.activate(slow, 2);
    let serving =
        serve(&config(folder.path()), host.clone(), Metrics::new(), Condition::default(), shutdown).await.unwrap();
    let mut tcp = TcpStream::connect(serving.local_addr).await.unwrap();
    ask(&mut tcp).await;
    while host.load().running == 0 {
        tokio::task::yield_now().await;
    }
    stop.send(true).unwrap();
    go.send(()).unwrap();
    assert!(read_until(&mut tcp, "}]}").await.contains("\"data\":[8.0]"));
    serving.join.await.unwrap();
    assert_eq!(host.counts().served, 1);
}

#[tokio::test]
async fn garbage_on_the_wire_hurts_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let (_stop, shutdown) = watch::channel(false);
    let serving = serve(&config(folder.path()), host(), Metrics::new(), Condition::default(), shutdown).await.unwrap();
    let mut silent = Vec::new();
    for garbage in [
        b"\0\xff\r\n\r\n".as_slice(),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2/models/scripted/infer HTTP/1.1\r\nContent-Length: 9\r\n\r\nx",
        b"",
    ] {
        let mut stream = TcpStream::connect(serving.local_addr).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        silent.push(stream);
    }
    let mut tcp = TcpStream::connect(serving.local_addr).await.unwrap();
    ask(&mut tcp).await;
    assert!(read_until(&mut tcp, "}]}").await.contains("\"data\":[8.0]"));
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (_stop, shutdown) = watch::channel(false);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(folder.path());
    config.listen = taken.local_addr().unwrap();
    let Err(error) = serve(&config, host(), Metrics::new(), Condition::default(), shutdown).await else {
        panic!("it must be refused")
    };
    assert!(matches!(error, ServeError::Bind { .. }));
    assert!(error.to_string().contains(&config.listen.to_string()), "{error}");
}
