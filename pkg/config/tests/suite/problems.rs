//! Tests of problems and warnings, and of their messages.

use proptest::prelude::*;

use crate::support::{arguments, config, file, load, problem, problems, variables};
use gorego_config::Config;

#[test]
fn all_problems_are_reported_at_once_with_key_value_source_and_what_is_accepted() {
    let mut sources = file(
        "log_level: loud\n\
         local_cache:\n\
         \x20 max_size_gb: lots\n\
         \x20 low_watermark: 2\n\
         \x20 colour: red\n\
         tls: true\n",
    );
    sources.env = variables(&[("GOREGO_LIMITS_IDLE_TIMEOUT", "soon")]).env;
    sources.set = vec!["listen_addr=8080".to_owned()];
    assert_eq!(
        problems(&sources),
        [
            "config.yaml:5: unknown key `local_cache.colour`; accepted: those that \
             `gorego config` lists",
            "config.yaml:6: tls = ...: expected a section with some of the keys enabled, \
             cert_file, key_file, ca_file, client_auth",
            "--set: listen_addr = \"8080\": expected :port (all interfaces), host:port or \
             [IPv6]:port; unix sockets are not supported",
            "config.yaml:1: log_level = \"loud\": expected one of error, warn, info, debug, trace",
            "config.yaml:3: local_cache.max_size_gb = \"lots\": expected a number of GiB \
             (10, 0.5) or a size with its unit (500MB, 20GiB)",
            "GOREGO_LIMITS_IDLE_TIMEOUT: limits.idle_timeout = \"soon\": expected a duration: \
             seconds (5) or numbers with units (500ms, 3h, 1h30m)",
            "config.yaml:4: local_cache.low_watermark = 2: accepted: more than 0, at most 1",
        ]
    );
}

#[test]
fn a_malformed_value_in_the_file_is_reported_even_if_overridden() {
    let mut sources = file("log_level: loud\n");
    sources.set = vec!["log_level=info".to_owned()];
    assert!(problem(&sources).starts_with("config.yaml:1: log_level = "));
}

#[test]
fn an_unknown_key_comes_with_the_nearest_one() {
    for (text, expected) in [
        ("listen_adr: x", "`listen_adr`; did you mean `listen_addr`?"),
        (
            "local_cache_dir: x",
            "`local_cache_dir`; did you mean `local_cache.dir`?",
        ),
        (
            "max_size_gb: 1",
            "`max_size_gb`; did you mean `local_cache.max_size_gb`?",
        ),
        (
            "tls: {certfile: x}",
            "`tls.certfile`; did you mean `tls.cert_file`?",
        ),
        (
            "LocalCache: {dir: x}",
            "`LocalCache`; did you mean `local_cache`?",
        ),
    ] {
        let problem = problem(&file(text));
        assert_eq!(problem, format!("config.yaml:1: unknown key {expected}"));
    }
}

#[test]
fn a_key_given_twice_is_refused_in_any_letter_case() {
    for text in [
        "log_level: info\nlog_level: info\n",
        "log_level: info\nLog_Level: info\n",
    ] {
        let expected = "config.yaml:2: duplicate key `log_level`, first in line 1; accepted: once";
        assert_eq!(problem(&file(text)), expected);
    }
    let found = problem(&file("tls:\n  enabled: no\ntls:\n  client_auth: none\n"));
    assert!(
        found.starts_with("config.yaml:3: duplicate key `tls`"),
        "{found}"
    );
    let found = problem(&file("tls.enabled: no\ntls: {enabled: no}\n"));
    assert!(
        found.starts_with("config.yaml:2: duplicate key `tls.enabled`"),
        "{found}"
    );
}

#[test]
fn files_that_are_not_yaml_or_not_mappings_are_refused() {
    for (text, expected) in [
        ("- a\n", "found a list"),
        ("just words\n", "found a single value"),
        ("42\n", "found a single value"),
        ("tls:\n\tenabled: true\n", "line 2"),
        ("tls: {enabled: true\n", "line 1"),
        ("a: &a [*a]\n", "line 1"),
        ("listen_addr: a\n---\nlisten_addr: b\n", "line 3"),
        ("~: 1\n", "line 1"),
        ("[a]: 1\n", "line 1"),
    ] {
        let problem = problem(&file(text));
        assert!(
            problem.starts_with("config.yaml: ") && problem.contains(expected),
            "{problem}"
        );
    }
}

