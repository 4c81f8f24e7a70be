//! Tests of trust between peers, by handshakes in memory, and of files that are refused.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use gorego_tls::{ClientAuth, ClientFiles, Error, ServerFiles, describe};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    client::ResolvesClientCert,
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tempfile::TempDir;

/// A certificate made by `openssl x509 -req` without extensions, and that of its authority.
const VERSION_1: &str = include_str!("data/version1.pem");
const VERSION_1_KEY: &str = include_str!("data/version1.key");
const VERSION_1_AUTHORITY: &str = include_str!("data/version1-ca.pem");

/// A folder for the files of a test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Writes the files of a certificate and its key.
    fn identity(&self, name: &str, (certificate, key): &(String, String)) -> (PathBuf, PathBuf) {
        let certificate = self.write(&format!("{name}.pem"), certificate);
        (certificate, self.write(&format!("{name}.key"), key))
    }

    fn server(&self, identity: &(String, String), client_auth: ClientAuth) -> Arc<ServerConfig> {
        let (cert_file, key_file) = self.identity("server", identity);
        let files = ServerFiles {
            cert_file,
            key_file,
            client_auth,
        };
        files.load().unwrap().config
    }

    /// Returns a client that trusts `authorities`, and shows a certificate if it has one.
    fn client(&self, authorities: &str, identity: Option<&(String, String)>) -> Arc<ClientConfig> {
        let files = ClientFiles {
            ca_file: Some(self.write("servers.pem", authorities)),
            identity: identity.map(|identity| self.identity("client", identity)),
        };
        files.load().unwrap().config
    }

    fn required(&self, authorities: &str) -> ClientAuth {
        ClientAuth::RequireAndVerify {
            ca_file: self.write("clients.pem", authorities),
        }
    }
}

/// Creates a self-signed certificate of `localhost`, as `openssl req -x509` does, and its key.
fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn plain() -> (String, String) {
    self_signed(|_| {})
}

/// Creates an authority's certificate, and one that it issued with its key.
fn issued() -> (String, (String, String)) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (issuer.pem(), (certificate.pem(), key.serialize_pem()))
}

/// Makes a handshake. Returns the error of the side that refuses it.
fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    host: &'static str,
) -> Result<(), String> {
    let mut client = ClientConnection::new(client, host.try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut sent = Vec::new();
        client.write_tls(&mut sent).unwrap();
        server.read_tls(&mut sent.as_slice()).unwrap();
        let processed = server.process_new_packets();
        processed.map_err(|why| format!("server: {}", describe(&why)))?;
        let mut sent = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut sent).unwrap();
        }
        let mut sent = sent.as_slice();
        while !sent.is_empty() {
            client.read_tls(&mut sent).unwrap();
            let processed = client.process_new_packets();
            processed.map_err(|why| format!("client: {}", describe(&why)))?;
        }
    }
    Ok(())
}

#[test]
fn a_listed_self_signed_certificate_of_a_server_is_trusted() {
    let folder = Folder::new();
    let me = plain();
    let server = folder.server(&me, ClientAuth::None);
    let among_others = format!("{}{}", plain().0, me.0);
    let client = folder.client(&among_others, None);
    handshake(client, Arc::clone(&server), "localhost").unwrap();
    let stranger = folder.client(&plain().0, None);
    handshake(stranger, server, "localhost").unwrap_err();
}

#[test]
fn a_listed_self_signed_certificate_of_a_client_is_trusted() {
    let folder = Folder::new();
    let (server, me) = (plain(), plain());
    let client = folder.client(&server.0, Some(&me));
    let trusting = folder.server(&server, folder.required(&me.0));
    handshake(Arc::clone(&client), trusting, "localhost").unwrap();
    let other = folder.server(&server, folder.required(&plain().0));
    handshake(client, other, "localhost").unwrap_err();
}

