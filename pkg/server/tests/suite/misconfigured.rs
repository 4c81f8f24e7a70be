//! Misconfigured clients: the log and the answers that they get.

use std::{
    io,
    sync::{Arc, Mutex},
};

use crate::common::{authority::Authority, *};
use gorego_tls::ClientAuth;
use rustls::{
    ClientConfig, ClientConnection,
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Notify, watch},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tracing::{Level, subscriber::DefaultGuard};

/// Made by `openssl x509 -req` without extensions.
const VERSION_1: &str = include_str!("../../../tls/tests/data/version1.pem");
const VERSION_1_KEY: &str = include_str!("../../../tls/tests/data/version1.key");

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const GET: &[u8] = b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// The warnings of this thread, on which the server of a test runs, too.
#[derive(Clone, Default)]
struct Log(Arc<(Mutex<Vec<u8>>, Notify)>);

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::WARN)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for a warning of the client at this address.
    async fn of(&self, client: &str) -> String {
        let told = async {
            loop {
                if let Some(line) = self.lines().into_iter().find(|line| line.contains(client)) {
                    return line;
                }
                self.0.1.notified().await;
            }
        };
        let told = timeout(LONG, told).await;
        told.unwrap_or_else(|_| panic!("nothing of {client} in {:#?}", self.lines()))
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.lock().unwrap().extend_from_slice(bytes);
        self.0.1.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn over_tls(authority: &Authority, client_auth: ClientAuth) -> Server {
    Server::limited(|options| {
        options.transport.tls = Some(watch::channel(authority.server(client_auth)).1);
    })
    .await
}

/// Sends bytes, and returns the answer once the server has disconnected.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, sent: &[u8]) -> String {
    let exchange = async {
        // It may have hung up already.
        let _ = stream.write_all(sent).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    let answer = timeout(LONG, exchange).await.expect("the server hangs up");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A misconfigured client.
enum Client {
    Sends(&'static [u8]),
    Shows(Arc<ClientConfig>),
    /// Closes the connection after the first bytes of the server's certificate.
    Leaves(Arc<ClientConfig>),
}

impl Client {
    /// Tries to connect, and returns its own address.
    async fn tries(&self, server: &Server) -> String {
        let stream = TcpStream::connect(&server.address).await.unwrap();
        let me = stream.local_addr().unwrap().to_string();
        match self {
            Self::Sends(bytes) => drop(exchange(stream, bytes).await),
            Self::Shows(config) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let connecting = connector.connect("localhost".try_into().unwrap(), stream);
                if let Ok(stream) = connecting.await {
                    exchange(stream, PREFACE).await;
                }
            }
            Self::Leaves(config) => leave(stream, config).await,
        }
        me
    }
}

async fn leave(mut stream: TcpStream, config: &Arc<ClientConfig>) {
    let name = "localhost".try_into().unwrap();
    let mut tls = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    stream.write_all(&hello).await.unwrap();
    stream.read_u8().await.unwrap();
}

/// Checks that two clients of each kind cause one warning, with an address and this remedy.
async fn assert_warned_once(server: Server, clients: Vec<(Client, &str)>) {
    let (log, _guard) = Log::start();
    for (client, remedy) in &clients {
        let me = client.tries(&server).await;
        let line = log.of(&format!("client {me} ")).await;
        assert!(line.contains(" WARN ") && line.contains(remedy), "{line}");
        client.tries(&server).await;
    }
    server.shutdown.cancel();
    server.ended().await.unwrap();
    let lines = log.lines();
    assert_eq!(lines.len(), clients.len(), "{lines:#?}");
}

#[tokio::test]
async fn clients_of_another_protocol_are_logged_with_the_remedy() {
    let clients = vec![
        (Client::Sends(b"\x16\x03\x01\x02\x00\x01"), "use grpc://"),
        (Client::Sends(GET), "--remote_cache=grpc://"),
        (Client::Sends(b"SSH-2.0-OpenSSH\r\n"), "a port of its own"),
    ];
    assert_warned_once(Server::start().await, clients).await;
}

#[tokio::test]
async fn clients_that_fail_the_tls_handshake_are_logged_with_the_remedy() {
    let authority = Authority::new();
    let ca_file = authority.ca_file();
    let server = over_tls(&authority, ClientAuth::RequireAndVerify { ca_file }).await;
    let stranger = Authority::new();
    let known = authority.client(Some(&authority.issue("client")));
    let mut of_http1 = known.clone();
    of_http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut of_version_1 = known.clone();
    let chain = CertificateDer::from_pem_slice(VERSION_1.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(VERSION_1_KEY.as_bytes()).unwrap();
    let shown = CertifiedKey::new(vec![chain], any_supported_type(&key).unwrap());
    of_version_1.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(shown));
    let shows = |config| Client::Shows(Arc::new(config));
    let clients = vec![
        (Client::Sends(PREFACE), "use grpcs://"),
        (shows(authority.client(None)), "--tls_client_certificate"),
        (
            shows(authority.client(Some(&stranger.issue("client")))),
            "tls.ca_file",
        ),
        (shows(of_version_1), "openssl x509 -req"),
        (shows(stranger.client(None)), "--tls_certificate"),
        (shows(of_http1), "use grpcs://"),
        (
            Client::Leaves(Arc::new(authority.client(None))),
            "broke off the TLS handshake",
        ),
        (
            Client::Sends(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"),
            "TLS 1.2 or 1.3",
        ),
    ];
    assert_warned_once(server, clients).await;
}

#[tokio::test(start_paused = true)]
async fn clients_that_never_finish_their_handshake_are_logged_with_the_remedy() {
    let authority = Authority::new();
    for sent in [b"".as_slice(), &PREFACE[..9]] {
        let clients = vec![(Client::Sends(sent), "use grpc://")];
        assert_warned_once(Server::start().await, clients).await;
    }
    for sent in [b"".as_slice(), b"\x16\x03\x01\x02\x00\x01"] {
        let clients = vec![(Client::Sends(sent), "use grpcs://")];
        let server = over_tls(&authority, ClientAuth::None).await;
        assert_warned_once(server, clients).await;
    }
}

#[tokio::test]
async fn clients_of_http_1_get_400_with_a_sentence() {
    let upload = [
        b"PUT /cas/0 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500000\r\n\r\n".as_slice(),
        &noise(500_000, 1),
    ]
    .concat();
    let authority = Authority::new();
    let plain = Server::start().await;
    let encrypted = over_tls(&authority, ClientAuth::None).await;
    let mut config = authority.client(None);
    config.alpn_protocols.clear();
    let connector = TlsConnector::from(Arc::new(config));
    for request in [GET, &upload] {
        let connect = async |server: &Server| TcpStream::connect(&server.address).await.unwrap();
        let stream = connect(&encrypted).await;
        let over_tls = connector.connect("localhost".try_into().unwrap(), stream);
        for (answer, scheme) in [
            (exchange(connect(&plain).await, request).await, " grpc://"),
            (
                exchange(connect(&encrypted).await, request).await,
                " grpcs://",
            ),
            (
                exchange(over_tls.await.unwrap(), request).await,
                " grpcs://",
            ),
        ] {
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
            assert!(answer.contains("content-type: text/plain"), "{answer}");
            assert!(answer.contains(scheme), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_probe_that_connects_and_leaves_is_not_logged() {
    let authority = Authority::new();
    for server in [
        Server::start().await,
        over_tls(&authority, ClientAuth::None).await,
    ] {
        let (log, _guard) = Log::start();
        drop(TcpStream::connect(&server.address).await.unwrap());
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.shutdown().await.unwrap();
        exchange(stream, b"").await;
        server.shutdown.cancel();
        server.ended().await.unwrap();
        assert_eq!(log.lines(), [""; 0]);
    }
}
