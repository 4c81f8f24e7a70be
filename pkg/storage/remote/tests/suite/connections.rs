//! Addresses, headers and TLS of connections to a peer.

use std::{path::PathBuf, time::Duration};

use crate::peer::{LONG, Line, Peer, sha256, within};
use bytes::Bytes;
use gorego_storage::{Blob, BlobStore, BreakerState, Error, Put};
use gorego_storage_conformance as conformance;
use gorego_storage_remote::{
    BreakerOptions, CallHeaders, RemoteAddress, RemoteError, RemoteHeaders, RemoteOptions,
    RemoteStore,
};
use gorego_tls::{ClientFiles, ClientTls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::sync::watch;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

async fn ask(store: &RemoteStore) -> Result<(), Error> {
    within(store.find_missing(&[sha256(b"x")]))
        .await
        .map(|_| ())
}

#[tokio::test]
async fn headers_arrive_with_every_call_and_are_not_shown() {
    let peer = Peer::start().await;
    let headers = RemoteHeaders::parse(&[
        ("Authorization".to_owned(), "Bearer sesame".to_owned()),
        ("x-tenant".to_owned(), "build".to_owned()),
    ]);
    let options = RemoteOptions {
        headers: watch::channel(headers.unwrap()).1,
        ..peer.options()
    };
    assert!(!format!("{options:?}").contains("sesame"));
    let store = RemoteStore::new(&options).unwrap();
    assert!(!format!("{store:?}").contains("sesame"));
    let content = conformance::content(1, 200_000);
    let digest = sha256(&content);
    within(store.put(&digest, Blob::Bytes(content)))
        .await
        .unwrap();
    within(store.get(&digest, 0)).await.unwrap();
    ask(&store).await.unwrap();
    let metadata = peer.state.metadata.lock().unwrap();
    assert_eq!(metadata.len(), 4);
    for metadata in metadata.iter() {
        assert_eq!(metadata.get("authorization").unwrap(), "Bearer sesame");
        assert_eq!(metadata.get("x-tenant").unwrap(), "build");
    }
}

#[tokio::test]
async fn invalid_options_are_refused_without_secrets_in_the_error() {
    let with = |change: &dyn Fn(&mut RemoteOptions)| {
        let mut options = RemoteOptions::new(RemoteAddress::Tcp("localhost:1".to_owned()));
        change(&mut options);
        RemoteStore::new(&options).unwrap_err()
    };
    for (name, value) in [
        ("x-key", "sesame\n"),
        ("no name", "sesame"),
        ("te", "sesame"),
        ("Host", "sesame"),
        ("Content-Length", "sesame"),
        ("Connection", "sesame"),
        ("transfer-encoding", "sesame"),
        ("Upgrade", "sesame"),
        ("keep-alive", "sesame"),
        ("proxy-connection", "sesame"),
        ("x-bin", "sesame"),
    ] {
        let header = (name.to_owned(), value.to_owned());
        let error = RemoteHeaders::parse(&[header]).unwrap_err();
        assert!(matches!(error, RemoteError::Header { .. }), "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(name) && !text.contains("sesame"), "{text}");
    }
    for address in ["", "host", "host:port", "http://host:1", "host:1/path"] {
        let error = with(&|options| options.address = RemoteAddress::Tcp(address.to_owned()));
        assert!(
            matches!(error, RemoteError::Address { .. }),
            "{address:?}: {error}"
        );
    }
    let error = with(&|options| options.instance_name = "a//b".to_owned());
    assert!(matches!(error, RemoteError::Instance(_)), "{error}");
}

/// A header whose value may change.
fn token(value: &str) -> RemoteHeaders {
    RemoteHeaders::parse(&[("authorization".to_owned(), value.to_owned())]).unwrap()
}

#[tokio::test]
async fn a_new_value_of_a_header_is_sent_with_the_next_call() {
    let peer = Peer::start().await;
    let (change, headers) = watch::channel(token("old"));
    let store = RemoteStore::new(&RemoteOptions {
        headers,
        ..peer.options()
    });
    let store = store.unwrap();
    ask(&store).await.unwrap();
    change.send_replace(token("new"));
    ask(&store).await.unwrap();
    let metadata = peer.state.metadata.lock().unwrap();
    let sent = metadata
        .iter()
        .map(|sent| sent.get("authorization").unwrap());
    assert_eq!(sent.collect::<Vec<_>>().last().unwrap(), &"new");
}

#[tokio::test]
async fn headers_of_the_current_call_are_sent_with_its_requests() {
    tokio::task_local! {
        static CALL: &'static str;
    }
    let peer = Peer::start().await;
    let store = RemoteStore::new(&RemoteOptions {
        call_headers: CallHeaders::new(|headers| {
            if let Ok(call) = CALL.try_with(|call| *call) {
                headers.insert("x-call", call.parse().unwrap());
            }
        }),
        ..peer.options()
    });
    let store = store.unwrap();
    CALL.scope("first", ask(&store)).await.unwrap();
    ask(&store).await.unwrap();
    CALL.scope("second", ask(&store)).await.unwrap();
    let metadata = peer.state.metadata.lock().unwrap();
    let sent = metadata
        .iter()
        .map(|sent| sent.get("x-call").map(|call| call.to_str().unwrap()));
    let sent: Vec<_> = sent.collect();
    assert_eq!(
        sent[sent.len() - 3..],
        [Some("first"), None, Some("second")]
    );
}

#[test]
fn without_a_runtime_there_is_no_store() {
    let options = RemoteOptions::new(RemoteAddress::Tcp("localhost:1".to_owned()));
    assert_eq!(
        RemoteStore::new(&options).unwrap_err(),
        RemoteError::NoRuntime
    );
}

#[tokio::test]
async fn a_peer_may_start_later_and_restart() {
    let peer = Peer::start().await;
    let content = Bytes::from_static(b"content");
    let digest = peer.has(&content);
    let line = Line::at("127.0.0.1:0", &peer).await;
    let address = line.address.clone();
    drop(line);
    let store = RemoteStore::new(&RemoteOptions {
        retries: 0,
        breaker: BreakerOptions {
            failures: u32::MAX,
            ..BreakerOptions::default()
        },
        ..RemoteOptions::new(RemoteAddress::Tcp(address.clone()))
    });
    let store = store.unwrap();
    for _ in 0..2 {
        let down = async {
            loop {
                let error = ask(&store).await.unwrap_err();
                assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
                let text = error.to_string();
                assert!(text.contains(&address), "{text}");
                // Before, it may be that a connection was found to be gone.
                if text.contains("refused") {
                    break;
                }
            }
        };
        within(down).await;
        let line = Line::at(&address, &peer).await;
        let found = within(async { store.get(&digest, 0).await?.into_bytes().await }).await;
        assert_eq!(found.unwrap(), content);
        drop(line);
    }
}

#[tokio::test]
async fn an_unread_stream_waits_for_a_peer_to_start() {
    let peer = Peer::start().await;
    let line = Line::at("127.0.0.1:0", &peer).await;
    let address = line.address.clone();
    let store = RemoteStore::new(&RemoteOptions {
        retries: 20,
        connections: 2,
        breaker: BreakerOptions {
            failures: 1,
            cool_down: Duration::from_millis(1),
            max_cool_down: Duration::from_millis(1),
        },
        ..RemoteOptions::new(RemoteAddress::Tcp(address.clone()))
    });
    let store = store.unwrap();
    // The first connection is in use; the second one is yet to be made.
    let other = peer.has(&conformance::content(2, 200_000));
    let _in_use = within(store.get(&other, 0)).await.unwrap();
    drop(line);
    let content = conformance::content(1, 200_000);
    let digest = sha256(&content);
    let mut state = store.breaker();
    let blob = Blob::stream(futures::stream::iter([Ok(content.clone())]));
    let come_up = async {
        state
            .wait_for(|state| *state == BreakerState::Open)
            .await
            .unwrap();
        Line::at(&address, &peer).await
    };
    let (put, _line) = within(async { tokio::join!(store.put(&digest, blob), come_up) }).await;
    assert_eq!(put.unwrap(), Put::Stored);
    assert_eq!(peer.stored(&digest).unwrap(), content);
}

#[tokio::test]
async fn a_peer_is_reached_over_a_unix_socket() {
    let folder = tempfile::TempDir::new().unwrap();
    let path: PathBuf = folder.path().join("cache.sock");
    let store = RemoteStore::new(&RemoteOptions {
        retries: 0,
        ..RemoteOptions::new(RemoteAddress::Unix(path.clone()))
    });
    let store = store.unwrap();
    let error = ask(&store).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("unix:{}", path.display())),
        "{error}"
    );
    let peer = Peer::on_socket(&path);
    let content = conformance::content(1, 300_000);
    let digest = peer.has(&content);
    let found = within(async { store.get(&digest, 0).await?.into_bytes().await }).await;
    assert_eq!(found.unwrap(), content);
}

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `name` and its key, in PEM form.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// TLS of a client that trusts this one, with a certificate of another, or none.
    fn trusted_by(&self, issuer: Option<&Self>) -> ClientTls {
        let folder = tempfile::TempDir::new().unwrap();
        let write = |name: &str, pem: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let identity = issuer.map(|issuer| issuer.issue("client"));
        let files = ClientFiles {
            ca_file: Some(write("ca.pem", self.pem())),
            identity: identity
                .map(|(certificate, key)| (write("c.pem", certificate), write("c.key", key))),
        };
        files.load().unwrap()
    }
}

