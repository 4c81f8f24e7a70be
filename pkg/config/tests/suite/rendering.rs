//! Tests of the output of `gorego config`.

use crate::support::{self, arguments, config, file, load, nothing, problem};

const TEXT: &str = r#"
log_level: debug
local_cache:
  dir: "/a \"quoted\" #dir\\"
  max_size_gb: 0.3
  lease: 1h30m
limits: {max_batch_bytes: 1MB}
telemetry: {metrics_addr: "[::1]:9"}
execution: {sandbox: {writable_paths: ["/a, b", "/c"]}}
"#;

#[test]
fn each_value_is_shown_with_its_source() {
    let mut sources = file(TEXT);
    sources.env = support::variables(&[("GOREGO_LIMITS_DRAIN_TIMEOUT", "5")]).env;
    sources.set = vec!["cluster.node_id=me".to_owned()];
    let text = load(&sources).render();
    for line in [
        "listen_addr: \":50051\" # default",
        "log_level: debug # config.yaml:2",
        "  lease: 1h30m # config.yaml:6",
        "  max_batch_bytes: 1MB # config.yaml:7",
        "  drain_timeout: 5s # GOREGO_LIMITS_DRAIN_TIMEOUT",
        "  sandbox:",
        "    writable_paths: [\"/a, b\", \"/c\"] # config.yaml:9",
        "  node_id: \"me\" # --set",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}

#[test]
fn the_output_loads_as_the_same_configuration() {
    for sources in [
        nothing(),
        file(TEXT),
        arguments(&["listen_addr=localhost:0"]),
    ] {
        let loaded = load(&sources);
        assert_eq!(config(&file(&loaded.render())), loaded.config);
    }
}

#[test]
fn secrets_are_never_shown() {
    let loaded = load(&file("backing_cache: {headers: {authorization: letmein}}"));
    let text = loaded.render();
    assert_eq!(loaded.config.backing_cache.headers.0[0].value, "letmein");
    assert!(
        text.contains("  # headers: <hidden> # config.yaml:1\n"),
        "{text}"
    );
    assert!(!text.contains("letmein"), "{text}");
    assert!(!format!("{loaded:?}").contains("letmein"));
    load(&file(&text));

    for text in [
        "backing_cache: {headers: letmein}",
        "backing_cache: {header: {authorization: letmein}}",
        "backing_cache: {headers: {authorization: letmein}}}",
    ] {
        let problem = problem(&file(text));
        assert!(!problem.contains("letmein"), "{problem}");
    }
}

#[test]
fn the_user_and_password_of_a_target_are_never_shown() {
    let loaded = load(&file(
        "backing_cache: {target: \"grpcs://user:letmein@cache\"}",
    ));
    let target = loaded.config.backing_cache.target.clone().unwrap();
    assert!(target.authorization.is_some());
    let text = loaded.render();
    let line = "  # target: \"grpcs://<hidden>@cache\" # config.yaml:1\n";
    assert!(text.contains(line), "{text}");
    assert!(!format!("{text}{loaded:?}{target}").contains("letmein"));
    // `user:letmein` in Base64.
    assert!(!format!("{text}{loaded:?}").contains("bGV0bWVpb"));
    load(&file(&text));

    let plain = load(&arguments(&["backing_cache.target=user:letmein@cache:1"]));
    let warnings = plain.warnings.join("\n");
    assert!(warnings.contains("in plain text"), "{warnings}");
    assert!(!warnings.contains("letmein"), "{warnings}");

    for argument in [
        "backing_cache.target=grpcs://user:%letmein@cache",
        "backing_cache.target=user:let/me@in/letmein@cache:1",
        "backing_cache.target=http://user:letmein@cache:1",
        "backing_cache=grpcs://user:letmein@cache",
        "listen_addr=grpcs://user:letmein@cache",
        "backing_cache.target:grpcs://user:letmein@cache",
    ] {
        let problem = problem(&arguments(&[argument]));
        assert!(!problem.contains("letmein"), "{problem}");
        assert!(problem.contains("backing_cache") || problem.contains("listen_addr"));
    }
}
