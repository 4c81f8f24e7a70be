//! The first bytes of a connection, which show whether a client is configured for this server.

use std::{
    collections::HashMap,
    io,
    mem::{Discriminant, discriminant},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gorego_limits::LogLimit;
use rustls::{AlertDescription, CertificateError, ServerConfig, server::Acceptor};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, sink},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tracing::{debug, warn};

use crate::{Peers, Socket};

/// The first bytes of an HTTP/2 client (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The time in which a client has to show that it speaks TLS, if required, and HTTP/2.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first byte of a TLS connection: the content type of a handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// The time for which, and the bytes that, an HTTP/1 client may still send before it has read its answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 1 << 20;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A configuration fault: of the client, or of this server for that client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(
        "it speaks TLS, but this port does not: have it use grpc://, or set tls.enabled on this server"
    )]
    Tls,
    #[error("it speaks plain text, but this port speaks TLS: have it use grpcs://")]
    PlainText,
    #[error(
        "it speaks HTTP/1, but gRPC is spoken over HTTP/2: have it use {0}://HOST:PORT (Bazel: \
         --remote_cache={0}://HOST:PORT)"
    )]
    Http1(&'static str),
    #[error("it speaks neither HTTP/2 nor TLS: have it use a port of its own protocol")]
    Unknown,
    #[error(
        "it offers no HTTP/2 (h2) in the TLS handshake, over which gRPC is spoken: have it use grpcs://"
    )]
    NoHttp2,
    #[error(
        "it shows no client certificate, or only has one with a key that is not accepted ({}): give \
         it one (Bazel: --tls_client_certificate and --tls_client_key), or set tls.client_auth to \
         verify_if_given",
        gorego_tls::ACCEPTED_KEYS
    )]
    NoCertificate,
    #[error("its client certificate cannot be used: {0}")]
    Unusable(String),
    #[error(
        "{0}: have it show a client certificate that is valid now, and in tls.ca_file or signed by \
         an authority in tls.ca_file"
    )]
    Untrusted(String),
    #[error(
        "it does not trust this server's certificate ({0:?}): have it trust the authority of \
         tls.cert_file (Bazel: --tls_certificate), and use a host name that is in the certificate"
    )]
    Distrusts(AlertDescription),
    #[error(
        "it broke off the TLS handshake when it got this server's certificate: have it trust the \
         authority of tls.cert_file (Bazel: --tls_certificate), and use a host name that is in the \
         certificate"
    )]
    BrokeOff,
    #[error(
        "it sent no complete {handshake} within {:?}: it may speak another protocol, be a \
         balancer that opens connections in advance, or have a network that loses packets: have it use \
         {scheme}://",
        HANDSHAKE_TIMEOUT
    )]
    Unfinished {
        handshake: &'static str,
        scheme: &'static str,
    },
    #[error("the TLS handshake failed: {0}: have it use TLS 1.2 or 1.3")]
    Handshake(String),
}

impl Fault {
    /// Returns the text for a peer that should be a node of this node's cluster.
    fn of_node(&self) -> String {
        match self {
            Self::Tls => {
                "it speaks TLS, but this node has no certificate: set cluster.tls on all nodes".to_owned()
            }
            Self::PlainText | Self::NoCertificate => {
                "it shows no certificate of a node: set cluster.tls on it".to_owned()
            }
            Self::Unusable(why) | Self::Untrusted(why) => format!(
                "{why}: have it show a certificate that is valid now, signed by an authority in cluster.tls.ca_file"
            ),
            Self::Distrusts(alert) => format!(
                "it does not trust this node's certificate ({alert:?}): set its cluster.tls.ca_file to the authority \
                 of cluster.tls.cert_file"
            ),
            Self::BrokeOff => {
                "it broke off the TLS handshake when it got this node's certificate; its log says why".to_owned()
            }
            Self::Handshake(why) => format!("the TLS handshake failed: {why}"),
            Self::Http1(_) | Self::Unknown | Self::NoHttp2 | Self::Unfinished { .. } => {
                "it is no node of a cluster; clients use listen_addr".to_owned()
            }
        }
    }

    /// Returns the fault of a client that begins with these bytes, of which there may be few.
    fn of(first: &[u8], scheme: &'static str) -> Self {
        let method = first.split(|byte| *byte == b' ').next().unwrap_or_default();
        match first {
            [TLS_HANDSHAKE, ..] => Self::Tls,
            _ if !method.is_empty() && method.iter().all(u8::is_ascii_uppercase) => {
                Self::Http1(scheme)
            }
            _ => Self::Unknown,
        }
    }
}

impl From<&rustls::Error> for Fault {
    fn from(error: &rustls::Error) -> Self {
        use AlertDescription as Alert;
        use rustls::Error;
        let described = || gorego_tls::describe(error);
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::NoApplicationProtocol => Self::NoHttp2,
            Error::InvalidCertificate(CertificateError::Other(_)) => Self::Unusable(described()),
            Error::InvalidCertificate(_) => Self::Untrusted(described()),
            Error::AlertReceived(
                alert @ (Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                // An authority of the same name, but with another key, cannot verify the signature.
                | Alert::DecryptError
                | Alert::UnknownCA),
            ) => Self::Distrusts(*alert),
            _ => Self::Handshake(described()),
        }
    }
}

