//! Tests of the files in `deploy`: with promtool, and with a Prometheus that scrapes running servers.
#![cfg(test)]

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use gorego_integration::{
    client::Client,
    content::{blob, digest_of, result_of},
    package::read,
    process::{Process, describe},
    project, root,
    server::Server,
    web::get,
};
use serde_json::Value;
use tempfile::TempDir;

const RULES: &str = "deploy/prometheus/gorego.rules.yml";
const DASHBOARD: &str = "deploy/grafana/gorego.json";
const SERVED: &str = "telemetry.metrics_addr=127.0.0.1:0";

/// The longest wait for Prometheus; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(5);

/// Runs promtool on files of the folder with the rules.
fn promtool(arguments: &[&str]) {
    let folder = project::root().join(RULES);
    let mut promtool = root::command(folder.parent().unwrap(), "promtool");
    let output = promtool.args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{promtool:?}: {}\n{}{}",
        describe(output.status),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Returns the values of a key that stands alone on its lines.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text.lines().map(|line| line.trim_start_matches([' ', '-']));
    let values = lines.filter_map(|line| line.strip_prefix(key));
    values.map(str::trim).collect()
}

#[test]
fn every_alert_is_valid_and_fires_in_its_test() {
    promtool(&["check", "rules", "--lint-fatal", "gorego.rules.yml"]);
    promtool(&["test", "rules", "gorego.test.yml"]);
    let tests = read("deploy/prometheus/gorego.test.yml");
    let tested: BTreeSet<_> = values(&tests, "alertname:").into_iter().collect();
    let rules = read(RULES);
    let rules: BTreeSet<_> = values(&rules, "alert:").into_iter().collect();
    assert!(!rules.is_empty());
    assert_eq!(tested, rules);
    assert!(!tests.contains("exp_alerts: []"), "each alert fires");
}

/// A Prometheus that scrapes each second.
struct Prometheus {
    address: SocketAddr,
    _process: Process,
    _dir: TempDir,
}

impl Prometheus {
    fn scraping(targets: &[SocketAddr]) -> Self {
        let dir = TempDir::new().unwrap();
        let targets: Vec<_> = targets.iter().map(|it| format!("\"{it}\"")).collect();
        let rules = project::root().join(RULES);
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs: [{{ job_name: gorego, static_configs: [{{ targets: [{}] }}] }}]\n",
            rules.display(),
            targets.join(", ")
        );
        fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let mut command = root::command(dir.path(), "prometheus");
        command
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg("--web.listen-address=127.0.0.1:0")
            .stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let log = process.child_mut().stderr.take().unwrap();
        let mut log = BufReader::new(log).lines().map_while(Result::ok);
        let listening = log.find(|line| line.contains("Listening on"));
        let listening = listening.expect("Prometheus listens");
        let address = listening.rsplit("address=").next().unwrap();
        // A full pipe would block the process.
        std::thread::spawn(move || log.for_each(drop));
        Self {
            address: address.trim_matches('"').parse().unwrap(),
            _process: process,
            _dir: dir,
        }
    }

    /// Returns the number of series that a query has.
    async fn series(&self, query: &str) -> usize {
        let path = format!("/api/v1/query?query={}", percent_encoded(query));
        let answer = get(self.address, &path).await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        answer.json()["data"]["result"].as_array().unwrap().len()
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        let _ = write!(encoded, "%{byte:02X}");
        encoded
    })
}

/// Returns the queries of all panels of the dashboard, for all instances.
fn dashboard_queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let queries = targets.flatten().map(|target| {
        let query = target["expr"].as_str().unwrap();
        query
            .replace("$instance", ".*")
            .replace("$__rate_interval", "1m")
    });
    queries.collect()
}

/// Returns a query for each metric of the rules, and for each label that a rule selects it by.
fn rule_selectors() -> BTreeSet<String> {
    let rules = read(RULES);
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut selectors = BTreeSet::new();
    for expression in values(&rules, "expr:") {
        let mut rest = expression;
        while let Some(start) = rest
            .find("gorego_")
            .into_iter()
            .chain(rest.find("process_"))
            .min()
        {
            rest = &rest[start..];
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            selectors.insert(name.to_owned());
            let labels = after.strip_prefix('{').and_then(|it| it.split_once('}'));
            for label in labels.unwrap_or_default().0.split(',') {
                let label = label.trim_end_matches(|c| !is_name(c));
                let label = label.split(|c| !is_name(c)).next().unwrap();
                if !label.is_empty() {
                    selectors.insert(format!("{name}{{{label}!=\"\"}}"));
                }
            }
            rest = after;
        }
    }
    selectors
}

/// Makes hits and misses of both tiers, evictions, and an access to each method on the dashboard.
async fn use_all(server: &Server) {
    let client = Client::connect(server.address()).await;
    let mut outputs = Vec::new();
    for seed in 0..40 {
        let output = blob(seed, 1 << 20);
        client.upload_whole(&output).await.unwrap();
        let action = digest_of(&seed.to_le_bytes());
        let result = result_of([digest_of(&output)]);
        client.put_action(&action, result).await.unwrap();
        outputs.push((action, output));
    }
    for (action, output) in [&outputs[39], &outputs[0]] {
        client.get_action(action).await.unwrap();
        client.compare(&digest_of(output), output).await;
    }
    client
        .get_action(&digest_of(b"no action"))
        .await
        .unwrap_err();
}

/// Starts a server with TLS, and a certificate in `folder`.
fn with_certificate(folder: &Path) -> Server {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |name: &str, content: String| {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let certificate = file("tls.crt", issued.cert.pem());
    let key = file("tls.key", issued.signing_key.serialize_pem());
    Server::start(&[
        SERVED,
        "tls.enabled=true",
        &format!("tls.cert_file={certificate}"),
        &format!("tls.key_file={key}"),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_and_the_rules_has_data() {
    let backing = Server::start(&[]);
    let settings = [
        SERVED,
        "local_cache.max_size_gb=16MiB",
        "local_cache.lease=0s",
        "local_cache.upload_lease=0s",
        "execution.enabled=true",
        "execution.run_as_root=true",
        "cluster.enabled=true",
        "cluster.bind_addr=127.0.0.1",
        "cluster.bind_port=0",
    ];
    let server = Server::in_front_of(&backing.grpc_url(), &settings);
    let folder = TempDir::new().unwrap();
    let with_tls = with_certificate(folder.path());
    let prometheus = Prometheus::scraping(&[server.metrics(), with_tls.metrics()]);
    let queries: Vec<_> = dashboard_queries()
        .into_iter()
        .chain(rule_selectors())
        .collect();
    assert!(queries.len() > 40, "{queries:#?}");
    let start = Instant::now();
    let mut without_data = queries;
    while !without_data.is_empty() {
        assert!(start.elapsed() < PATIENCE, "no data for {without_data:#?}");
        // Rates need traffic between two scrapes.
        use_all(&server).await;
        let mut still = Vec::new();
        for query in without_data {
            if prometheus.series(&query).await == 0 {
                still.push(query);
            }
        }
        without_data = still;
    }
}
