//! Tests of TLS with clients and backing caches.
#![cfg(test)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Output,
    time::{Duration, SystemTime},
};

use gorego_integration::{
    binary,
    client::Client,
    cluster::Node,
    content::{blob, digest_of},
    metrics::Metrics,
    process,
    server::{self, Server},
    shell::Caller,
    web,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SerialNumber,
    date_time_ymd,
};
use reapi::v2::{GetCapabilitiesRequest, capabilities_client::CapabilitiesClient};
use rustix::process::Signal;
use tempfile::TempDir;
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

#[track_caller]
fn assert_refused<T>(outcome: Result<T, Status>, code: Code) {
    let Err(status) = outcome else {
        panic!("the call was accepted");
    };
    assert_eq!(status.code(), code, "{status}");
}

/// An authority that issues certificates and writes files.
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

    /// Issues a certificate for `name` and returns it with its key (PEM).
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

    /// Starts a server that accepts only clients signed by this authority.
    fn server(&self) -> Server {
        server_in(&self.folder, &self.issue("localhost"), &self.issuer.pem())
    }

    /// Connects, with an identity if given, and makes a request.
    async fn ask(&self, server: &Server, identity: Option<(String, String)>) -> Result<(), String> {
        let channel = self.connect(server, identity).await?;
        capabilities(channel).await
    }

    async fn connect(
        &self,
        server: &Server,
        identity: Option<(String, String)>,
    ) -> Result<Channel, String> {
        let mut tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(Certificate::from_pem(self.issuer.pem()));
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Channel::from_shared(format!("https://{}", server.address()));
        let endpoint = endpoint.unwrap().tls_config(tls).unwrap();
        endpoint.connect().await.map_err(|why| format!("{why:?}"))
    }
}

async fn capabilities(channel: Channel) -> Result<(), String> {
    let request = GetCapabilitiesRequest::default();
    let mut client = CapabilitiesClient::new(channel);
    let answer = client.get_capabilities(request).await;
    answer.map(|_| ()).map_err(|why| format!("{why:?}"))
}