/// Warnings of clients with faults. Neither many clients nor one that retries for ever can fill the log.
#[derive(Debug)]
pub(crate) struct Faults {
    peers: Peers,
    logged: Mutex<HashMap<Discriminant<Fault>, LogLimit>>,
}

impl Faults {
    pub(crate) fn of(peers: Peers) -> Self {
        let logged = Mutex::default();
        Self { peers, logged }
    }

    /// Warns of the first client with each kind of fault in a minute; the others are for `debug`.
    pub(crate) fn report(&self, peer: SocketAddr, fault: &Fault) {
        let (kind, why) = match self.peers {
            Peers::Clients => ("client", fault.to_string()),
            Peers::Nodes => ("node", fault.of_node()),
        };
        if self.is_due(fault) {
            warn!("{kind} {peer} rejected: {why}");
        } else {
            debug!("{kind} {peer} rejected: {why}");
        }
    }

    fn is_due(&self, fault: &Fault) -> bool {
        let mut limits = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        limits.entry(discriminant(fault)).or_default().is_due()
    }
}

/// Waits until a client has shown that it speaks HTTP/2, and takes the preface off the stream. The target of the
/// client should have this scheme.
pub(crate) async fn http2<S>(mut stream: S, scheme: &'static str) -> Result<S, BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut preface = [0; PREFACE.len()];
    let mut len = 0;
    while let Some(rest @ [_, ..]) = preface.get_mut(len..) {
        match stream.read(rest).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            read => len += read,
        }
        let arrived = preface.get(..len).unwrap_or_default();
        if !PREFACE.starts_with(arrived) {
            let fault = Fault::of(arrived, scheme);
            if let Fault::Http1(_) = fault {
                refuse(stream, scheme).await;
            }
            return Err(fault.into());
        }
    }
    Ok(stream)
}

/// Waits until a client has shown that it speaks TLS, and HTTP/2 within.
pub(crate) async fn tls<S: Socket>(
    mut stream: S,
    config: Arc<ServerConfig>,
) -> Result<TlsStream<S>, BoxError> {
    const SCHEME: &str = "grpcs";
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    if first != [TLS_HANDSHAKE] {
        return Err(match http2(stream, SCHEME).await {
            Err(lost) if !lost.is::<Fault>() => lost,
            _ => Fault::PlainText.into(),
        });
    }
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let hello = hello.await.map_err(|error| match fault_of(&error) {
        Some(fault) => BoxError::from(fault),
        None => error.into(),
    })?;
    // From here on the client has this server's certificate, and may leave without an alert.
    let stream = hello.into_stream(config).await;
    let stream = stream.map_err(|error| fault_of(&error).unwrap_or(Fault::BrokeOff))?;
    http2(stream, SCHEME).await
}

/// Returns the fault that TLS found in what the client sent, if the connection itself did not fail.
fn fault_of(error: &io::Error) -> Option<Fault> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(Fault::from(inner))
}

/// Answers an HTTP/1 client, and closes the connection.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, scheme: &str) {
    let text = format!(
        "this is a gRPC server, which speaks HTTP/2 and not HTTP/1: use {scheme}://HOST:PORT, with \
         Bazel --remote_cache={scheme}://HOST:PORT\n"
    );
    let length = text.len();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{text}"
    );
    let answered = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closed with bytes unread, the connection would be reset, perhaps before the answer is read.
        copy(&mut stream.take(LINGER_BYTES), &mut sink()).await
    };
    // A client that is gone, or goes on sending, misses the answer.
    let _ = timeout(LINGER, answered).await;
}

#[cfg(test)]
mod tests {
    use tokio::{io::duplex, time::advance};

    use super::*;

    #[tokio::test]
    async fn another_protocol_is_detected_by_its_first_bytes() {
        for (sent, expected) in [
            (b"G".as_slice(), Fault::Http1("grpc")),
            (b"PUT /ac/", Fault::Http1("grpc")),
            (b"OPTIONS * HTTP/1.1\r\n", Fault::Http1("grpc")),
            (b"\x16\x03\x01\x02", Fault::Tls),
            (b"SSH-2.0-OpenSSH", Fault::Unknown),
            (b" ", Fault::Unknown),
            (b"\0", Fault::Unknown),
        ] {
            let fault = Fault::of(sent, "grpc");
            assert_eq!(discriminant(&fault), discriminant(&expected), "{sent:?}");
        }
        let (mut client, server) = duplex(64);
        client.write_all(b"SSH-2.0-OpenSSH").await.unwrap();
        let error = http2(server, "grpc").await.unwrap_err();
        assert!(
            matches!(error.downcast_ref(), Some(Fault::Unknown)),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_preface_is_accepted_and_a_truncated_one_is_an_error() {
        for (sent, accepted) in [(PREFACE.as_slice(), true), (b"PRI *", false)] {
            let (mut client, server) = duplex(64);
            client.write_all(sent).await.unwrap();
            drop(client);
            assert_eq!(http2(server, "grpc").await.is_ok(), accepted);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_fault_is_warned_of_once_a_minute() {
        let faults = Faults::of(Peers::Clients);
        for _ in 0..2 {
            assert!(faults.is_due(&Fault::Untrusted("one".to_owned())));
            assert!(!faults.is_due(&Fault::Untrusted("another".to_owned())));
            assert!(faults.is_due(&Fault::Tls));
            advance(Duration::from_mins(1)).await;
        }
    }
}