/// Checks that a file is refused with one problem, of `key`.
fn refused(text: &str, key: &str, reason: &str) {
    let problem = problem(&file(text));
    assert!(problem.contains(&format!(": {key} = ")), "{key}: {problem}");
    assert!(problem.contains(reason), "{reason}: {problem}");
}

#[test]
fn impossible_cache_settings_are_refused() {
    refused(
        "local_cache: {enabled: off}",
        "local_cache.enabled",
        "accepted: true, or a backing_cache.target",
    );
    refused(
        "local_cache: {max_size_gb: 0}",
        "local_cache.max_size_gb",
        "1MiB and more",
    );
    refused(
        "local_cache: {min_free: -1}",
        "local_cache.min_free",
        "a size",
    );
    refused(
        "local_cache: {high_watermark: 1.01}",
        "local_cache.high_watermark",
        "at most 1",
    );
    refused(
        "local_cache: {low_watermark: 0}",
        "local_cache.low_watermark",
        "more than 0",
    );
    refused(
        "local_cache: {low_watermark: nan}",
        "local_cache.low_watermark",
        "a number",
    );
    refused(
        "local_cache: {low_watermark: 0.95}",
        "local_cache.low_watermark",
        "low below high",
    );
    refused(
        "local_cache: {high_watermark: 0.5}",
        "local_cache.high_watermark",
        "0.85 and 0.5",
    );
}

#[test]
fn limits_that_stop_everything_are_refused() {
    refused(
        "limits: {max_batch_bytes: 65535}",
        "limits.max_batch_bytes",
        "64KiB to 64MiB",
    );
    refused(
        "limits: {max_batch_bytes: 65MiB}",
        "limits.max_batch_bytes",
        "64KiB to 64MiB",
    );
    refused(
        "limits: {memory: 69MiB}",
        "limits.memory",
        "accepted: 70MiB and more",
    );
    refused(
        "limits: {max_batch_bytes: 64MiB}",
        "limits.max_batch_bytes",
        "accepted: 256MiB and more",
    );
    refused(
        "limits: {idle_timeout: 0}",
        "limits.idle_timeout",
        "more than 0",
    );
    for functions in ["[]", "[blake3, sha256, blake3]"] {
        let text = format!("limits: {{inferred_functions: {functions}}}");
        refused(&text, "limits.inferred_functions", "each once");
    }
    refused(
        "limits: {inferred_functions: [sha1]}",
        "limits.inferred_functions",
        "sha256, blake3",
    );
    refused(
        "limits: {max_connections: 0}",
        "limits.max_connections",
        "1 or more",
    );
    let text = "limits: {max_batch_bytes: 64KiB, max_connections: 1, drain_timeout: 0}";
    assert_eq!(config(&file(text)).limits.max_batch_bytes.bytes(), 65_536);
    assert_eq!(
        config(&file("limits: {max_batch_bytes: 64MiB, memory: 256MiB}"))
            .limits
            .max_batch_bytes
            .bytes(),
        64 << 20
    );
}

#[test]
fn impossible_settings_of_a_backing_cache_are_refused() {
    let with = |target: &str, more: &str| format!("backing_cache: {{target: '{target}', {more}}}");
    let (target, tls) = ("backing_cache.target", "tls: {enabled: yes}");
    refused(&with("http://cache", ""), target, "grpcs://host[:port]");
    refused(&with("grpc://cache:1", tls), target, "is plain text");
    refused(&with("unix:/cache", tls), target, "is plain text");
    refused(
        &with("grpcs://cache", "tls: {enabled: no}"),
        target,
        "uses TLS",
    );
    for text in [with("cache:1", tls), with("grpcs://cache", tls)] {
        assert_eq!(load(&file(&text)).warnings, [""; 0]);
    }
    refused(
        &with("grpc://cache", "timeout: 0"),
        "backing_cache.timeout",
        "more than 0",
    );
    let half = with("grpcs://cache", "tls: {key_file: k}");
    refused(
        &half,
        "backing_cache.tls.key_file",
        "needs backing_cache.tls.cert_file",
    );
    let unused = load(&file(&with("grpc://cache", "tls: {ca_file: a}"))).warnings;
    assert!(unused[0].contains("in plain text"), "{unused:?}");
    let degrade = with("grpc://cache", "on_outage: degrade");
    assert_eq!(load(&file(&degrade)).warnings, [""; 0]);
    let too_much = with("grpc://cache", "on_outage: degrade, journal_max: 6GiB");
    refused(&too_much, "backing_cache.journal_max", "up to half");

    let stateless = format!("{}\nlocal_cache: {{enabled: no}}", with("grpc://cache", ""));
    assert_eq!(load(&file(&stateless)).warnings, [""; 0]);
    let nowhere = stateless.replace("', ", "', read_only: yes");
    refused(&nowhere, "backing_cache.read_only", "no cache to write to");
    let nothing = stateless.replace("', ", "', on_outage: degrade");
    refused(&nothing, "backing_cache.on_outage", "needs a local cache");
}

