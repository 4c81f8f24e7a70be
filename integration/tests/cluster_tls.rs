//! Tests of nodes that identify each other by certificates, and of refused nodes.
#![cfg(test)]

use std::net::SocketAddr;

use gorego_integration::{
    client::Client,
    cluster::{Certs, Crowd, Node},
    content::{blob, digest_of},
    executor::Gate,
    server, web,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType, date_time_ymd,
};
use reapi::v2::{
    FindMissingBlobsRequest, content_addressable_storage_client::ContentAddressableStorageClient,
};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";
/// The default name of a cluster.
const CLUSTER: &str = "gorego";

/// Starts a node with a certificate of `gorego cluster certs`.
async fn start(name: &str, certs: &Certs, join: &str) -> Node {
    let tls = certs.settings(name);
    let more = tls.iter().map(String::as_str).chain([ONE]);
    Node::start(name, join, &more.collect::<Vec<_>>()).await
}

/// Checks that two nodes know each other and no other, and share actions.
async fn work_together(a: &Node, b: &Node) {
    for node in [a, b] {
        node.wait_for_members(&[&a.name, &b.name]).await;
    }
    let mut gate = Gate::new();
    let crowd = Crowd::start(a, &gate, 2).await;
    gate.wait_for_starts(2);
    gate.open_for(2);
    crowd.finish(b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_certificates_run_actions_for_each_other() {
    let certs = Certs::make(CLUSTER, &["a", "b", "c"]);
    let a = start("a", &certs, "").await;
    let b = start("b", &certs, &a.mesh.to_string()).await;
    let c = start("c", &certs, &b.mesh.to_string()).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    let metrics = web::get(a.server.metrics(), "/metrics").await.content;
    for role in ["node", "node_authority"] {
        let series = format!("gorego_certificate_expiry_seconds{{role=\"{role}\"");
        assert!(metrics.contains(&series), "{metrics}");
    }
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 5).await;
    gate.wait_for_starts(3);
    assert_eq!(a.places().await, ["a", "b", "c"]);
    gate.open_for(5);
    crowd.finish(&c).await;
    assert_eq!(gate.starts(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_authority_is_refused() {
    let certs = Certs::make(CLUSTER, &["a", "b"]);
    let a = start("a", &certs, "").await;
    let b = start("b", &certs, &a.mesh.to_string()).await;
    let others = Certs::make(CLUSTER, &["c"]);
    let c = start("c", &others, &a.mesh.to_string()).await;
    a.server.wait_for_log("rejected");
    c.wait_for_members(&["c"]).await;
    work_together(&a, &b).await;
}

/// Sends bytes to a port, and reads until the connection is closed.
async fn send(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The other side may close the connection earlier.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_survives_foreign_bytes_at_its_port() {
    let certs = Certs::make(CLUSTER, &["a", "b"]);
    let a = start("a", &certs, "").await;
    let b = start("b", &certs, &a.mesh.to_string()).await;
    work_together(&a, &b).await;
    for seed in 0..4 {
        let answer = send(a.mesh, &blob(seed, 1 << 20)).await;
        assert!(answer.len() < 1024, "{answer:?}");
    }
    let answer = send(a.mesh, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{answer:?}");
    let plain = Client::connect(a.mesh).await;
    plain.find_missing(vec![digest_of(b"x")]).await.unwrap_err();
    let mut gate = Gate::new();
    let crowd = Crowd::start(&b, &gate, 2).await;
    gate.wait_for_starts(2);
    assert_eq!(b.places().await, ["a", "b"]);
    gate.open_for(2);
    crowd.finish(&a).await;
}

/// An authority whose certificates have any name and time.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap());
        Self {
            dir: TempDir::new().unwrap(),
            issuer: issuer.unwrap(),
        }
    }

    /// Issues a certificate with this name of a node for `localhost`, valid until the end of this year.
    fn issue(&self, uri: &str, year: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let name = uri.to_owned().try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(name));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Returns the settings of a node with this certificate.
    fn settings(&self, (certificate, key): &(String, String)) -> Vec<String> {
        let files = [
            ("cert_file", certificate.clone()),
            ("key_file", key.clone()),
            ("ca_file", self.issuer.pem()),
        ];
        let setting = |(name, content)| {
            let dir = self
                .dir
                .path()
                .join(&digest_of(certificate.as_bytes()).hash);
            std::fs::create_dir_all(&dir).unwrap();
            let path = dir.join(name);
            std::fs::write(&path, content).unwrap();
            format!("cluster.tls.{name}={}", path.display())
        };
        files.map(setting).to_vec()
    }

    /// Starts a node whose certificate has this name.
    async fn start(&self, (name, uri, year): (&str, &str, i32), join: &str, more: &[&str]) -> Node {
        let tls = self.settings(&self.issue(uri, year));
        let all = tls.iter().map(String::as_str).chain([ONE]);
        let all: Vec<_> = all.chain(more.iter().copied()).collect();
        Node::start(name, join, &all).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let a = authority
        .start(("a", "gorego://gorego/a", 2999), "", &[])
        .await;
    let expired = ("d", "gorego://gorego/d", 2020);
    let d = authority.start(expired, &a.mesh.to_string(), &[]).await;
    d.server.wait_for_log("peers will refuse it: Expired");
    a.server
        .wait_for_log("rejected: invalid peer certificate: certificate expired");
    for node in [&a, &d] {
        node.wait_for_members(&[&node.name]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_other_clusters_and_with_certificates_of_others_are_refused() {
    let authority = Authority::new();
    let a = authority
        .start(("a", "gorego://gorego/a", 2999), "", &[])
        .await;
    let join = a.mesh.to_string();
    let b = authority
        .start(("b", "gorego://gorego/b", 2999), &join, &[])
        .await;
    let other = ["cluster.name=other"];
    let c = authority
        .start(("c", "gorego://other/c", 2999), &join, &other)
        .await;
    a.server.wait_for_log("rejected");
    c.wait_for_members(&["c"]).await;
    let of_another = authority.settings(&authority.issue("gorego://gorego/b", 2999));
    let of_another: Vec<_> = of_another.iter().map(String::as_str).collect();
    let refused = refusal(&of_another, "d", &join);
    assert!(refused.contains("gorego://gorego/b"), "{refused}");
    work_together(&a, &b).await;
}

/// Runs a node that must refuse to start, and returns its output.
fn refusal(tls: &[&str], name: &str, join: &str) -> String {
    let dir = TempDir::new().unwrap();
    let own = [
        "cluster.enabled=true".to_owned(),
        "cluster.bind_port=0".to_owned(),
        format!("cluster.node_id={name}"),
        format!("cluster.join_peers={join}"),
    ];
    let own = own.iter().map(String::as_str);
    let all: Vec<_> = gorego_integration::executor::ON
        .into_iter()
        .chain(own)
        .chain(tls.iter().copied())
        .collect();
    server::refusal(dir.path(), &all).1
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_a_certificate_of_a_node_cannot_call_its_port() {
    let authority = Authority::new();
    let a = authority
        .start(("a", "gorego://gorego/a", 2999), "", &[])
        .await;
    let find_missing = async |identity: Option<(String, String)>| {
        let mut tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(authority.issuer.pem()));
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Channel::from_shared(format!("https://{}", a.mesh)).unwrap();
        let channel = endpoint.tls_config(tls).unwrap().connect().await;
        let channel = channel.map_err(|why| format!("{why:?}"))?;
        let mut cas = ContentAddressableStorageClient::new(channel);
        let found = cas
            .find_missing_blobs(FindMissingBlobsRequest::default())
            .await;
        found.map(drop).map_err(|why| format!("{why:?}"))
    };
    let node = authority.issue("gorego://gorego/z", 2999);
    find_missing(Some(node)).await.unwrap();
    find_missing(None).await.unwrap_err();
    for name in ["gorego://other/a", "spiffe://gorego/a"] {
        let stranger = authority.issue(name, 2999);
        find_missing(Some(stranger)).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_authority_is_no_longer_accepted_is_cut_off() {
    let [former, current] = [Authority::new(), Authority::new()];
    let settings = former.settings(&former.issue("gorego://gorego/a", 2999));
    let more: Vec<_> = settings.iter().map(String::as_str).chain([ONE]).collect();
    let a = Node::start("a", "", &more).await;
    let join = a.mesh.to_string();
    let b = former
        .start(("b", "gorego://gorego/b", 2999), &join, &[])
        .await;
    work_together(&a, &b).await;
    let replaced = current.settings(&current.issue("gorego://gorego/a", 2999));
    for (former, current) in settings.iter().zip(&replaced) {
        let path = |setting: &str| setting.split_once('=').unwrap().1.to_owned();
        std::fs::copy(path(current), path(former)).unwrap();
    }
    a.server.signal(Signal::HUP);
    a.wait_for_state("b", "down").await;
    b.wait_for_state("a", "down").await;
}
