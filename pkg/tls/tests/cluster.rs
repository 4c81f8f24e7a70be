//! Tests of trust between the nodes of a cluster, by handshakes in memory.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::{fs, path::Path, sync::Arc};

use gorego_tls::{ClusterFiles, ClusterTls, Error, NodeIdentity, describe};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose as Usage, IsCa,
    KeyPair, SanType, date_time_ymd,
};
use rustls::{ClientConnection, ServerConnection};
use tempfile::TempDir;

/// The files of the node `a` and of its authority, made by
/// ```text
/// openssl req -x509 -newkey rsa:2048 -nodes -days 36500 -subj /CN=nodes -keyout ca.key -out node-ca.pem
/// openssl req -newkey rsa:2048 -nodes -subj /CN=a -keyout node.key -out node.csr
/// printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=URI:gorego://build/a\n' |
///     openssl x509 -req -in node.csr -CA node-ca.pem -CAkey ca.key -CAcreateserial -days 36500 -extfile /dev/stdin \
///     -out node.pem
/// ```
const OF_OPENSSL: [(&str, &str); 3] = [
    ("node.pem", include_str!("data/node.pem")),
    ("node.key", include_str!("data/node.key")),
    ("node-ca.pem", include_str!("data/node-ca.pem")),
];

const BOTH: [Usage; 2] = [Usage::ServerAuth, Usage::ClientAuth];

/// An authority of nodes.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap());
        Self {
            folder: TempDir::new().unwrap(),
            issuer: issuer.unwrap(),
        }
    }

    /// Issues a certificate with these names, and returns the files of a node of the cluster `build`.
    fn files(
        &self,
        node: &str,
        names: &[&str],
        change: fn(&mut CertificateParams),
    ) -> ClusterFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let names = names
            .iter()
            .map(|name| SanType::URI((*name).try_into().unwrap()));
        params.subject_alt_names.extend(names);
        params.extended_key_usages = BOTH.to_vec();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |name: &str, text: String| {
            let path = self.folder.path().join(format!("{node}.{name}"));
            fs::write(&path, text).unwrap();
            path
        };
        ClusterFiles {
            node: NodeIdentity {
                cluster: "build".to_owned(),
                node: node.to_owned(),
            },
            cert_file: write("pem", certificate.pem()),
            key_file: write("key", key.serialize_pem()),
            ca_file: write("ca", self.issuer.pem()),
            clients_ca_file: None,
        }
    }

    fn node(&self, node: &str) -> ClusterTls {
        let name = format!("gorego://build/{node}");
        self.files(node, &[&name], |_| {}).load().unwrap()
    }
}

/// Makes a handshake to `expected`. Returns the error of the side that refuses it, or the node that connected.
fn connect(from: &ClusterTls, to: &ClusterTls, expected: Option<&str>) -> Result<String, String> {
    let config = from.client_for(expected).config;
    let mut client = ClientConnection::new(config, "10.0.0.1".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(to.server().config).unwrap();
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
    assert_eq!(client.alpn_protocol(), Some(gorego_tls::HTTP2));
    let shown = server.peer_certificates().and_then(|shown| shown.first());
    Ok(NodeIdentity::of(shown.unwrap()).unwrap().to_string())
}

#[test]
fn nodes_know_each_other_by_their_names_at_any_address() {
    let authority = Authority::new();
    let (a, b) = (authority.node("a"), authority.node("b"));
    for expected in [None, Some("b")] {
        assert_eq!(connect(&a, &b, expected).unwrap(), "gorego://build/a");
    }
    let refused = connect(&a, &b, Some("c")).unwrap_err();
    assert_eq!(
        refused,
        "client: the certificate is of gorego://build/b; expected: gorego://build/c"
    );
}

#[test]
fn certificates_of_openssl_can_be_used() {
    let folder = TempDir::new().unwrap();
    let [cert_file, key_file, ca_file] = OF_OPENSSL.map(|(name, content)| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    });
    let files = ClusterFiles {
        node: NodeIdentity {
            cluster: "build".to_owned(),
            node: "a".to_owned(),
        },
        cert_file,
        key_file,
        ca_file,
        clients_ca_file: None,
    };
    let a = files.load().unwrap();
    assert_eq!(connect(&a, &a, Some("a")).unwrap(), "gorego://build/a");
}

#[test]
fn nodes_of_other_clusters_are_refused_by_both_sides() {
    let authority = Authority::new();
    let mut files = authority.files("b", &["gorego://other/b"], |_| {});
    files.node.cluster = "other".to_owned();
    let (a, b) = (authority.node("a"), files.load().unwrap());
    let expected =
        "client: the certificate is of gorego://other/b; expected: gorego://build/<any node>";
    assert_eq!(connect(&a, &b, None).unwrap_err(), expected);
    // The authority is not that of the cluster.
    let stranger = Authority::new().node("a");
    let refused = connect(&stranger, &a, None).unwrap_err();
    assert!(refused.contains("but another key"), "{refused}");
}

