//! What is configured is what the server does.
#![cfg(test)]

use std::{fs, path::PathBuf, pin::pin, time::Duration};

use bytes::Bytes;
use gorego_integration::{
    client::Client,
    content::{blob, digest_of, uuid},
    peer::{FaultyPeer, Method},
    server::{self, Server},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reapi::v2::{
    ActionResult, GetCapabilitiesRequest, ServerCapabilities,
    capabilities_client::CapabilitiesClient,
};
use tempfile::TempDir;
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const MIB: usize = 1024 * 1024;
/// Far more than anything here takes, so that only a hang fails.
const PATIENCE: Duration = Duration::from_mins(1);

async fn capabilities(channel: Channel) -> Result<ServerCapabilities, Status> {
    let request = GetCapabilitiesRequest::default();
    let mut client = CapabilitiesClient::new(channel);
    Ok(client.get_capabilities(request).await?.into_inner())
}

#[track_caller]
fn assert_refused<T>(outcome: Result<T, Status>, code: Code) {
    let Err(status) = outcome else {
        panic!("it was accepted");
    };
    assert_eq!(status.code(), code, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_are_told_to_clients_and_kept() {
    let server = Server::start(&[
        "limits.max_batch_bytes=1MiB",
        "limits.max_blob_size=2MiB",
        "action_cache.updates=false",
    ]);
    let client = Client::connect(server.address()).await;
    let told = capabilities(client.channel()).await.unwrap();
    let told = told.cache_capabilities.expect("there is a cache");
    assert_eq!(told.max_batch_total_size_bytes, 1024 * 1024);
    assert_eq!(told.max_cas_blob_size_bytes, 2 * 1024 * 1024);
    let updates = told.action_cache_update_capabilities.unwrap();
    assert!(!updates.update_enabled);

    let mut rng = fastrand::Rng::with_seed(1);
    client.batch_upload(&[blob(1, MIB)]).await.unwrap();
    let outcome = client.batch_upload(&[blob(2, MIB + 1)]).await;
    assert_refused(outcome, Code::InvalidArgument);
    client
        .upload(&uuid(&mut rng), &blob(3, 2 * MIB))
        .await
        .unwrap();
    let outcome = client.upload(&uuid(&mut rng), &blob(4, 2 * MIB + 1)).await;
    assert_refused(outcome, Code::InvalidArgument);
    let action = digest_of(b"action");
    let outcome = client.put_action(&action, ActionResult::default()).await;
    assert_refused(outcome, Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn action_results_are_accepted_by_default() {
    let server = Server::start(&[]);
    let client = Client::connect(server.address()).await;
    let told = capabilities(client.channel()).await.unwrap();
    let told = told.cache_capabilities.expect("there is a cache");
    let updates = told.action_cache_update_capabilities.unwrap();
    assert!(updates.update_enabled);
    let result = ActionResult {
        exit_code: 7,
        ..ActionResult::default()
    };
    let action = digest_of(b"action");
    client.put_action(&action, result.clone()).await.unwrap();
    assert_eq!(client.get_action(&action).await.unwrap().exit_code, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_connections_are_served_than_are_allowed() {
    let server = Server::start(&["limits.max_connections=1"]);
    let first = Client::connect(server.address()).await;
    let mut health = HealthClient::new(first.channel());
    let watch = health.watch(HealthCheckRequest::default()).await;
    let second = Client::connect(server.address()).await;
    let mut waits = pin!(capabilities(second.channel()));
    let others = async {
        for _ in 0..200 {
            capabilities(first.channel()).await.unwrap();
        }
    };
    tokio::select! {
        _ = &mut waits => panic!("the second connection is served beside the first"),
        () = others => {}
    }
    drop((first, health, watch));
    waits.await.expect("there is room for the second now");
}

/// Certificates, and their files.
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

    /// The certificate of `name` and its key, in PEM form.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A server that lets in only those whom this authority vouches for.
    fn server(&self) -> Server {
        let (certificate, key) = self.issue("localhost");
        let files = [
            ("cert_file", self.file("server.pem", &certificate)),
            ("key_file", self.file("server.key", &key)),
            ("ca_file", self.file("ca.pem", &self.issuer.pem())),
        ];
        let mut settings = vec![
            "tls.enabled=true".to_owned(),
            "tls.client_auth=require_and_verify".to_owned(),
        ];
        settings.extend(files.map(|(key, path)| format!("tls.{key}={}", path.display())));
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        Server::start(&settings)
    }

    /// Connects, perhaps as somebody, and asks something.
    async fn ask(&self, server: &Server, identity: Option<(String, String)>) -> Result<(), String> {
        let mut tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(self.issuer.pem()));
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Channel::from_shared(format!("https://{}", server.address()))
            .unwrap()
            .tls_config(tls)
            .unwrap();
        let channel = endpoint.connect().await.map_err(|why| format!("{why:?}"))?;
        let answer = capabilities(channel).await;
        answer.map(|_| ()).map_err(|why| format!("{why:?}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_only_clients_with_a_certificate_are_served_where_it_is_required() {
    let authority = Authority::new();
    let server = authority.server();
    let known = authority.issue("client");
    authority.ask(&server, Some(known)).await.unwrap();
    authority.ask(&server, None).await.unwrap_err();
    let stranger = Authority::new().issue("client");
    authority.ask(&server, Some(stranger)).await.unwrap_err();
}

/// A server in front of what is at `target`, as whom `identity` says, trusting `authority`.
fn in_front_of(target: &str, authority: &Authority, identity: &(String, String)) -> Server {
    let files = [
        (
            "ca_file",
            authority.file("trusted.pem", &authority.issuer.pem()),
        ),
        ("cert_file", authority.file("client.pem", &identity.0)),
        ("key_file", authority.file("client.key", &identity.1)),
    ];
    let settings = files.map(|(key, path)| format!("backing_cache.tls.{key}={}", path.display()));
    let mut settings: Vec<_> = settings.iter().map(String::as_str).collect();
    settings.push("backing_cache.put_retry_count=0");
    if !target.starts_with("grpcs:") {
        settings.push("backing_cache.tls.enabled=true");
    }
    Server::in_front_of(target, &settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backing_cache_is_reached_over_tls_by_those_it_knows() {
    let authority = Authority::new();
    let backing = authority.server();
    let content = [blob(1, 1000)];
    let bare = format!("localhost:{}", backing.address().port());
    let target = format!("grpcs://{bare}");

    for target in [&target, &bare] {
        let server = in_front_of(target, &authority, &authority.issue("client"));
        let client = Client::connect(server.address()).await;
        client.batch_upload(&content).await.unwrap();
        let missing = client.find_missing(vec![digest_of(&content[0])]).await;
        assert_eq!(missing.unwrap(), []);
    }

    let stranger = Authority::new().issue("client");
    let server = in_front_of(&target, &authority, &stranger);
    let client = Client::connect(server.address()).await;
    let outcome = client.find_missing(vec![digest_of(&content[0])]).await;
    assert_refused(outcome, Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_a_backing_cache_is_checked_by_the_roots_of_the_system() {
    let authority = Authority::new();
    let backing = authority.server();
    let (certificate, key) = authority.issue("client");
    let files = [
        ("cert_file", authority.file("client.pem", &certificate)),
        ("key_file", authority.file("client.key", &key)),
    ];
    let port = backing.address().port();
    let mut settings = files
        .map(|(key, path)| format!("backing_cache.tls.{key}={}", path.display()))
        .to_vec();
    settings.push(format!("backing_cache.target=grpcs://localhost:{port}"));
    settings.push("backing_cache.put_retry_count=0".to_owned());
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let find_missing = async |roots: &Authority| {
        let roots = authority.file("roots.pem", &roots.issuer.pem());
        let server = Server::start_with_roots(&roots, &settings);
        let client = Client::connect(server.address()).await;
        client.find_missing(vec![digest_of(b"x")]).await
    };
    find_missing(&authority).await.unwrap();
    assert_refused(find_missing(&Authority::new()).await, Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_a_file_are_sent_to_the_backing_cache() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("headers");
    let setting = format!("backing_cache.headers_file={}", file.display());
    let peer = FaultyPeer::start();
    let target = format!("backing_cache.target={}", peer.grpc_url());
    let settings = [target.as_str(), setting.as_str()];
    let data = dir.path().join("data");
    let (_, said) = server::refusal(&data, &settings);
    assert!(said.contains("backing_cache.headers_file"), "{said}");
    fs::write(&file, "letmein\n").unwrap();
    let (_, said) = server::refusal(&data, &settings);
    assert!(
        said.contains("line 1") && !said.contains("letmein"),
        "{said}"
    );

    fs::write(&file, "# a key\nx-api-key=letmein\n").unwrap();
    let server = Server::start(&settings);
    let client = Client::connect(server.address()).await;
    let missing = client.find_missing(vec![digest_of(b"x")]).await;
    assert_eq!(missing.unwrap().len(), 1);
    let calls = peer.calls(Method::FindMissingBlobs);
    assert_eq!(calls[0].header("x-api-key"), Some("letmein"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_when_the_data_directory_becomes_unusable_and_usable_again() {
    let server = Server::start(&[]);
    let client = Client::connect(server.address()).await;
    let mut health = HealthClient::new(client.channel());
    let watch = health.watch(HealthCheckRequest::default()).await;
    let mut watch = watch.expect("the health service").into_inner();
    let mut next = async || {
        let status = tokio::time::timeout(PATIENCE, watch.message()).await;
        status.expect("a change").unwrap().unwrap().status()
    };
    assert_eq!(next().await, ServingStatus::Serving);
    let (tmp, away) = (server.data().join("tmp"), server.data().join("away"));
    fs::rename(&tmp, &away).unwrap();
    assert_eq!(next().await, ServingStatus::NotServing);
    fs::rename(&away, &tmp).unwrap();
    assert_eq!(next().await, ServingStatus::Serving);
    let stored = client.batch_upload(&[Bytes::from_static(b"x")]).await;
    stored.expect("it works again");
}
