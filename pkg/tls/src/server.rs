use std::{path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use crate::{
    Certificate, Error, HTTP2, TlsSettings,
    certificate::Side,
    files::{Authorities, Identity},
    verify::Verifier,
};

/// The clients that may connect over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// All clients; none is asked for a certificate.
    None,
    /// Clients without a certificate, and clients with a trusted one.
    VerifyIfGiven {
        /// The authorities and self-signed client certificates to trust (PEM).
        ca_file: PathBuf,
    },
    /// Clients with a trusted certificate.
    RequireAndVerify {
        /// The authorities and self-signed client certificates to trust (PEM).
        ca_file: PathBuf,
    },
}

impl ClientAuth {
    fn ca_file(&self) -> Option<&PathBuf> {
        match self {
            Self::None => None,
            Self::VerifyIfGiven { ca_file } | Self::RequireAndVerify { ca_file } => Some(ca_file),
        }
    }
}

/// The TLS settings of a server.
pub type ServerTls = TlsSettings<ServerConfig>;

/// The files of a server's TLS settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// The certificate chain to show, own certificate first (PEM).
    pub cert_file: PathBuf,
    /// The certificate's private key (PEM).
    pub key_file: PathBuf,
    /// The clients that may connect.
    pub client_auth: ClientAuth,
}

impl ServerFiles {
    /// Returns the paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        let own = [&self.cert_file, &self.key_file];
        let files = own.into_iter().chain(self.client_auth.ca_file());
        files.cloned().collect()
    }

    /// Reads and checks the files.
    pub fn load(&self) -> Result<ServerTls, Error> {
        let provider = Arc::new(ring::default_provider());
        let own = Identity::read(&self.cert_file, &self.key_file, Side::Server, &provider)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|why| Error::new("cert_file", &self.cert_file, why))?;
        let (verifier, authorities) = client_verifier(&self.client_auth, provider)?;
        let builder = builder.with_client_cert_verifier(verifier);
        let mut config = builder.with_cert_resolver(own.resolver);
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(TlsSettings {
            config: Arc::new(config),
            certificates: [own.certificates, authorities].concat(),
        })
    }
}

/// Returns the verifier of client certificates, and the authorities that it trusts.
fn client_verifier(
    client_auth: &ClientAuth,
    provider: Arc<CryptoProvider>,
) -> Result<(Arc<dyn ClientCertVerifier>, Vec<Certificate>), Error> {
    let Some(path) = client_auth.ca_file() else {
        return Ok((WebPkiClientVerifier::no_client_auth(), Vec::new()));
    };
    let authorities = Authorities::read(path, "client_authority")?;
    let roots = Arc::new(authorities.roots);
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    if matches!(client_auth, ClientAuth::VerifyIfGiven { .. }) {
        builder = builder.allow_unauthenticated();
    }
    let chains = builder
        .build()
        .map_err(|why| Error::new("ca_file", path, why))?;
    let verifier = Arc::new(Verifier {
        listed: authorities.listed,
        chains,
    });
    Ok((verifier, authorities.certificates))
}