#[test]
fn a_certificate_is_trusted_if_its_authority_is_listed() {
    let folder = Folder::new();
    let (authority, server) = issued();
    let (clients, me) = issued();
    let server = folder.server(&server, folder.required(&clients));
    let client = folder.client(&authority, Some(&me));
    handshake(client, Arc::clone(&server), "localhost").unwrap();
    let anonymous = folder.client(&authority, None);
    handshake(anonymous, server, "localhost").unwrap_err();
}

#[test]
fn a_listed_certificate_is_refused_outside_its_validity_period() {
    let folder = Folder::new();
    let past = |params: &mut CertificateParams| params.not_after = date_time_ymd(2001, 1, 1);
    let future = |params: &mut CertificateParams| params.not_before = date_time_ymd(2999, 1, 1);
    for (me, why) in [
        (self_signed(past), "Expired"),
        (self_signed(future), "NotValidYet"),
    ] {
        let server = folder.server(&me, ClientAuth::None);
        let error = handshake(folder.client(&me.0, None), server, "localhost").unwrap_err();
        assert!(error.contains("client: ") && error.contains(why), "{error}");
        let good = plain();
        let server = folder.server(&good, folder.required(&me.0));
        let error = handshake(folder.client(&good.0, Some(&me)), server, "localhost").unwrap_err();
        assert!(error.contains("server: ") && error.contains(why), "{error}");
    }
}

#[test]
fn a_listed_certificate_of_a_server_is_refused_for_another_host_name() {
    let folder = Folder::new();
    let me = plain();
    let server = folder.server(&me, ClientAuth::None);
    let error = handshake(folder.client(&me.0, None), server, "example.com").unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
}

#[test]
fn a_listed_server_certificate_is_refused_from_a_client() {
    let folder = Folder::new();
    let of_servers = self_signed(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let server = folder.server(&of_servers, folder.required(&of_servers.0));
    let client = folder.client(&of_servers.0, Some(&of_servers));
    let error = handshake(client, server, "localhost").unwrap_err();
    assert!(error.contains("server: "), "{error}");
}

#[test]
fn a_listed_certificate_is_refused_without_its_key() {
    let folder = Folder::new();
    let (server, me) = (plain(), plain());
    let thief = shows(&folder.client(&server.0, None), &me.0, &plain().1);
    let server = folder.server(&server, folder.required(&me.0));
    let error = handshake(thief, server, "localhost").unwrap_err();
    assert!(error.contains("BadSignature"), "{error}");
}

/// Returns the client with a certificate that rustls would not show by default.
fn shows(client: &Arc<ClientConfig>, certificate: &str, key: &str) -> Arc<ClientConfig> {
    let chain = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let key = CertifiedKey::new(vec![chain], any_supported_type(&key).unwrap());
    let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(key));
    let mut config = ClientConfig::clone(client);
    config.client_auth_cert_resolver = resolver;
    Arc::new(config)
}

#[test]
fn a_client_certificate_of_version_1_is_refused_with_the_command_for_a_better_one() {
    let folder = Folder::new();
    let server = plain();
    let client = folder.client(&server.0, None);
    let client = shows(&client, VERSION_1, VERSION_1_KEY);
    for authorities in [VERSION_1_AUTHORITY, VERSION_1] {
        let server = folder.server(&server, folder.required(authorities));
        let error = handshake(Arc::clone(&client), server, "localhost").unwrap_err();
        assert!(error.contains("X.509 version 1"), "{error}");
        assert!(error.contains("openssl x509 -req "), "{error}");
    }
}

/// Loads a server's files and returns the error, which must name this key and path.
fn refused(files: &ServerFiles, key: &str, path: &Path) -> Error {
    let error = files.load().unwrap_err();
    let named = format!("{key} = {}: ", path.display());
    assert!(error.to_string().starts_with(&named), "{error}");
    error
}

