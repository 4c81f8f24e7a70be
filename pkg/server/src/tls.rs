//! TLS: who this server is, and which clients it lets in.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_rustls::TlsAcceptor;

use crate::Error;

/// Which clients may connect over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Any; they are not asked for a certificate.
    None,
    /// Any without a certificate; one that shows a certificate only if an authority vouches for it.
    VerifyIfGiven {
        /// The authorities' certificates, a PEM file.
        ca_file: PathBuf,
    },
    /// Those with a certificate that an authority vouches for.
    RequireAndVerify {
        /// The authorities' certificates, a PEM file.
        ca_file: PathBuf,
    },
}

/// A server's identity, and its demands on clients; ready for use.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads the PEM files of a certificate chain, its key, and the authorities for clients.
    pub fn load(
        cert_file: &Path,
        key_file: &Path,
        client_auth: &ClientAuth,
    ) -> Result<Self, Error> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| identity_error(cert_file, key_file, source))?;
        let builder = match client_verifier(client_auth, provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(read_certificates(cert_file)?, read_key(key_file)?)
            .map_err(|source| identity_error(cert_file, key_file, source))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    pub(crate) const fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn client_verifier(
    client_auth: &ClientAuth,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, Error> {
    let (path, optional) = match client_auth {
        ClientAuth::None => return Ok(None),
        ClientAuth::VerifyIfGiven { ca_file } => (ca_file, true),
        ClientAuth::RequireAndVerify { ca_file } => (ca_file, false),
    };
    let refuse = |why: &dyn fmt::Display| Error::Authorities {
        path: path.clone(),
        why: why.to_string(),
    };
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|why| refuse(&why))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if optional {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder.build().map(Some).map_err(|why| refuse(&why))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    const EXPECTED: &str = "certificate";
    let pem = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|why| pem_error(path, EXPECTED, &why))?;
    if certificates.is_empty() {
        return Err(pem_error(path, EXPECTED, &"there is none"));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|why| pem_error(path, "private key", &why))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

fn pem_error(path: &Path, expected: &'static str, why: &dyn fmt::Display) -> Error {
    Error::Pem {
        path: path.to_owned(),
        expected,
        why: why.to_string(),
    }
}

fn identity_error(certificate: &Path, key: &Path, source: rustls::Error) -> Error {
    Error::Identity {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    }
}