#[test]
fn impossible_settings_of_tls_are_refused() {
    let found = problems(&file("tls: {enabled: true}"));
    let expected = ["tls.cert_file", "tls.key_file"]
        .map(|key| format!("config.yaml:1: tls.enabled = true: needs {key}"));
    assert_eq!(found, expected);
    refused(
        "tls: {enabled: true, cert_file: c}",
        "tls.enabled",
        "needs tls.key_file",
    );

    let with_auth = |auth: &str| format!("tls: {{enabled: on, cert_file: c, key_file: k, {auth}}}");
    for mode in ["verify_if_given", "require_and_verify"] {
        let auth = format!("client_auth: {mode}");
        refused(&with_auth(&auth), "tls.client_auth", "needs tls.ca_file");
        let valid = with_auth(&format!("{auth}, ca_file: a"));
        assert_eq!(load(&file(&valid)).warnings, [""; 0]);
    }
    refused(
        &with_auth("client_auth: require"),
        "tls.client_auth",
        "require_and_verify",
    );
}

#[test]
fn impossible_settings_of_traces_are_refused() {
    let (endpoint, ratio) = (
        "telemetry.tracing_endpoint",
        "telemetry.tracing_sample_ratio",
    );
    for (text, key, reason) in [
        ("tracing_endpoint: otel", endpoint, "host:port (plain text)"),
        (
            "tracing_endpoint: 'https://t0ken@otel'",
            endpoint,
            "a token belongs to",
        ),
        (
            "tracing_endpoint: 'http://otel/otlp'",
            endpoint,
            "gRPC has no path",
        ),
        (
            "tracing_protocol: thrift",
            "telemetry.tracing_protocol",
            "one of grpc, http",
        ),
        ("tracing_sample_ratio: 1.5", ratio, "accepted: 0 to 1"),
        ("tracing_sample_ratio: -0.1", ratio, "accepted: 0 to 1"),
    ] {
        refused(&format!("telemetry: {{{text}}}"), key, reason);
    }
    let secret = problem(&file("telemetry: {tracing_endpoint: 'https://t0ken@otel'}"));
    assert!(!secret.contains("t0ken"), "{secret}");
    let valid = "telemetry: {tracing_endpoint: 'https://otel/otlp', tracing_protocol: http, \
                 tracing_headers: {x-key: s3cret}, tracing_ca_file: a, tracing_sample_ratio: 1}";
    let valid = load(&file(valid));
    assert_eq!(valid.warnings, [""; 0]);
    assert!(!valid.render().contains("s3cret"), "{}", valid.render());
}

#[test]
fn settings_of_traces_without_effect_or_protection_cause_warnings() {
    let found = warning("telemetry: {tracing_headers: {x-key: s3cret}}");
    let reason = "has no effect without telemetry.tracing_endpoint";
    assert!(
        found.ends_with(reason) && !found.contains("s3cret"),
        "{found}"
    );
    let plain = |more| {
        warning(&format!(
            "telemetry: {{tracing_endpoint: 'otel:4317', {more}}}"
        ))
    };
    assert!(plain("tracing_headers: {x-key: s3cret}").contains("sent in plain text"));
    assert!(plain("tracing_ca_file: a").contains("https:// encrypts it"));
}

