use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::ring,
};

use crate::{
    Error, HTTP2, TlsSettings,
    certificate::Side,
    files::{Authorities, Identity},
    verify::Verifier,
};

/// The TLS settings of a client.
pub type ClientTls = TlsSettings<ClientConfig>;

/// The files of a client's TLS settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// The authorities and self-signed server certificates to trust (PEM); by default those of the system.
    pub ca_file: Option<PathBuf>,
    /// The certificate chain to show, own certificate first, and its key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientFiles {
    /// Returns the paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca_file.iter().chain(identity).cloned().collect()
    }

    /// Reads and checks the files.
    pub fn load(&self) -> Result<ClientTls, Error> {
        let provider = Arc::new(ring::default_provider());
        let identity = self.identity.as_ref().map(|(cert_file, key_file)| {
            Identity::read(cert_file, key_file, Side::Client, &provider)
        });
        let identity = identity.transpose()?;
        let authorities = match &self.ca_file {
            Some(path) => Authorities::read(path, "server_authority")?,
            None => Authorities::of_system()?,
        };
        let ca_file = || self.ca_file.clone().unwrap_or_default();
        let error = |why: &dyn std::fmt::Display| Error::new("ca_file", ca_file(), why);
        let roots = Arc::new(authorities.roots);
        let chains: Arc<dyn ServerCertVerifier> =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|why| error(&why))?;
        let verifier = Arc::new(Verifier {
            listed: authorities.listed,
            chains,
        });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| error(&why))?
            // "Dangerous", since a custom verifier could skip checks. This one skips none.
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut certificates = authorities.certificates;
        let mut config = match identity {
            Some(identity) => {
                certificates.extend(identity.certificates);
                builder.with_client_cert_resolver(identity.resolver)
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(TlsSettings {
            config: Arc::new(config),
            certificates,
        })
    }
}
