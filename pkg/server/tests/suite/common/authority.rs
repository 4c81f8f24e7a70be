//! Certificates for servers and clients.

use std::path::PathBuf;

use gorego_tls::{ClientAuth, ClientFiles, ServerFiles, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ClientConfig;
use tempfile::TempDir;

/// A certificate authority, with its files.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for `name` and its key, in PEM form.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// TLS of a server with a certificate of this authority.
    pub(crate) fn server(&self, client_auth: ClientAuth) -> ServerTls {
        let (certificate, key) = self.issue("localhost");
        let files = ServerFiles {
            cert_file: self.write("server.pem", &certificate),
            key_file: self.write("server.key", &key),
            client_auth,
        };
        files.load().unwrap()
    }

    /// TLS of a client that trusts this authority, with a client certificate if it has one.
    pub(crate) fn client(&self, identity: Option<&(String, String)>) -> ClientConfig {
        let files = ClientFiles {
            ca_file: Some(self.ca_file()),
            identity: identity.map(|(certificate, key)| {
                let certificate = self.write("client.pem", certificate);
                (certificate, self.write("client.key", key))
            }),
        };
        ClientConfig::clone(&files.load().unwrap().config)
    }
}