#[test]
fn a_malformed_value_causes_no_second_problem_through_its_default() {
    let found = problem(&file("tls: {enabled: on, cert_file: [c], key_file: k}"));
    assert!(
        found.contains("tls.cert_file = a list: expected a path"),
        "{found}"
    );
}

/// Loads a file and returns its only warning.
fn warning(text: &str) -> String {
    let loaded = load(&file(text));
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    loaded.warnings.concat()
}

#[test]
fn tls_settings_without_effect_cause_warnings() {
    let found = warning("tls:\n  enabled: false\n  key_file: /k\n");
    let expected = "config.yaml:3: tls.key_file = \"/k\": has no effect while tls.enabled is false";
    assert_eq!(found, expected);
    assert!(warning("tls: {client_auth: require}").contains("has no effect"));
    let on = "enabled: on, cert_file: c, key_file: k";
    let found = warning(&format!("tls: {{{on}, client_auth: request}}"));
    assert!(
        found.ends_with("requests a certificate without verifying it; the same as none"),
        "{found}"
    );
    let found = warning(&format!("tls: {{{on}, ca_file: a}}"));
    assert!(
        found.contains("tls.ca_file") && found.contains("no effect"),
        "{found}"
    );
}

#[test]
fn a_cluster_on_loopback_needs_nothing_else() {
    let on = ["cluster.enabled=true", "cluster.bind_addr=localhost"];
    assert_eq!(load(&arguments(&on)).warnings, [""; 0]);
    let off = ["cluster.enabled=no", "telemetry.metrics_addr=:9090"];
    assert_eq!(load(&arguments(&off)).warnings, [""; 0]);
}

#[test]
fn impossible_settings_of_a_cluster_are_refused() {
    for (settings, expected) in [
        (&["node_id=a b"][..], "cluster.node_id"),
        (&["name=a/b"], "cluster.name"),
        (&["bind_addr=", "name=x"], "needs certificates"),
        (&["bind_addr=10.0.0.1"], "needs certificates"),
        (&["bind_addr=10.0.0.1:1"], "accepted: a host name"),
        (&["advertise_addr=a:b"], "host or host:port"),
        (&["join_peers=a:1,b:0"], "host or host:port"),
        (&["discovery_mode=dns"], "needs cluster.dns_service_name"),
        (&["dns_service_name=a"], "no effect"),
        (&["broadcast_period=1ms"], "50ms to 10s"),
        (&["replicas=0"], "1 to 8"),
        (&["max_nodes=0"], "1 to 10000"),
        (&["tls.cert_file=a"], "needs cluster.tls.key_file"),
        (
            &["tls.cert_file=a", "tls.key_file=b"],
            "needs cluster.tls.ca_file",
        ),
    ] {
        let mut set = vec![
            "cluster.enabled=true".to_owned(),
            "cluster.bind_addr=localhost".to_owned(),
        ];
        set.extend(settings.iter().map(|text| format!("cluster.{text}")));
        let set: Vec<_> = set.iter().map(String::as_str).collect();
        let loaded = Config::load(&arguments(&set));
        let found = match &loaded {
            Ok(loaded) => loaded.warnings.join("\n"),
            Err(problems) => problems.to_string(),
        };
        assert!(found.contains(expected), "{settings:?}: {found}");
    }
    let stateless = [
        "cluster.enabled=true",
        "cluster.bind_addr=::1",
        "local_cache.enabled=no",
        "backing_cache.target=a:1",
    ];
    let found = problem(&arguments(&stateless));
    assert!(found.contains("needs the local cache"), "{found}");
    let idle = [
        "cluster.enabled=true",
        "cluster.bind_addr=::1",
        "cluster.role=worker",
        "execution.enabled=no",
    ];
    let found = problem(&arguments(&idle));
    assert!(found.contains("executes nothing"), "{found}");
}

#[test]
fn nodes_trust_other_authorities_than_clients() {
    let files = "cluster:\n  enabled: yes\n  tls: {cert_file: a, key_file: b, ca_file: c}\n";
    let loaded = load(&file(files));
    assert_eq!(loaded.warnings, [""; 0]);
    let shared = format!(
        "tls: {{enabled: on, cert_file: d, key_file: e, ca_file: /base/c, client_auth: \
         require_and_verify}}\n{files}"
    );
    let found = problem(&file(&shared));
    assert!(found.contains("can then act as nodes"), "{found}");
}