#[test]
fn errors_name_the_key_and_path_of_an_unusable_file() {
    let folder = Folder::new();
    let (cert_file, key_file) = folder.identity("good", &plain());
    let absent = folder.0.path().join("absent.pem");
    let nonsense = folder.write("nonsense.pem", "nonsense");
    let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let garbled = folder.write("garbled.pem", garbled);
    let other_key = folder.write("other.key", &plain().1);
    let good = ServerFiles {
        cert_file: cert_file.clone(),
        key_file,
        client_auth: ClientAuth::None,
    };
    for path in [&absent, &nonsense, &garbled] {
        let cert_file = path.clone();
        let files = ServerFiles {
            cert_file,
            ..good.clone()
        };
        refused(&files, "cert_file", path);
        let client_auth = ClientAuth::VerifyIfGiven {
            ca_file: path.clone(),
        };
        let files = ServerFiles {
            client_auth,
            ..good.clone()
        };
        refused(&files, "ca_file", path);
    }
    for path in [&absent, &nonsense, &cert_file, &other_key] {
        let key_file = path.clone();
        let files = ServerFiles {
            key_file,
            ..good.clone()
        };
        let error = refused(&files, "key_file", path);
        let other = error.why.contains(&format!(
            "not the key of the certificate in {}",
            cert_file.display()
        ));
        assert_eq!(other, path == &other_key, "{error}");
    }
}

#[test]
fn unsupported_kinds_of_certificates_and_keys_are_refused_at_load() {
    let folder = Folder::new();
    for (certificate, key, why) in [
        (VERSION_1, VERSION_1_KEY, "X.509 version 1"),
        (
            include_str!("data/p521.pem"),
            include_str!("data/p521.key"),
            "ECDSA with P-521; accepted: RSA of 2048",
        ),
        (
            include_str!("data/rsa1024.pem"),
            include_str!("data/rsa1024.key"),
            "RSA of 1024 bits; accepted: RSA of 2048",
        ),
    ] {
        let (cert_file, key_file) = folder.identity("own", &(certificate.into(), key.into()));
        let files = ServerFiles {
            cert_file: cert_file.clone(),
            key_file: key_file.clone(),
            client_auth: ClientAuth::None,
        };
        let error = refused(&files, "cert_file", &cert_file);
        assert!(error.why.contains(why), "{error}");
        let files = ClientFiles {
            ca_file: Some(folder.write("ca.pem", VERSION_1_AUTHORITY)),
            identity: Some((cert_file, key_file)),
        };
        assert_eq!(files.load().unwrap_err(), error);
    }
    let of_p521 = ClientFiles {
        ca_file: Some(folder.write("p521.pem", include_str!("data/p521.pem"))),
        identity: None,
    };
    let error = of_p521.load().unwrap_err();
    assert!(
        error.why.contains("P-521") && error.key == "ca_file",
        "{error}"
    );
}

#[test]
fn an_encrypted_key_is_refused_with_the_command_that_decrypts_it() {
    let folder = Folder::new();
    for key in [
        include_str!("data/encrypted.key"),
        include_str!("data/encrypted-sec1.key"),
    ] {
        let (cert_file, key_file) = folder.identity("own", &(plain().0, key.to_owned()));
        let files = ServerFiles {
            cert_file,
            key_file: key_file.clone(),
            client_auth: ClientAuth::None,
        };
        let error = refused(&files, "key_file", &key_file);
        assert!(error.why.contains("openssl pkey -in"), "{error}");
    }
}

#[test]
fn every_certificate_is_listed_with_its_expiry() {
    let folder = Folder::new();
    let (authority, client) = issued();
    let me = self_signed(|params| params.not_after = date_time_ymd(2999, 1, 1));
    let (cert_file, key_file) = folder.identity("server", &me);
    let ca_file = folder.write("ca.pem", &format!("{authority}{}", client.0));
    let files = ServerFiles {
        cert_file: cert_file.clone(),
        key_file,
        client_auth: ClientAuth::VerifyIfGiven {
            ca_file: ca_file.clone(),
        },
    };
    let found = files.load().unwrap().certificates;
    let listed: Vec<_> = found
        .iter()
        .map(|found| (found.role, &found.file))
        .collect();
    let authority = ("client_authority", &ca_file);
    assert_eq!(listed, [("server", &cert_file), authority, authority]);
    let end = date_time_ymd(2999, 1, 1).unix_timestamp();
    assert_eq!(found.first().unwrap().expiry, end);
}