#[test]
fn clients_with_a_certificate_of_another_authority_or_cluster_are_refused() {
    let authority = Authority::new();
    let a = authority.node("a");
    let trusting = |mut files: ClusterFiles| {
        let other = Authority::new();
        let server = other.node("b");
        // The client trusts both authorities, and the server only its own.
        files.ca_file = authority.folder.path().join("both");
        let both = format!("{}{}", authority.issuer.pem(), other.issuer.pem());
        fs::write(&files.ca_file, both).unwrap();
        (files.load().unwrap(), server)
    };
    let (client, server) = trusting(authority.files("c", &["gorego://build/c"], |_| {}));
    let refused = connect(&client, &server, None).unwrap_err();
    assert!(
        refused.starts_with("server: ") && refused.contains("but another key"),
        "{refused}"
    );
    let mut files = authority.files("d", &["gorego://other/d"], |_| {});
    files.node.cluster = "other".to_owned();
    let foreign = files.load().unwrap();
    // A client that does not care about the server's cluster.
    let mut client = a.client_for(None);
    let config = Arc::make_mut(&mut client.config);
    config.client_auth_cert_resolver =
        Arc::clone(&foreign.client_for(None).config.client_auth_cert_resolver);
    let mut client = ClientConnection::new(client.config, "a".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(a.server().config).unwrap();
    let refused = loop {
        let mut sent = Vec::new();
        client.write_tls(&mut sent).unwrap();
        server.read_tls(&mut sent.as_slice()).unwrap();
        if let Err(why) = server.process_new_packets() {
            break describe(&why);
        }
        assert!(server.is_handshaking());
        let mut sent = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut sent).unwrap();
        }
        client.read_tls(&mut sent.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    };
    assert!(refused.contains("is of gorego://other/d"), "{refused}");
}

#[test]
fn expired_nodes_are_refused() {
    let authority = Authority::new();
    let expired = authority.files("b", &["gorego://build/b"], |params| {
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    let (a, b) = (authority.node("a"), expired.load().unwrap());
    for (from, to) in [(&a, &b), (&b, &a)] {
        let refused = connect(from, to, None).unwrap_err();
        assert!(refused.contains("expired"), "{refused}");
    }
}

#[test]
fn an_own_certificate_of_an_unknown_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mut files = authority.files("a", &["gorego://build/a"], |_| {});
    files.ca_file = other.files("a", &[], |_| {}).ca_file;
    let why = refused(&files).why;
    assert!(
        why.contains("not issued by an authority in ca_file"),
        "{why}"
    );
}

/// Loads files that must be refused.
fn refused(files: &ClusterFiles) -> Error {
    files.load().expect_err("refused")
}

#[test]
fn own_certificates_need_the_name_of_the_node_and_both_usages() {
    let authority = Authority::new();
    for names in [
        &[][..],
        &["gorego://build/b"],
        &["gorego://other/a"],
        &["gorego://build/a", "gorego://build/b"],
        &["https://build/a"],
    ] {
        let why = refused(&authority.files("a", names, |_| {}));
        assert_eq!(why.key, "cert_file");
        assert!(why.why.contains("expected: gorego://build/a"), "{why}");
    }
    for change in [
        |params: &mut CertificateParams| params.extended_key_usages = BOTH[..1].to_vec(),
        |params: &mut CertificateParams| params.extended_key_usages = BOTH[1..].to_vec(),
    ] {
        let why = refused(&authority.files("a", &["gorego://build/a"], change));
        assert!(why.why.contains("serverAuth and clientAuth"), "{why}");
    }
}

#[test]
fn authorities_of_clients_are_refused_for_nodes() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let mut files = authority.files("a", &["gorego://build/a"], |_| {});
    let path = |name: &str| authority.folder.path().join(name);
    let mixed = format!("{}{}", clients.issuer.pem(), authority.issuer.pem());
    for (content, accepted) in [(clients.issuer.pem(), true), (mixed, false)] {
        fs::write(path("clients"), content).unwrap();
        files.clients_ca_file = Some(path("clients"));
        assert_eq!(files.load().is_ok(), accepted);
    }
    let why = refused(&files);
    assert_eq!(
        (why.key, why.path.as_path()),
        ("ca_file", Path::new(&files.ca_file))
    );
    assert!(why.why.contains("clients could act as nodes"), "{why}");
}