/// Starts a server with this certificate and key, written to `folder`, that accepts only `clients`.
fn server_in(folder: &TempDir, identity: &(String, String), clients: &str) -> Server {
    let files = [
        ("cert_file", "server.pem", identity.0.as_str()),
        ("key_file", "server.key", &identity.1),
        ("ca_file", "ca.pem", clients),
    ];
    let mut settings = vec![
        "tls.enabled=true".to_owned(),
        "tls.client_auth=require_and_verify".to_owned(),
        "telemetry.metrics_addr=127.0.0.1:0".to_owned(),
    ];
    settings.extend(files.map(|(key, name, content)| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        format!("tls.{key}={}", path.display())
    }));
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    Server::start(&settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_with_a_certificate_are_served_if_tls_requires_one() {
    let authority = Authority::new();
    let server = authority.server();
    let known = authority.issue("client");
    authority.ask(&server, Some(known)).await.unwrap();
    authority.ask(&server, None).await.unwrap_err();
    let stranger = Authority::new().issue("client");
    authority.ask(&server, Some(stranger)).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn gorego_shell_connects_with_its_certificate() {
    let authority = Authority::new();
    let server = authority.server();
    let (certificate, key) = authority.issue("client");
    let files = [
        ("--tls-ca", "ca", authority.issuer.pem()),
        ("--tls-cert", "client.pem", certificate),
        ("--tls-key", "client.key", key),
    ];
    let files = files.map(|(option, name, content)| {
        let path = authority.file(name, &content);
        [option.to_owned(), path.to_str().unwrap().to_owned()]
    });
    let mut options = vec!["--run"];
    let url = format!("grpcs://localhost:{}", server.address().port());
    let caller = Caller::new(&url);
    let absent = "0".repeat(64);
    for [option, path] in &files {
        // The server's certificate is not trusted, or there is none for the client.
        if option != "--tls-key" {
            let refusal = caller.refusal(&absent, &options);
            assert!(!refusal.contains("no action"), "{refusal}");
        }
        options.extend([option.as_str(), path]);
    }
    let refusal = caller.refusal(&absent, &options);
    assert!(refusal.contains("the cache has no action"), "{refusal}");
}

/// Starts a server with the backing cache at `target`. It trusts `authorities` and shows `identity`.
fn in_front_of(target: &str, authorities: &str, identity: &(String, String)) -> Server {
    // The files are read at the start and may then be removed.
    let folder = TempDir::new().unwrap();
    let files = [
        ("ca_file", authorities),
        ("cert_file", identity.0.as_str()),
        ("key_file", &identity.1),
    ];
    let settings = files.map(|(key, content)| {
        let path = folder.path().join(key);
        fs::write(&path, content).unwrap();
        format!("backing_cache.tls.{key}={}", path.display())
    });
    let mut settings: Vec<_> = settings.iter().map(String::as_str).collect();
    settings.push("backing_cache.put_retry_count=0");
    if !target.starts_with("grpcs:") {
        settings.push("backing_cache.tls.enabled=true");
    }
    Server::in_front_of(target, &settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backing_cache_over_mutual_tls_serves_only_known_proxies() {
    let authority = Authority::new();
    let backing = authority.server();
    let content = [blob(1, 1000)];
    let bare = format!("localhost:{}", backing.address().port());
    let target = format!("grpcs://{bare}");

    for target in [&target, &bare] {
        let server = in_front_of(target, &authority.issuer.pem(), &authority.issue("client"));
        let client = Client::connect(server.address()).await;
        client.batch_upload(&content).await.unwrap();
        let missing = client.find_missing(vec![digest_of(&content[0])]).await;
        assert_eq!(missing.unwrap(), []);
    }

    let stranger = Authority::new().issue("client");
    let server = in_front_of(&target, &authority.issuer.pem(), &stranger);
    let client = Client::connect(server.address()).await;
    let outcome = client.find_missing(vec![digest_of(&content[0])]).await;
    assert_refused(outcome, Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_a_backing_cache_is_verified_by_the_systems_authorities() {
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

/// Creates a self-signed certificate, as `openssl req -x509` does, and its key.
fn self_signed() -> (String, String) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.serial_number = Some(SerialNumber::from(7_u64));
    params.not_after = date_time_ymd(2999, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_self_signed_certificates_are_trusted_by_both_sides() {
    let (server, client) = (self_signed(), self_signed());
    let folder = TempDir::new().unwrap();
    let backing = server_in(&folder, &server, &client.0);
    let target = format!("grpcs://localhost:{}", backing.address().port());
    let find_missing = async |authorities: &str, identity: &(String, String)| {
        let front = in_front_of(&target, authorities, identity);
        let asks = Client::connect(front.address()).await;
        asks.find_missing(vec![digest_of(b"x")]).await
    };
    find_missing(&server.0, &client).await.unwrap();
    let of_another_server = find_missing(&self_signed().0, &client).await;
    assert_refused(of_another_server, Code::Unavailable);
    let by_another_client = find_missing(&server.0, &self_signed()).await;
    assert_refused(by_another_client, Code::Unavailable);
}

/// Repeats `attempt` until it succeeds.
async fn until<E: std::fmt::Debug>(attempt: impl AsyncFn() -> Result<(), E>) {
    let start = tokio::time::Instant::now();
    while let Err(why) = attempt().await {
        assert!(start.elapsed() < PATIENCE, "no success in time: {why:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reloads_certificates_ignores_broken_ones_and_keeps_connections() {
    let (old, new) = (Authority::new(), Authority::new());
    let server = old.server();
    let before = old.connect(&server, Some(old.issue("client"))).await;
    let before = before.unwrap();

    let (certificate, key) = new.issue("localhost");
    old.file("server.key", &key);
    old.file("server.pem", &certificate);
    let me = self_signed();
    old.file("ca.pem", &format!("{}{}", new.issuer.pem(), me.0));
    server.signal(Signal::HUP);
    until(async || new.ask(&server, Some(new.issue("client"))).await).await;
    new.ask(&server, Some(me)).await.unwrap();
    let stale = old.ask(&server, Some(old.issue("client"))).await;
    stale.unwrap_err();
    capabilities(before.clone()).await.unwrap();
    let file = old.folder.path().join("ca.pem");
    let expiry = format!(
        "gorego_certificate_expiry_seconds{{role=\"client_authority\",file=\"{}\",\
         subject=\"CN=rcgen self signed cert\",serial=\"07\"}}",
        file.display()
    );
    let end = u64::try_from(date_time_ymd(2999, 1, 1).unix_timestamp()).unwrap();
    let reloaded = |metrics: &Metrics| metrics.get(&expiry) == Some(end);
    Metrics::wait_for(server.metrics(), reloaded).await;

    let warnings = || {
        let log = server.log();
        log.matches("the previous content stays in use").count()
    };
    // There are some if the files were checked while they were being replaced.
    let earlier = warnings();
    old.file("server.pem", "nonsense");
    server.signal(Signal::HUP);
    until(async || {
        if warnings() > earlier {
            return Ok(());
        }
        capabilities(before.clone()).await.and(Err(server.log()))
    })
    .await;
    new.ask(&server, Some(new.issue("client"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_does_not_end_a_server_without_reloadable_files() {
    let mut server = Server::start(&[]);
    let client = Client::connect(server.address()).await;
    server.signal(Signal::HUP);
    until(async || {
        if server.log().contains("SIGHUP") {
            return Ok(());
        }
        capabilities(client.channel()).await.and(Err(server.log()))
    })
    .await;
    capabilities(client.channel()).await.unwrap();
    drop(client);
    server.ask_to_stop();
    assert_eq!(server.wait().code(), Some(0));
}

/// Runs `gorego cluster certs` for a cluster, with these words, in a folder.
fn cluster_certs(folder: &TempDir, cluster: &str, words: &[&str]) -> Output {
    let mut command = process::command(binary::gorego());
    server::forget_settings(&mut command);
    command.args(["cluster", "certs", "--name", cluster, "--dir", "certs"]);
    let output = command.args(words).current_dir(folder.path()).output();
    output.expect("gorego starts")
}

#[tokio::test]
async fn cluster_certs_makes_files_that_the_printed_settings_name() {
    let folder = TempDir::new().unwrap();
    let made = cluster_certs(&folder, "build", &["a", "b"]);
    assert!(made.status.success(), "{made:?}");
    // With the authority that is there.
    let made = cluster_certs(&folder, "build", &["--days", "7", "c"]);
    assert!(made.status.success(), "{made:?}");
    let certs = folder.path().join("certs");
    for name in ["ca", "a", "b", "c"] {
        let mode = |kind| {
            let file = certs.join(format!("{name}.{kind}"));
            file.metadata().unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("key"), mode("pem") & 0o022), (0o600, 0), "{name}");
    }
    let text = String::from_utf8(made.stdout).unwrap();
    let (files, settings) = text.split_once("\n\n").unwrap();
    let expected = ["c.pem", "c.key"].map(|name| certs.join(name).display().to_string());
    assert_eq!(files.lines().collect::<Vec<_>>(), expected);
    let file = folder.path().join("config.yaml");
    fs::write(&file, settings).unwrap();
    let node = Node::start_with_file(&file, "c", "", &[]).await;
    let metrics = web::get(node.server.metrics(), "/metrics").await.content;
    let [pem, _] = expected;
    let series = format!("gorego_certificate_expiry_seconds{{role=\"node\",file=\"{pem}\"");
    let line = metrics.lines().find(|line| line.starts_with(&series));
    let (_, expiry) = line.and_then(|line| line.rsplit_once(' ')).unwrap();
    let expiry = Duration::from_secs_f64(expiry.parse().unwrap());
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let left = expiry.checked_sub(now).unwrap();
    assert_eq!(left.as_secs().div_ceil(24 * 60 * 60), 7);
}

#[test]
fn cluster_certs_overwrites_nothing_and_uses_no_other_authority() {
    let folder = TempDir::new().unwrap();
    assert!(cluster_certs(&folder, "build", &["a"]).status.success());
    let certs = folder.path().join("certs");
    let files = || {
        let names = ["ca.pem", "ca.key", "a.pem", "a.key"];
        names.map(|name| fs::read_to_string(certs.join(name)).unwrap())
    };
    let before = files();
    for (cluster, words, why) in [
        ("build", &["b", "a"][..], "exists and is not overwritten"),
        ("build", &["a/b"], "is no name"),
        ("build", &["ca"], "files of the authority"),
        ("other", &["c"], "for the cluster other"),
    ] {
        let refused = cluster_certs(&folder, cluster, words);
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{errors}");
        assert!(errors.contains(why), "{errors}");
    }
    assert_eq!(files(), before);
    assert_eq!(fs::read_dir(&certs).unwrap().count(), 4);
}
