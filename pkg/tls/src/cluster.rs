//! TLS between the nodes of a cluster: both sides show a certificate, and know each other by the name in it.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError,
    OtherError, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::extensions::GeneralName;

use crate::{
    Certificate, ClientTls, Error, HTTP2, ServerTls, TlsSettings,
    certificate::{Side, check_use, parse},
    files::{Authorities, Identity},
    verify::{explained, signatures},
};

/// The scheme of the names of nodes.
const SCHEME: &str = "gorego://";
/// The longest name of a cluster or a node, in bytes.
const MAX_NAME: usize = 63;

/// The name of a node: `gorego://<cluster>/<node>`, as its certificate has it (subject alternative name, URI).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeIdentity {
    /// The name of the cluster.
    pub cluster: String,
    /// The name of the node.
    pub node: String,
}

impl NodeIdentity {
    /// Returns the identity in a certificate (DER); `None` if it has none, or several.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let parsed = parse(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let mut found = names.value.general_names.iter().filter_map(|name| {
            let GeneralName::URI(uri) = name else {
                return None;
            };
            uri.strip_prefix(SCHEME)
        });
        let (Some(name), None) = (found.next(), found.next()) else {
            return None;
        };
        let (cluster, node) = name.split_once('/')?;
        [cluster, node].into_iter().all(is_name).then(|| Self {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
        })
    }
}

impl fmt::Display for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.cluster, self.node)
    }
}

/// Returns whether this is a name of a cluster or a node: 1 to 63 characters of `[A-Za-z0-9._-]`.
pub fn is_name(name: &str) -> bool {
    let accepted = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(accepted)
}

/// The error of a certificate that does not belong to the expected node.
#[derive(Debug, thiserror::Error)]
#[error("the certificate is of {found}; expected: {expected}")]
struct WrongNode {
    expected: String,
    found: String,
}

impl WrongNode {
    /// Checks the name in a certificate of a node of `cluster`, which has to be `node` if that is given.
    fn check(cluster: &str, node: Option<&str>, certificate: &[u8]) -> Result<(), Self> {
        let found = NodeIdentity::of(certificate);
        let fits = |found: &NodeIdentity| {
            found.cluster == cluster && node.is_none_or(|node| found.node == node)
        };
        if found.as_ref().is_some_and(fits) {
            return Ok(());
        }
        Err(Self {
            expected: format!("{SCHEME}{cluster}/{}", node.unwrap_or("<any node>")),
            found: found.map_or_else(|| "no node".to_owned(), |found| found.to_string()),
        })
    }
}

/// Returns whether a handshake failed since the peer is a node of another cluster or has another name.
pub fn is_wrong_node(error: &TlsError) -> bool {
    let TlsError::InvalidCertificate(CertificateError::Other(OtherError(why))) = error else {
        return false;
    };
    why.is::<WrongNode>()
}

impl From<WrongNode> for TlsError {
    fn from(why: WrongNode) -> Self {
        CertificateError::Other(OtherError(Arc::new(why))).into()
    }
}

/// The files of the TLS settings between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFiles {
    /// The name of this node, which its certificate has to have.
    pub node: NodeIdentity,
    /// The certificate chain of this node, own certificate first (PEM).
    pub cert_file: PathBuf,
    /// The certificate's private key (PEM).
    pub key_file: PathBuf,
    /// The authorities of all nodes (PEM).
    pub ca_file: PathBuf,
    /// The authorities of clients, if there are some (PEM). `ca_file` must not contain any of them, or clients could
    /// act as nodes.
    pub clients_ca_file: Option<PathBuf>,
}