#[test]
fn insecure_nodes_cause_a_warning() {
    let insecure = ["cluster.enabled=true", "cluster.insecure=true"];
    let warnings = load(&arguments(&insecure)).warnings;
    assert!(
        warnings
            .iter()
            .any(|text| text.contains("run commands here")),
        "{warnings:?}"
    );
}

#[test]
fn addresses_of_nodes_get_the_port_of_the_cluster() {
    let mut config = config(&arguments(&["listen_addr=10.0.0.1:80"]));
    let address = |config: &Config| {
        config
            .cluster
            .bind(&config.listen_addr)
            .unwrap()
            .to_string()
    };
    assert_eq!(address(&config), "10.0.0.1:7946");
    for (bind_addr, expected) in [("::", "[::]:7946"), ("localhost", "localhost:7946")] {
        config.cluster.bind_addr = bind_addr.to_owned();
        assert_eq!(address(&config), expected);
    }
    for (peer, expected) in [
        ("a", Some("a:7946")),
        ("a:1", Some("a:1")),
        ("::1", Some("[::1]:7946")),
        ("[::1]:2", Some("[::1]:2")),
        ("a b", None),
        ("", None),
    ] {
        assert_eq!(config.cluster.peer(peer).as_deref(), expected, "{peer}");
    }
}

#[test]
fn execution_for_unknown_clients_on_other_machines_causes_a_warning() {
    let on = "execution.enabled=true";
    let warnings = load(&arguments(&[on])).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("can run commands here"),
        "{warnings:?}"
    );
    for setting in [on, "execution.enabled=auto", "execution.enabled=no"] {
        let set = [setting, "listen_addr=localhost:50051"];
        assert_eq!(load(&arguments(&set)).warnings, [""; 0]);
    }
    let certificates = [
        on,
        "tls.enabled=true",
        "tls.cert_file=a",
        "tls.key_file=b",
        "tls.ca_file=c",
        "tls.client_auth=require_and_verify",
    ];
    assert_eq!(load(&arguments(&certificates)).warnings, [""; 0]);
}

#[test]
fn settings_of_a_sandbox_that_is_off_cause_a_warning() {
    let [hide, writable] =
        ["hide", "writable_paths"].map(|key| format!("execution.sandbox.{key}=/a"));
    for setting in [hide, writable] {
        let off = ["execution.sandbox.enabled=false", &setting];
        let warnings = load(&arguments(&off)).warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("has no effect"), "{warnings:?}");
        assert_eq!(load(&arguments(&[&setting])).warnings, [""; 0]);
    }
}

#[test]
fn impossible_settings_of_execution_are_refused() {
    for (settings, expected) in [
        (
            &[
                "execution.enabled=true",
                "local_cache.enabled=false",
                "backing_cache.target=a:1",
            ][..],
            "execution.enabled = true: needs the local cache",
        ),
        (&["execution.sandbox.hide=/a,/"], "below the root directory"),
        (
            &["execution.sandbox.writable_paths=/"],
            "below the root directory",
        ),
        (&["execution.default_timeout=0"], "more than 0"),
        (&["execution.max_timeout=1m"], "up to execution.max_timeout"),
        (&["execution.queue_size=0"], "1 or more"),
        (&["execution.max_log_bytes=0"], "1KiB and more"),
        (&["execution.uids=0"], "1 and more"),
        (&["execution.environment=A=1,A=2"], "each name once"),
        (&["execution.environment={A=B: c}"], "names without `=`"),
    ] {
        let problems = problems(&arguments(settings));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(expected), "{problems:?}");
    }
}

proptest! {
    #[test]
    fn no_file_variable_or_argument_panics(
        text in "((tls|limits|local_cache|LOG_level|headers|a):? ?[\\[\\]{}&*!|>'\",~0-9a-z.\t -]{0,9}\n? ?){0,9}|\\PC{0,40}",
        value in "\\PC{0,20}",
    ) {
        let mut sources = file(&text);
        sources.env = variables(&[("GOREGO_BACKING_CACHE_HEADERS", &value)]).env;
        sources.set = vec![value.clone(), format!("cluster.join_peers={value}")];
        let _ = Config::load(&sources).map_err(|problems| problems.to_string());
    }
}
