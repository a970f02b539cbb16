//! Channels and servers: time limits, keep-alive, message sizes, in one place.

use std::net::IpAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

/// Plans, statistics and status messages grow with the data; this is a bound against abuse, not a budget.
pub const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Scripts travel in pieces of this size.
pub const CHUNK_BYTES: usize = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that answers no ping for interval + timeout is gone, also when its machine vanished without a word.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between masters.
const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const PEER_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Why a peer cannot be reached, in words for the person who gave its address.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{address:?} is not HOST:PORT")]
    Address { address: String },
    #[error("cannot reach {address}: {reason}")]
    Unreachable { address: String, reason: String, hint: &'static str },
}

impl ConnectError {
    /// A way out; empty when there is none.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Address { .. } => "",
            Self::Unreachable { hint, .. } => hint,
        }
    }

    /// Whether trying again cannot help, because the address itself is wrong: no such host, or something else listens there.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Address { .. } => true,
            Self::Unreachable { reason, hint, .. } => reason == UNKNOWN_HOST || *hint == WRONG_PORT_HINT,
        }
    }
}

fn endpoint(address: &str) -> Result<Endpoint, ConnectError> {
    Endpoint::from_shared(format!("http://{address}"))
        .map(|endpoint| {
            endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
                .http2_adaptive_window(true)
        })
        .map_err(|_| ConnectError::Address { address: address.to_owned() })
}

/// Connects to `HOST:PORT` now, so that an unreachable peer is reported with its cause.
pub async fn connect(address: &str) -> Result<Channel, ConnectError> {
    connect_endpoint(endpoint(address)?, address).await
}

async fn connect_endpoint(endpoint: Endpoint, address: &str) -> Result<Channel, ConnectError> {
    endpoint.connect().await.map_err(|error| {
        let (reason, hint) = explain(&error);
        ConnectError::Unreachable { address: address.to_owned(), reason, hint }
    })
}

/// As [`connect`], for the traffic between masters: a member that is cut off must be noticed before the next election is over.
pub async fn connect_peer(address: &str) -> Result<Channel, ConnectError> {
    let endpoint = endpoint(address)?
        .connect_timeout(PEER_CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PEER_KEEP_ALIVE)
        .keep_alive_timeout(PEER_KEEP_ALIVE);
    connect_endpoint(endpoint, address).await
}

/// The deepest cause says the most: "connection refused", not "transport error".
fn explain(error: &tonic::transport::Error) -> (String, &'static str) {
    let mut source: &dyn std::error::Error = error;
    let mut kind = None;
    loop {
        if let Some(io) = source.downcast_ref::<std::io::Error>() {
            kind = Some(io.kind());
        }
        match source.source() {
            Some(next) => source = next,
            None => break,
        }
    }
    let text = source.to_string();
    if text.contains("lookup") || text.contains("Name or service not known") {
        return (UNKNOWN_HOST.into(), "check the host name in the URL");
    }
    match kind {
        Some(std::io::ErrorKind::ConnectionRefused) => (
            "connection refused".into(),
            "is the master running there? scripts/start-master.sh starts one and prints its URL",
        ),
        Some(std::io::ErrorKind::TimedOut) => {
            ("no answer in 5 s".into(), "check the address and the firewall")
        }
        _ if text.contains("deadline") || text.contains("timed out") => {
            ("no answer in 5 s".into(), "check the address and the firewall")
        }
        _ if text.contains("frame") || text.contains("h2") || text.contains("http2") => {
            (format!("the port does not speak Firesteel's protocol ({text})"), WRONG_PORT_HINT)
        }
        _ => (text, ""),
    }
}

const UNKNOWN_HOST: &str = "unknown host";

/// What to say when a port answers, but not with gRPC.
pub const WRONG_PORT_HINT: &str =
    "the master's gRPC port is 7077 by default; 8080 is its web page, which is not the one to submit to";

/// Whether an answer came from something that is no gRPC server: an HTTP/1 page, whose "HTTP" reads as an absurd frame
/// length, or HTTP/2 without gRPC, such as a master's own page.
pub fn is_not_grpc(status: &tonic::Status) -> bool {
    use tonic::Code;
    // What a service itself answers has another code.
    if !matches!(status.code(), Code::Unknown | Code::Internal | Code::Unavailable | Code::Unimplemented) {
        return false;
    }
    let mut text = status.message().to_ascii_lowercase();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text.push_str(&error.to_string().to_ascii_lowercase());
        source = error.source();
    }
    ["frame with invalid size", "invalid content-type", "invalid compression flag", "http status code"]
        .iter()
        .any(|sign| text.contains(sign))
}

/// Whether an HTTP/2 server listens at `HOST:PORT`; `None` when that cannot be told. For the cause of a connection that broke
/// before the first answer: what another service says to gRPC is often lost with the connection.
pub async fn speaks_http2(address: &str) -> Option<bool> {
    // The client's preface with empty settings; a server's first frame must be its own settings (RFC 9113, 3.4).
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const SETTINGS: u8 = 4;
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(PREFACE).await.ok()?;
        let mut head = [0u8; 9];
        let mut got = 0;
        while got < head.len() {
            match stream.read(&mut head[got..]).await {
                Ok(n) if n > 0 => got += n,
                _ => break,
            }
        }
        // Zeros after the type: the stream of settings is 0.
        (got > 0).then(|| got == head.len() && head[3] == SETTINGS && head[5..] == [0; 4])
    };
    tokio::time::timeout(Duration::from_secs(2), exchange).await.ok().flatten()
}

/// A server with this project's limits; add services and serve it on [`incoming`] connections.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .http2_adaptive_window(Some(true))
}

/// Connections for [`server`]. Its own TCP_NODELAY does not reach a listener that was bound before; without it, Nagle and
/// delayed acknowledgements hold small answers back for 40 ms.
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// `HOST:PORT` for a URL or a socket, IPv6 hosts in brackets.
pub fn authority(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

/// Whether only this machine can reach a server bound to `host`.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_port_is_called_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = connect(&address).await.unwrap_err();
        assert!(error.to_string().ends_with("connection refused"), "{error}");
        assert!(error.hint().contains("start-master"));
    }

    #[tokio::test]
    async fn an_unknown_host_is_called_unknown() {
        let error = connect("no-such-host.invalid:7077").await.unwrap_err();
        assert!(error.to_string().ends_with("unknown host"), "{error}");
    }

    #[tokio::test]
    async fn an_http2_server_is_told_from_others() {
        let (listener, address) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        });
        assert_eq!(speaks_http2(&address).await, Some(false));
        assert_eq!(speaks_http2(&address).await, None, "nobody listens any more");
        let (listener, address) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64").await;
        });
        assert_eq!(speaks_http2(&address).await, Some(true));
    }

    async fn listen() -> (tokio::net::TcpListener, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    #[test]
    fn hosts_are_told_apart() {
        assert_eq!(authority("::1", 1), "[::1]:1");
        assert_eq!(authority("h", 1), "h:1");
        assert!(is_loopback("127.0.0.3") && is_loopback("::1") && is_loopback("localhost"));
        assert!(!is_loopback("0.0.0.0") && !is_loopback("10.0.0.1"));
    }
}