#[tokio::test]
async fn with_tls_both_sides_present_certificates() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(authority.pem()));
    let peer = Peer::with_tls(tls).await;
    let port = peer.address.rsplit(':').next().unwrap();
    let store = |tls: Option<ClientTls>| {
        RemoteStore::new(&RemoteOptions {
            tls: tls.map(|tls| watch::channel(tls).1),
            timeout: LONG,
            retries: 0,
            ..RemoteOptions::new(RemoteAddress::Tcp(format!("localhost:{port}")))
        })
        .unwrap()
    };
    let tls = |ca: &Authority, client: Option<&Authority>| Some(ca.trusted_by(client));
    let stranger = Authority::new();
    ask(&store(tls(&authority, Some(&authority))))
        .await
        .unwrap();
    for wrong in [
        tls(&authority, None),
        tls(&authority, Some(&stranger)),
        tls(&stranger, Some(&authority)),
        None,
    ] {
        let error = ask(&store(wrong)).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    }
}

#[tokio::test]
async fn the_error_says_that_a_peer_has_no_tls() {
    let peer = Peer::start().await;
    let port = peer.address.rsplit(':').next().unwrap();
    let store = RemoteStore::new(&RemoteOptions {
        tls: Some(watch::channel(Authority::new().trusted_by(None)).1),
        retries: 0,
        ..RemoteOptions::new(RemoteAddress::Tcp(format!("localhost:{port}")))
    });
    let error = ask(&store.unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn a_new_connection_uses_the_current_certificates() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.issue("localhost");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(authority.pem()));
    let peer = Peer::with_tls(tls).await;
    let port = peer.address.rsplit(':').next().unwrap();
    let (change, tls) = watch::channel(stranger.trusted_by(Some(&stranger)));
    let store = RemoteStore::new(&RemoteOptions {
        tls: Some(tls),
        timeout: LONG,
        retries: 0,
        ..RemoteOptions::new(RemoteAddress::Tcp(format!("localhost:{port}")))
    });
    let store = store.unwrap();
    ask(&store).await.unwrap_err();
    change.send_replace(authority.trusted_by(Some(&authority)));
    ask(&store).await.unwrap();
}
