//! TLS and mutual TLS.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use gorego_server::{ClientAuth, Error, Options, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reapi::v2::{GetCapabilitiesRequest, capabilities_client::CapabilitiesClient};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

/// A certificate authority, with its files.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = Self {
            folder: TempDir::new().unwrap(),
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for `name` and its key, in PEM form.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The files of a server's certificate and key.
    fn server_files(&self) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.issue("localhost");
        (
            self.write("server.pem", &certificate),
            self.write("server.key", &key),
        )
    }

    async fn server(&self, client_auth: &ClientAuth) -> Server {
        let (certificate, key) = self.server_files();
        Server::with(Options {
            tls: Some(Tls::load(&certificate, &key, client_auth).unwrap()),
            ..Options::default()
        })
        .await
    }

    /// Connects, perhaps as somebody, and asks something.
    async fn ask(&self, server: &Server, identity: Option<(String, String)>) -> Result<(), String> {
        let mut tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(self.issuer.pem()));
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let channel = Channel::from_shared(format!("https://{}", server.address))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect()
            .await
            .map_err(|error| format!("{error:?}"))?;
        CapabilitiesClient::new(channel)
            .get_capabilities(GetCapabilitiesRequest::default())
            .await
            .map(|_| ())
            .map_err(|error| format!("{error:?}"))
    }
}

#[tokio::test]
async fn without_client_authentication_anybody_may_connect() {
    let authority = Authority::new();
    let server = authority.server(&ClientAuth::None).await;
    authority.ask(&server, None).await.unwrap();
    let stranger = Authority::new().issue("client");
    authority.ask(&server, Some(stranger)).await.unwrap();
}

#[tokio::test]
async fn with_verify_if_given_a_certificate_must_be_good_if_there_is_one() {
    let authority = Authority::new();
    let ca_file = authority.ca_file();
    let server = authority
        .server(&ClientAuth::VerifyIfGiven { ca_file })
        .await;
    authority.ask(&server, None).await.unwrap();
    let known = authority.issue("client");
    authority.ask(&server, Some(known)).await.unwrap();
    let stranger = Authority::new().issue("client");
    authority.ask(&server, Some(stranger)).await.unwrap_err();
}

#[tokio::test]
async fn with_require_and_verify_only_the_known_may_connect() {
    let authority = Authority::new();
    let ca_file = authority.ca_file();
    let server = authority
        .server(&ClientAuth::RequireAndVerify { ca_file })
        .await;
    let known = authority.issue("client");
    authority.ask(&server, Some(known)).await.unwrap();
    authority.ask(&server, None).await.unwrap_err();
    let stranger = Authority::new().issue("client");
    authority.ask(&server, Some(stranger)).await.unwrap_err();
}

#[tokio::test]
async fn blobs_go_through_tls_unchanged() {
    let authority = Authority::new();
    let server = authority.server(&ClientAuth::None).await;
    let content = noise(3_000_000, 1);
    let digest = sha256(&content);
    let tls = ClientTlsConfig::new()
        .domain_name("localhost")
        .ca_certificate(Certificate::from_pem(authority.issuer.pem()));
    let channel = Channel::from_shared(format!("https://{}", server.address))
        .unwrap()
        .tls_config(tls)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = reapi::bytestream::byte_stream_client::ByteStreamClient::new(channel);
    let name = upload_name("u", &digest);
    write(&mut client, messages(&name, &content, 100_000))
        .await
        .unwrap();
    let found = read(&mut client, &format!("blobs/{digest}"), 0, 0).await;
    assert_eq!(found.unwrap(), content);
}

#[tokio::test]
async fn a_client_without_tls_does_not_get_in() {
    let authority = Authority::new();
    let server = authority.server(&ClientAuth::None).await;
    let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let answer = match channel.connect().await {
        Ok(channel) => CapabilitiesClient::new(channel)
            .get_capabilities(GetCapabilitiesRequest::default())
            .await
            .map(|_| ())
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    answer.unwrap_err();
}

/// The error of these files, which must name `culprit`.
fn error(certificate: &Path, key: &Path, client_auth: &ClientAuth, culprit: &Path) -> Error {
    let error = Tls::load(certificate, key, client_auth).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(culprit.to_str().unwrap()), "{message}");
    error
}

#[test]
fn files_that_are_no_use_are_refused_by_name() {
    let authority = Authority::new();
    let (certificate, key) = authority.server_files();
    let absent = authority.folder.path().join("absent.pem");
    let nonsense = authority.write("nonsense.pem", "nonsense");
    let garbled = authority.write(
        "garbled.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let none = ClientAuth::None;

    let found = error(&absent, &key, &none, &absent);
    assert!(matches!(found, Error::Read { .. }), "{found}");
    let found = error(&certificate, &absent, &none, &absent);
    assert!(matches!(found, Error::Read { .. }), "{found}");
    let found = error(&nonsense, &key, &none, &nonsense);
    assert!(matches!(found, Error::Pem { .. }), "{found}");
    let found = error(&certificate, &nonsense, &none, &nonsense);
    assert!(matches!(found, Error::Pem { .. }), "{found}");
    // A certificate where the key should be.
    let found = error(&certificate, &certificate, &none, &certificate);
    assert!(matches!(found, Error::Pem { .. }), "{found}");
    let found = error(&garbled, &key, &none, &garbled);
    assert!(matches!(found, Error::Identity { .. }), "{found}");

    let with_ca = |ca_file: &PathBuf| ClientAuth::RequireAndVerify {
        ca_file: ca_file.clone(),
    };
    let found = error(&certificate, &key, &with_ca(&nonsense), &nonsense);
    assert!(matches!(found, Error::Pem { .. }), "{found}");
    let found = error(&certificate, &key, &with_ca(&garbled), &garbled);
    assert!(matches!(found, Error::Authorities { .. }), "{found}");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let authority = Authority::new();
    let (certificate, _) = authority.server_files();
    let (_, other) = authority.issue("localhost");
    let other = authority.write("other.key", &other);
    let found = error(&certificate, &other, &ClientAuth::None, &other);
    assert!(matches!(found, Error::Identity { .. }), "{found}");
}
