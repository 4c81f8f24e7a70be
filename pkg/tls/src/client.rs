use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::ring,
};

use crate::{
    Error, HTTP2, Loaded,
    certificate::Side,
    files::{Authorities, Identity, mismatch},
    verify::Verifier,
};

/// A client's TLS.
pub type ClientTls = Loaded<ClientConfig>;

/// The files that a client's TLS comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// The authorities' certificates, and servers' own ones (PEM); those of the system if there is none.
    pub ca_file: Option<PathBuf>,
    /// The certificate to show, followed by those between it and its authority, and its key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientFiles {
    /// The paths of all of them.
    pub fn paths(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca_file.iter().chain(identity).cloned().collect()
    }

    /// Reads them.
    pub fn load(&self) -> Result<ClientTls, Error> {
        let identity = match &self.identity {
            Some((cert_file, key_file)) => Some((
                Identity::read(cert_file, key_file, Side::Client)?,
                cert_file,
                key_file,
            )),
            None => None,
        };
        let authorities = match &self.ca_file {
            Some(path) => Authorities::read(path, "server_authority")?,
            None => Authorities::of_system()?,
        };
        let ca_file = || self.ca_file.clone().unwrap_or_default();
        let error = |why: &dyn std::fmt::Display| Error::new("ca_file", ca_file(), why);
        let provider = Arc::new(ring::default_provider());
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
            // Dangerous is what such a verifier may leave out; this one only adds.
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut certificates = authorities.certificates;
        let mut config = match identity {
            Some((identity, cert_file, key_file)) => {
                certificates.extend(identity.certificates);
                builder
                    .with_client_auth_cert(identity.chain, identity.key)
                    .map_err(|why| mismatch(key_file, cert_file, &why))?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(Loaded {
            config: Arc::new(config),
            certificates,
        })
    }
}
