//! Reads the files of a `tls` section and checks them as far as possible without a peer.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tracing::warn;

use crate::{
    Certificate, Error,
    certificate::{ACCEPTED_KEYS, Flaw, OWN_RSA, PEER_RSA, Side, check_use, parse},
};

const CERTIFICATE: &str = "cert_file";
const KEY: &str = "key_file";
const AUTHORITIES: &str = "ca_file";

/// The trusted certificates, from a file or the system.
pub(crate) struct Authorities {
    pub(crate) roots: RootCertStore,
    /// The certificates of the file, each also trusted when a peer shows that very certificate.
    pub(crate) listed: Vec<CertificateDer<'static>>,
    pub(crate) certificates: Vec<Certificate>,
}

impl Authorities {
    /// Reads `ca_file`.
    pub(crate) fn read(path: &Path, role: &'static str) -> Result<Self, Error> {
        let error = |why: &dyn std::fmt::Display| Error::new(AUTHORITIES, path, why);
        let listed = read_certificates(AUTHORITIES, path)?;
        let (mut roots, mut certificates) = (RootCertStore::empty(), Vec::new());
        let mut flaw = None;
        for certificate in &listed {
            let parsed = parse(certificate).map_err(|why| error(&why))?;
            certificates.push(Certificate::new(role, path.to_owned(), &parsed));
            if let Some(found) = Flaw::of_key(&parsed, PEER_RSA) {
                warn!("{}", error(&format_args!("{}: {found}", parsed.subject())));
                flaw = Some(found);
                continue;
            }
            let added = roots.add(certificate.clone());
            added.map_err(|why| error(&why))?;
        }
        match flaw {
            Some(flaw) if roots.is_empty() => Err(error(&flaw)),
            _ => Ok(Self {
                roots,
                listed,
                certificates,
            }),
        }
    }

    /// Reads the certificates that the system trusts.
    pub(crate) fn of_system() -> Result<Self, Error> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = match found.errors.first() {
                Some(error) => format!("the system's authorities cannot be read: {error}"),
                None => "the system has no authorities; accepted: a file with some".to_owned(),
            };
            return Err(Error::new(AUTHORITIES, "", why));
        }
        Ok(Self {
            roots,
            listed: Vec::new(),
            certificates: Vec::new(),
        })
    }
}

/// A certificate chain to show, and its key.
pub(crate) struct Identity {
    pub(crate) resolver: Arc<SingleCertAndKey>,
    pub(crate) certificates: Vec<Certificate>,
}

impl Identity {
    /// Reads `cert_file` and `key_file`. Logs a warning if peers will refuse the certificate now.
    pub(crate) fn read(
        cert_file: &Path,
        key_file: &Path,
        side: Side,
        provider: &CryptoProvider,
    ) -> Result<Self, Error> {
        let error = |why: &dyn std::fmt::Display| Error::new(CERTIFICATE, cert_file, why);
        let chain = read_certificates(CERTIFICATE, cert_file)?;
        let role = match side {
            Side::Server => "server",
            Side::Client => "client",
        };
        let mut certificates = Vec::new();
        for certificate in &chain {
            let parsed = parse(certificate).map_err(|why| error(&why))?;
            // The first is the own certificate; the others only lead to its authority.
            if certificates.is_empty() {
                if let Some(flaw) = Flaw::of(&parsed, OWN_RSA) {
                    return Err(error(&flaw));
                }
                if let Err(why) = check_use(&parsed, UnixTime::now(), side) {
                    warn!("{}", error(&format_args!("peers will refuse it: {why}")));
                }
            }
            certificates.push(Certificate::new(role, cert_file.to_owned(), &parsed));
        }
        let certified = CertifiedKey::from_der(chain, read_key(key_file)?, provider)
            .map_err(|why| mismatch(key_file, cert_file, &why))?;
        Ok(Self {
            resolver: Arc::new(certified.into()),
            certificates,
        })
    }
}

/// Creates the error of a valid certificate and a valid key that do not match.
fn mismatch(key_file: &Path, cert_file: &Path, why: &rustls::Error) -> Error {
    let why = match why {
        rustls::Error::InconsistentKeys(_) => {
            format!("not the key of the certificate in {}", cert_file.display())
        }
        rustls::Error::General(_) => {
            format!("not a key that can be used; accepted: {ACCEPTED_KEYS}")
        }
        why => format!("with the certificate in {}: {why}", cert_file.display()),
    };
    Error::new(KEY, key_file, why)
}

fn read_certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let error = |why: &dyn std::fmt::Display| {
        Error::new(key, path, format_args!("no certificate in PEM form: {why}"))
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read(key, path)?)
        .collect::<Result<_, _>>()
        .map_err(|why| error(&why))?;
    if certificates.is_empty() {
        return Err(error(&"there is none"));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let pem = read(KEY, path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|why| {
        let encrypted = pem.windows(9).any(|word| word == b"ENCRYPTED");
        if encrypted {
            let decrypt = "the key is encrypted; to decrypt it: openssl pkey -in KEY -out PLAIN";
            return Error::new(KEY, path, decrypt);
        }
        let accepted = format_args!("no private key in PEM form: {why}; accepted: {ACCEPTED_KEYS}");
        Error::new(KEY, path, accepted)
    })
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|why| Error::new(key, path, why))
}
