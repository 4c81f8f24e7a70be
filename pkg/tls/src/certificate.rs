//! Properties of certificates that rustls does not expose.

use std::path::PathBuf;

use rustls::{CertificateError, ExtendedKeyPurpose, pki_types::UnixTime};
use x509_parser::{
    certificate::X509Certificate,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521,
        OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    },
    parse_x509_certificate,
    public_key::PublicKey,
    x509::{SubjectPublicKeyInfo, X509Version},
};

/// A certificate in one of the files that were read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Certificate {
    /// The use of the file: `server`, `client`, or the authorities of the other side.
    pub role: &'static str,
    /// The file.
    pub file: PathBuf,
    /// The subject's distinguished name.
    pub subject: String,
    /// The serial number, in hexadecimal digits.
    pub serial: String,
    /// The end of its validity, in seconds of Unix time.
    pub expiry: i64,
}

impl Certificate {
    pub(crate) fn new(role: &'static str, file: PathBuf, parsed: &X509Certificate<'_>) -> Self {
        Self {
            role,
            file,
            subject: parsed.subject().to_string(),
            serial: parsed.raw_serial_as_string(),
            expiry: parsed.validity().not_after.timestamp(),
        }
    }
}

/// Reads a certificate, or returns an error if it is none.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, rustls::Error> {
    match parse_x509_certificate(der) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(CertificateError::BadEncoding.into()),
    }
}

/// A property that makes a certificate unusable for gorego, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("the certificate {0}")]
pub(crate) struct Flaw(String);

/// The longest RSA key accepted in certificates of peers, in bits.
pub(crate) const PEER_RSA: usize = 8192;
/// The longest RSA key that gorego itself can sign with, in bits.
pub(crate) const OWN_RSA: usize = 4096;
const LEAST_RSA: usize = 2048;

impl Flaw {
    /// Returns the certificate's flaw, if it has one. The authorities' own certificates may be of
    /// version 1.
    pub(crate) fn of(parsed: &X509Certificate<'_>, longest_rsa: usize) -> Option<Self> {
        if parsed.version() == X509Version::V1 {
            // `openssl x509 -req` makes this version by default.
            let remedy = "is of X.509 version 1; to make one of version 3: \
                 printf 'basicConstraints=CA:FALSE\\n' | openssl x509 -req -in client.csr -CA ca.pem \
                 -CAkey ca.key -CAcreateserial -days 365 -extfile /dev/stdin -out client.pem";
            return Some(Self(remedy.to_owned()));
        }
        Self::of_key(parsed, longest_rsa)
    }

    pub(crate) fn of_key(parsed: &X509Certificate<'_>, longest_rsa: usize) -> Option<Self> {
        let kind = unsupported(parsed.public_key(), longest_rsa)?;
        Some(Self(format!(
            "has a key of the kind {kind}; accepted: {ACCEPTED_KEYS}"
        )))
    }
}

/// The kinds of keys that can be used.
pub const ACCEPTED_KEYS: &str = "RSA of 2048 to 4096 bits, ECDSA with P-256 or P-384, Ed25519";

/// Names the kind of a key that cannot be used.
fn unsupported(key: &SubjectPublicKeyInfo<'_>, longest_rsa: usize) -> Option<String> {
    let algorithm = &key.algorithm;
    if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else {
            return Some("RSA, but malformed".to_owned());
        };
        let bits = rsa.key_size();
        let usable = (LEAST_RSA..=longest_rsa).contains(&bits);
        return (!usable).then(|| format!("RSA of {bits} bits"));
    }
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let parameters = algorithm.parameters.as_ref();
        let curve = parameters.and_then(|curve| curve.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => None,
            Some(curve) if curve == OID_NIST_EC_P521 => Some("ECDSA with P-521".to_owned()),
            Some(curve) => Some(format!("ECDSA with the curve {curve}")),
            None => Some("ECDSA with a curve without a name".to_owned()),
        };
    }
    let other = || algorithm.algorithm.to_string();
    (algorithm.algorithm != OID_SIG_ED25519).then(other)
}

/// The side of a connection that shows a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// Checks that a certificate is valid now and permitted for this side of a connection.
pub(crate) fn check_use(
    parsed: &X509Certificate<'_>,
    now: UnixTime,
    side: Side,
) -> Result<(), CertificateError> {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if seconds < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet);
    }
    if seconds > validity.not_after.timestamp() {
        return Err(CertificateError::Expired);
    }
    let purposes = parsed.extended_key_usage();
    let Some(purposes) = purposes.map_err(|_| CertificateError::BadEncoding)? else {
        return Ok(());
    };
    let purposes = purposes.value;
    let (fits, required) = match side {
        Side::Server => (purposes.server_auth, ExtendedKeyPurpose::ServerAuth),
        Side::Client => (purposes.client_auth, ExtendedKeyPurpose::ClientAuth),
    };
    if fits || purposes.any {
        return Ok(());
    }
    Err(CertificateError::InvalidPurposeContext {
        required,
        presented: Vec::new(),
    })
}
