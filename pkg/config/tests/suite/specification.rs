//! The keys and defaults that users rely on.

use std::path::Path;
use std::time::Duration;

use crate::support::{config, defaults, file, load, problems};
use gorego_config::{DiscoveryMode, LogLevel, Switch, Ui, docs};

/// Every key with its default, as YAML.
const KEYS: &[(&str, &str)] = &[
    ("listen_addr", r#"":50051""#),
    ("force_update_atime", "false"),
    ("log_level", "info"),
    ("tls.enabled", "false"),
    ("tls.cert_file", r#""""#),
    ("tls.key_file", r#""""#),
    ("tls.ca_file", r#""""#),
    ("tls.client_auth", "none"),
    ("local_cache.enabled", "true"),
    ("local_cache.dir", r#""""#),
    ("local_cache.max_size_gb", "10"),
    ("local_cache.high_watermark", "0.95"),
    ("local_cache.low_watermark", "0.85"),
    ("local_cache.min_free", "1GiB"),
    ("local_cache.lease", "3h"),
    ("local_cache.upload_lease", "10m"),
    ("local_cache.upload_expiry", "24h"),
    ("local_cache.scrub_period", "720h"),
    ("local_cache.sync", "none"),
    ("action_cache.updates", "true"),
    ("limits.max_batch_bytes", "2MiB"),
    ("limits.max_blob_size", "0"),
    ("limits.inferred_functions", "[sha256, blake3]"),
    ("limits.memory", "160MiB"),
    ("limits.idle_timeout", "1m"),
    ("limits.drain_timeout", "8s"),
    ("limits.max_connections", "10000"),
    ("backing_cache.target", r#""""#),
    ("backing_cache.compression", "none"),
    ("backing_cache.put_retry_count", "3"),
    ("backing_cache.timeout", "1m"),
    ("backing_cache.existence_ttl", "5m"),
    ("backing_cache.on_outage", "fail"),
    ("backing_cache.journal_max", "1GiB"),
    ("backing_cache.outbox_retry", "24h"),
    ("backing_cache.headers", "{}"),
    ("backing_cache.headers_file", r#""""#),
    ("backing_cache.instance_name", r#""""#),
    ("backing_cache.read_only", "false"),
    ("backing_cache.prefetch", "false"),
    ("backing_cache.tls.enabled", "false"),
    ("backing_cache.tls.cert_file", r#""""#),
    ("backing_cache.tls.key_file", r#""""#),
    ("backing_cache.tls.ca_file", r#""""#),
    ("backing_cache.tls.client_auth", "none"),
    ("telemetry.metrics_addr", r#"":9090""#),
    ("telemetry.ui", "local"),
    ("telemetry.pprof", "false"),
    (
        "telemetry.redact",
        r#"["(?i)token\|secret\|passw\|key\|auth\|cookie\|credential"]"#,
    ),
    ("telemetry.history_max", "64MiB"),
    ("telemetry.tracing_endpoint", r#""""#),
    ("telemetry.tracing_protocol", "grpc"),
    ("telemetry.tracing_headers", "{}"),
    ("telemetry.tracing_headers_file", r#""""#),
    ("telemetry.tracing_ca_file", r#""""#),
    ("telemetry.tracing_sample_ratio", "0.01"),
    ("execution.enabled", "auto"),
    ("execution.uids", "61184"),
    ("execution.run_as_root", "false"),
    ("execution.concurrency", "0"),
    ("execution.build_root", r#""""#),
    ("execution.queue_size", "10000"),
    ("execution.default_timeout", "30m"),
    ("execution.max_timeout", "2h"),
    ("execution.abandon_after", "1m"),
    ("execution.retain_completed", "10m"),
    ("execution.max_retries", "2"),
    ("execution.max_input_bytes", "0"),
    ("execution.max_output_bytes", "0"),
    ("execution.max_log_bytes", "64MiB"),
    (
        "execution.environment",
        r#"["PATH=/usr/local/bin:/usr/bin:/bin"]"#,
    ),
    ("execution.platform", "[]"),
    ("execution.unknown_platform", "reject"),
    ("execution.verify", "0"),
    ("execution.memory", "0"),
    ("execution.max_processes", "4096"),
    ("execution.max_scratch_bytes", "10GiB"),
    ("execution.persistent_workers.enabled", "false"),
    ("execution.persistent_workers.max", "0"),
    ("execution.persistent_workers.idle_timeout", "5m"),
    ("execution.persistent_workers.max_uses", "1000"),
    ("execution.sandbox.enabled", "auto"),
    ("execution.sandbox.hide", "[]"),
    ("execution.sandbox.writable_paths", "[]"),
    ("execution.sandbox.network_isolation", "true"),
    ("execution.sandbox.allow_network", "false"),
    ("execution.sandbox.binary_path", r#""""#),
    ("execution.sandbox.kill_delay", "5s"),
    ("execution.sandbox.debug", "false"),
    ("cluster.enabled", "false"),
    ("cluster.name", r#""gorego""#),
    ("cluster.node_id", r#""""#),
    ("cluster.role", "node"),
    ("cluster.bind_addr", r#""""#),
    ("cluster.bind_port", "7946"),
    ("cluster.advertise_addr", r#""""#),
    ("cluster.discovery_mode", "list"),
    ("cluster.join_peers", "[]"),
    ("cluster.dns_service_name", r#""""#),
    ("cluster.broadcast_period", "500ms"),
    ("cluster.insecure", "false"),
    ("cluster.replicas", "2"),
    ("cluster.peer_reads", "true"),
    ("cluster.max_nodes", "256"),
    ("cluster.tls.cert_file", r#""""#),
    ("cluster.tls.key_file", r#""""#),
    ("cluster.tls.ca_file", r#""""#),
];

#[test]
fn the_keys_and_their_defaults_match_the_specification() {
    let reference = docs::reference();
    let rows = reference.lines().filter(|line| line.starts_with("| `"));
    let rows: Vec<_> = rows
        .map(|row| row.split(" | ").collect::<Vec<_>>())
        .collect();
    let found: Vec<_> = rows.iter().map(|row| (row[0], row[2])).collect();
    let expected: Vec<_> = KEYS
        .iter()
        .map(|(key, default)| (format!("| `{key}`"), format!("`{default}`")))
        .collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(k, d)| (k.as_str(), d.as_str()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn every_default_written_in_a_file_loads_as_the_default() {
    let lines: Vec<_> = KEYS
        .iter()
        // The table of the README escapes bars.
        .map(|(key, default)| format!("{key}: {}\n", default.replace("\\|", "|")))
        .collect();
    let loaded = load(&file(&lines.concat()));
    assert_eq!(loaded.config, defaults());
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn null_stands_for_the_default_of_every_key() {
    let lines: Vec<_> = KEYS.iter().map(|(key, _)| format!("{key}:\n")).collect();
    let loaded = load(&file(&lines.concat()));
    assert_eq!(loaded.config, defaults());
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn every_key_refuses_a_nested_mapping() {
    for (key, _) in KEYS {
        let problems = problems(&file(&format!("{key}: {{a: {{b: c}}}}")));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with(&format!("config.yaml:1: {key} = ")),
            "{problems:?}"
        );
        assert!(problems[0].contains("expected "), "{problems:?}");
    }
}

#[test]
fn a_file_of_the_go_program_loads_with_one_warning() {
    let loaded = load(&file(include_str!("../data/go-program.yaml")));
    let [warning] = loaded.warnings.as_slice() else {
        panic!("not one warning: {:?}", loaded.warnings);
    };
    assert!(warning.contains("execution.enabled"), "{warning}");
    assert!(warning.contains("can run commands here"), "{warning}");

    let config = loaded.config;
    assert_eq!(config.log_level, LogLevel::Warn);
    assert_eq!(config.local_cache.dir, Path::new("/srv/gorego/cache"));
    assert_eq!(config.local_cache.max_size_gb.bytes(), 10 << 30);
    assert_eq!(config.execution.sandbox.enabled, Switch::Off);
    assert_eq!(config.execution.sandbox.kill_delay, Duration::from_secs(5));
    assert_eq!(config.cluster.discovery_mode, DiscoveryMode::Dns);
    assert!(!config.cluster.enabled);
}

#[test]
fn the_default_cache_directory_survives_a_reboot() {
    let places = |home: Option<&str>, xdg: Option<&str>, root| {
        let path = |dir: &str| dir.into();
        gorego_config::Places::new("/base".into(), home.map(path), xdg.map(path), root).cache
    };
    assert_eq!(
        places(Some("/home/u"), None, false),
        Path::new("/home/u/.cache/gorego")
    );
    assert_eq!(
        places(Some("/home/u"), Some("/x"), false),
        Path::new("/x/gorego")
    );
    assert_eq!(places(None, Some("/x"), false), Path::new("/x/gorego"));
    assert_eq!(
        places(Some("/home/u"), Some("x"), false),
        Path::new("/home/u/.cache/gorego")
    );
    assert_eq!(places(None, None, false), Path::new("/var/cache/gorego"));
    assert_eq!(
        places(Some("/home/u"), Some("/x"), true),
        Path::new("/var/cache/gorego")
    );
    assert_eq!(config(&file("local_cache: {dir: ''}")), defaults());
    assert_eq!(
        defaults().local_cache.dir,
        Path::new("/home/user/.cache/gorego")
    );
}

#[test]
fn booleans_switch_the_page_on_and_off() {
    let cases = [
        ("true", Ui::On),
        ("On", Ui::On),
        ("no", Ui::Off),
        ("false", Ui::Off),
        ("LOCAL", Ui::Local),
    ];
    for (word, ui) in cases {
        let loaded = load(&file(&format!("telemetry: {{ui: {word}}}")));
        assert_eq!(loaded.config.telemetry.ui, ui, "{word}");
    }
    let problems = problems(&file("telemetry: {ui: remote}"));
    assert!(
        problems[0].contains("one of off, local, on"),
        "{problems:?}"
    );
}