impl ClusterFiles {
    /// Returns the paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        let own = [&self.cert_file, &self.key_file, &self.ca_file];
        let files = own.into_iter().chain(&self.clients_ca_file);
        files.cloned().collect()
    }

    /// Reads and checks the files.
    pub fn load(&self) -> Result<ClusterTls, Error> {
        let provider = Arc::new(ring::default_provider());
        let own = Identity::read(&self.cert_file, &self.key_file, Side::Server, &provider)?;
        let authorities = self.authorities()?;
        self.check_own(&own, &authorities.roots, &provider)?;
        let error = |why: &dyn fmt::Display| Error::new("ca_file", &self.ca_file, why);
        let roots = Arc::new(authorities.roots);
        let nodes = || (Arc::clone(&roots), Arc::clone(&provider));
        let (trusted, signatures) = nodes();
        let chains = WebPkiServerVerifier::builder_with_provider(trusted, signatures).build();
        let servers = ServerVerifier {
            node: None,
            cluster: self.node.cluster.as_str().into(),
            roots: Arc::clone(&roots),
            provider: Arc::clone(&provider),
            chains: chains.map_err(|why| error(&why))?,
        };
        let (trusted, signatures) = nodes();
        let chains = WebPkiClientVerifier::builder_with_provider(trusted, signatures).build();
        let clients = ClientVerifier {
            cluster: self.node.cluster.clone(),
            chains: chains.map_err(|why| error(&why))?,
        };
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|why| error(&why))?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(Arc::clone(&own.resolver) as _);
        server.alpn_protocols = vec![HTTP2.to_vec()];
        // Each connection is verified: certificates may expire, and files change.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|why| error(&why))?
            // "Dangerous", since a custom verifier could skip checks. This one has another name to check.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(servers.clone()))
            .with_client_cert_resolver(own.resolver);
        client.alpn_protocols = vec![HTTP2.to_vec()];
        client.resumption = Resumption::disabled();
        let mut certificates = own.certificates;
        for own in &mut certificates {
            own.role = "node";
        }
        certificates.extend(authorities.certificates);
        let config = Arc::new(server);
        Ok(ClusterTls {
            server: TlsSettings {
                config,
                certificates,
            },
            client,
            servers,
        })
    }

    /// Checks that the certificate of this node has its name, both usages, and a known issuer.
    fn check_own(
        &self,
        own: &Identity,
        roots: &RootCertStore,
        provider: &CryptoProvider,
    ) -> Result<(), Error> {
        let error = |why: &dyn fmt::Display| Error::new("cert_file", &self.cert_file, why);
        let shown = own.resolver.resolve(&[], &[]);
        let Some((certificate, others)) = shown.as_ref().and_then(|it| it.cert.split_first())
        else {
            return Ok(());
        };
        let NodeIdentity { cluster, node } = &self.node;
        WrongNode::check(cluster, Some(node), certificate).map_err(|why| error(&why))?;
        let parsed = parse(certificate).map_err(|why| error(&why))?;
        for side in [Side::Server, Side::Client] {
            let checked = check_use(&parsed, UnixTime::now(), side);
            if let Err(CertificateError::InvalidPurposeContext { required, .. }) = checked {
                return Err(error(&format_args!(
                    "is not permitted for {required:?}; accepted: the extended key usages \
                     serverAuth and clientAuth"
                )));
            }
        }
        match trusted(certificate, others, roots, UnixTime::now(), provider) {
            Err(TlsError::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => Err(error(&"was not issued by an authority in ca_file")),
            // One that has expired was logged, and may be replaced while this node runs.
            _ => Ok(()),
        }
    }

    /// Reads the authorities of nodes, which must differ from those of clients.
    fn authorities(&self) -> Result<Authorities, Error> {
        let authorities = Authorities::read(&self.ca_file, "node_authority")?;
        if let Some(path) = &self.clients_ca_file {
            // Errors of that file are reported for its own section.
            let clients = Authorities::read(path, "client_authority");
            let listed = clients.map_or_else(|_| Vec::new(), |clients| clients.listed);
            if authorities.listed.iter().any(|node| listed.contains(node)) {
                let why = format!(
                    "has an authority of clients, which is also in {}: clients could act as nodes; \
                     accepted: an authority of its own",
                    path.display()
                );
                return Err(Error::new("ca_file", &self.ca_file, why));
            }
        }
        Ok(authorities)
    }
}

/// The TLS settings between the nodes of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterTls {
    server: ServerTls,
    client: ClientConfig,
    servers: ServerVerifier,
}

impl ClusterTls {
    /// Returns the settings for connections of other nodes, which need a certificate of this cluster.
    pub fn server(&self) -> ServerTls {
        self.server.clone()
    }

    /// Returns whether the authorities of all nodes are the same as in `other`.
    pub fn has_authorities_of(&self, other: &Self) -> bool {
        self.servers.roots.roots == other.servers.roots.roots
    }

    /// Returns the certificates in the files.
    pub fn certificates(&self) -> &[Certificate] {
        &self.server.certificates
    }

    /// Returns the settings for connections to `node`, or to any node of this cluster. Host names are not verified,
    /// the names in certificates are.
    pub fn client_for(&self, node: Option<&str>) -> ClientTls {
        let node = node.map(str::to_owned);
        let servers = ServerVerifier {
            node,
            ..self.servers.clone()
        };
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(servers));
        TlsSettings {
            config: Arc::new(config),
            certificates: self.server.certificates.clone(),
        }
    }
}

/// The verifier of nodes that are connected to.
#[derive(Clone, Debug)]
struct ServerVerifier {
    cluster: Arc<str>,
    /// The expected node; any if `None`.
    node: Option<String>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    /// Verifies signatures.
    chains: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verified = trusted(shown, intermediates, &self.roots, now, &self.provider);
        verified.map_err(|error| explained(shown, error))?;
        WrongNode::check(&self.cluster, self.node.as_deref(), shown)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// Checks that an authority issued a certificate, directly or not, and that it is valid for servers now.
fn trusted(
    shown: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
    provider: &CryptoProvider,
) -> Result<(), TlsError> {
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(shown)?,
        roots,
        intermediates,
        now,
        provider.signature_verification_algorithms.all,
    )
}

/// The verifier of nodes that connect.
#[derive(Debug)]
struct ClientVerifier {
    cluster: String,
    chains: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let verified = self.chains.verify_client_cert(shown, intermediates, now);
        let verified = verified.map_err(|error| explained(shown, error))?;
        WrongNode::check(&self.cluster, None, shown)?;
        Ok(verified)
    }

    signatures!();
}
