//! Verification of peers' certificates.
//!
//! A certificate is trusted if a listed authority signed it, or if it is listed itself. webpki refuses
//! the latter, since a self-signed certificate is that of an authority; other implementations accept it.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, InvalidMessage, OtherError,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::certificate::{Flaw, PEER_RSA, Side, check_use, parse};

/// Accepts listed certificates as they are, and verifies all others with `chains`.
#[derive(Debug)]
pub(crate) struct Verifier<V: ?Sized> {
    pub(crate) listed: Vec<CertificateDer<'static>>,
    pub(crate) chains: Arc<V>,
}

impl<V: ?Sized> Verifier<V> {
    /// Returns the certificate if it is listed, or an error if it is listed but not valid now.
    fn listed<'a>(
        &self,
        shown: &'a CertificateDer<'a>,
        now: UnixTime,
        side: Side,
    ) -> Result<Option<ParsedCertificate<'a>>, Error> {
        if !self.listed.contains(shown) {
            return Ok(None);
        }
        let parsed = ParsedCertificate::try_from(shown)?;
        check_use(&parse(shown)?, now, side)?;
        Ok(Some(parsed))
    }
}

/// Replaces webpki's error by the certificate's flaw, if it has one: the flaw names the remedy.
pub(crate) fn explained(shown: &CertificateDer<'_>, error: Error) -> Error {
    let parsed = parse(shown).ok();
    match parsed.and_then(|parsed| Flaw::of(&parsed, PEER_RSA)) {
        Some(flaw) => CertificateError::Other(OtherError(Arc::new(flaw))).into(),
        None => error,
    }
}

/// Describes why a handshake failed, with the remedy where the peer's certificate has a flaw.
pub fn describe(error: &Error) -> String {
    match error {
        // The message of rustls does not include the inner error.
        Error::InvalidCertificate(CertificateError::Other(flaw)) => flaw.to_string(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no trusted authority issued the peer's certificate: add its issuer, or the certificate \
             itself, to ca_file"
                .to_owned()
        }
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "BadSignature: the peer does not have the key of its certificate, or the issuer of that has \
             the name of a trusted authority, but another key"
                .to_owned()
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the peer does not speak TLS".to_owned()
        }
        error => error.to_string(),
    }
}

/// The methods that both traits of verifiers share. `chains` verifies the signatures.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            shown: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let verified = self
                .chains
                .verify_tls12_signature(message, shown, signature);
            verified.map_err(|error| explained(shown, error))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            shown: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let verified = self
                .chains
                .verify_tls13_signature(message, shown, signature);
            verified.map_err(|error| explained(shown, error))
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.chains.supported_verify_schemes()
        }
    };
}
pub(crate) use signatures;

impl ServerCertVerifier for Verifier<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = match self.listed(shown, now, Side::Server) {
            Ok(Some(parsed)) => {
                verify_server_name(&parsed, name).map(|()| ServerCertVerified::assertion())
            }
            Ok(None) => {
                let chains = &self.chains;
                chains.verify_server_cert(shown, intermediates, name, ocsp_response, now)
            }
            Err(error) => Err(error),
        };
        verified.map_err(|error| explained(shown, error))
    }

    signatures!();
}

impl ClientCertVerifier for Verifier<dyn ClientCertVerifier> {
    fn client_auth_mandatory(&self) -> bool {
        self.chains.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = match self.listed(shown, now, Side::Client) {
            Ok(Some(_)) => Ok(ClientCertVerified::assertion()),
            Ok(None) => self.chains.verify_client_cert(shown, intermediates, now),
            Err(error) => Err(error),
        };
        verified.map_err(|error| explained(shown, error))
    }

    signatures!();
}
