//! Tests of the sources and their precedence.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use crate::support::{
    self, arguments, config, defaults, file, load, nothing, problem, problems, variables,
};
use gorego_config::{Config, ListenAddr, LogLevel, Origin, Places, Sources, docs};

#[test]
fn without_any_source_every_key_has_its_default() {
    let loaded = load(&nothing());
    assert_eq!(loaded.file, None);
    assert_eq!(loaded.warnings, [""; 0]);
    assert_eq!(loaded.origin("listen_addr"), Some(&Origin::Default));
    assert_eq!(
        loaded.config.listen_addr,
        ListenAddr {
            host: None,
            port: 50051
        }
    );
}

#[test]
fn an_empty_file_changes_nothing() {
    for text in ["", "# nothing\n", "---\n", "null\n", "tls:\n", "tls: {}\n"] {
        assert_eq!(config(&file(text)), defaults(), "{text}");
    }
}

#[test]
fn set_overrides_variables_and_variables_override_the_file() {
    let mut sources = file("log_level: error\n");
    let level = |sources: &Sources| {
        let loaded = load(sources);
        (
            loaded.config.log_level,
            loaded.origin("log_level").unwrap().to_string(),
        )
    };
    assert_eq!(
        level(&sources),
        (LogLevel::Error, "config.yaml:1".to_owned())
    );
    sources
        .env
        .push(("GOREGO_LOG_LEVEL".to_owned(), "debug".into()));
    assert_eq!(
        level(&sources),
        (LogLevel::Debug, "GOREGO_LOG_LEVEL".to_owned())
    );
    sources.set.push("log_level=trace".to_owned());
    assert_eq!(level(&sources), (LogLevel::Trace, "--set".to_owned()));
    sources.set.push("log_level=warn".to_owned());
    assert_eq!(level(&sources), (LogLevel::Warn, "--set".to_owned()));
    sources.set.push("log_level=null".to_owned());
    assert_eq!(level(&sources), (LogLevel::Info, "default".to_owned()));
}

#[test]
fn keys_are_accepted_in_any_letter_case() {
    let config = config(&file(
        "Local_Cache:\n  Max_Size_GB: 20\nTLS.Client_Auth: Request\n",
    ));
    assert_eq!(config.local_cache.max_size_gb.bytes(), 20 << 30);
    assert_eq!(
        support::config(&arguments(&["LOG_Level=WARN"])).log_level,
        LogLevel::Warn
    );
}

#[test]
fn scalars_are_converted_to_the_type_of_their_key() {
    let text = "local_cache: {max_size_gb: \"10\", enabled: yes, lease: 90}\n\
                limits: {max_connections: '7'}\nbacking_cache: {instance_name: 1.10}\n\
                cluster: {join_peers: 'a:1, b:2'}";
    let config = config(&file(text));
    assert_eq!(config.local_cache.max_size_gb.bytes(), 10 << 30);
    assert_eq!(config.local_cache.lease, Duration::from_secs(90));
    assert_eq!(config.limits.max_connections, 7);
    assert_eq!(config.backing_cache.instance_name, "1.10");
    assert_eq!(config.cluster.join_peers, ["a:1", "b:2"]);
}

#[test]
fn yaml_anchors_are_resolved() {
    let config = config(&file(
        "local_cache: {lease: &long 5h, upload_expiry: *long}",
    ));
    assert_eq!(config.local_cache.upload_expiry, Duration::from_hours(5));
}

#[test]
fn every_key_has_a_variable_of_its_own() {
    let reference = docs::reference();
    let rows: Vec<_> = reference
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let cells = rows.iter().map(|row| row.split('`').collect::<Vec<_>>());
    let names: Vec<_> = cells
        .map(|cells| (cells[1], cells[cells.len() - 2]))
        .collect();
    for (key, variable) in &names {
        assert_eq!(
            *variable,
            format!("GOREGO_{}", key.to_uppercase().replace('.', "_"))
        );
        let problem = problem(&variables(&[(variable, "\0")]));
        assert!(
            problem.starts_with(&format!("{variable}: {key} = ")),
            "{problem}"
        );
    }
    let unique: BTreeSet<_> = names.iter().map(|(_, variable)| variable).collect();
    assert_eq!(unique.len(), names.len());
}

#[test]
fn lists_in_variables_are_read_from_commas_or_yaml() {
    for text in ["a:1,b:2", "[a:1, 'b:2']"] {
        let config = config(&variables(&[("GOREGO_CLUSTER_JOIN_PEERS", text)]));
        assert_eq!(config.cluster.join_peers, ["a:1", "b:2"]);
    }
}

#[test]
fn an_unknown_variable_is_a_warning_with_the_nearest_name() {
    let loaded = load(&variables(&[
        ("GOREGO_LOG_LEVLE", "debug"),
        ("GOREGO_PORT_50051_TCP_PROTO", "tcp"),
        ("OTHER_LOG_LEVEL", "debug"),
    ]));
    assert_eq!(loaded.config, defaults());
    assert_eq!(
        loaded.warnings,
        [
            "unknown variable GOREGO_LOG_LEVLE ignored; did you mean `GOREGO_LOG_LEVEL`?",
            "unknown variable GOREGO_PORT_50051_TCP_PROTO ignored",
        ]
    );
}

#[test]
fn variables_of_the_build_tools_are_ignored_without_a_warning() {
    let loaded = load(&variables(&[
        ("GOREGO_BAZEL", "root"),
        ("GOREGO_BAZEL_CONTAINED", "yes"),
        ("GOREGO_BAZEL_REGISTRY", "https://example.com"),
        ("GOREGO_CLIENT_ROOT", "/root"),
        ("GOREGO_REQUIRE_CLIENT_ROOT", "1"),
    ]));
    assert_eq!(loaded.config, defaults());
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn an_empty_variable_counts_as_not_set_and_an_empty_argument_as_the_default() {
    let mut sources = file("log_level: error\ntelemetry: {metrics_addr: ':1'}\n");
    sources.env = variables(&[("GOREGO_LOG_LEVEL", ""), ("GOREGO_NOTHING", "")]).env;
    let loaded = load(&sources);
    assert_eq!(loaded.config.log_level, LogLevel::Error);
    sources.set = vec![
        "log_level=".to_owned(),
        "telemetry.metrics_addr=".to_owned(),
    ];
    let config = config(&sources);
    assert_eq!(config.log_level, LogLevel::Info);
    assert_eq!(config.telemetry.metrics_addr, None);
}

#[test]
fn a_variable_that_is_not_utf8_is_refused() {
    let value = OsString::from_vec(vec![b'a', 0xff]);
    let sources = Sources {
        env: vec![("GOREGO_LOCAL_CACHE_DIR".into(), value)],
        ..nothing()
    };
    assert!(problem(&sources).contains("GOREGO_LOCAL_CACHE_DIR: local_cache.dir"));
}

#[test]
fn an_argument_without_a_value_or_with_an_unknown_key_is_refused() {
    let found = problems(&arguments(&[
        "log_level",
        "local_cache=1",
        "max_size_gb=5",
        "zzz=1",
    ]));
    assert_eq!(found.len(), 4, "{found:#?}");
    assert_eq!(found[0], "--set log_level: expected key=value");
    assert!(
        found[1].contains("expected a section with some of the keys enabled, dir, max_size_gb")
    );
    assert!(found[2].ends_with("key `max_size_gb`; did you mean `local_cache.max_size_gb`?"));
    assert!(found[3].starts_with("--set: unknown key `zzz`"));
}

#[test]
fn a_section_set_to_a_scalar_is_refused_without_showing_it() {
    for (argument, name) in [
        ("tls=null", "tls"),
        ("backing_cache=user:pw@host", "backing_cache"),
    ] {
        let problem = problem(&arguments(&[argument]));
        let expected = format!("--set: {name} = ...: expected a section with some of the keys ");
        assert!(problem.starts_with(&expected), "{problem}");
        assert!(!problem.contains("pw"), "{problem}");
    }
}

#[test]
fn warnings_about_variables_are_in_order_of_their_names() {
    let warnings = load(&variables(&[
        ("GOREGO_ZZZZZZ", "1"),
        ("GOREGO_AAAAAA", "1"),
        ("GOREGO_ZZZZZZ", "2"),
    ]))
    .warnings;
    let names: Vec<_> = warnings
        .iter()
        .filter_map(|warning| warning.split(' ').nth(2))
        .collect();
    assert_eq!(names, ["GOREGO_AAAAAA", "GOREGO_ZZZZZZ"]);
}

#[test]
fn paths_start_in_the_working_directory_or_the_home_directory() {
    let config = config(&file(
        "local_cache: {dir: cache}\ntls: {cert_file: ~/cert.pem}\n",
    ));
    assert_eq!(config.local_cache.dir, Path::new("/base/cache"));
    assert_eq!(config.tls.cert_file, Path::new("/home/user/cert.pem"));
    assert_eq!(config.tls.key_file, Path::new(""));

    let mut homeless = arguments(&["local_cache.dir=~/cache"]);
    homeless.places.home = None;
    assert!(
        problem(&homeless).contains("needs HOME"),
        "{}",
        problem(&homeless)
    );
}

fn places_in(base: &Path) -> Places {
    Places::new(base.to_owned(), None, None, false)
}

#[test]
fn the_default_file_is_read_if_it_exists() {
    let dir = tempfile::tempdir().unwrap();
    let places = places_in(dir.path());
    assert_eq!(Sources::read_file(&places, None).unwrap(), None);

    fs::write(dir.path().join("config.yaml"), "log_level: debug\n").unwrap();
    let found = Sources::read_file(&places, None).unwrap();
    let loaded = Config::load(&Sources {
        file: found,
        ..nothing()
    })
    .unwrap();
    assert_eq!(loaded.config.log_level, LogLevel::Debug);
    assert_eq!(loaded.file.as_deref(), Some(Path::new("config.yaml")));
}

#[test]
fn a_named_file_that_is_missing_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let places = places_in(dir.path());
    let error = Sources::read_file(&places, Some(Path::new("other.yaml"))).unwrap_err();
    assert!(
        error.starts_with("cannot read the configuration file other.yaml: "),
        "{error}"
    );
    fs::write(dir.path().join("other.yaml"), "").unwrap();
    let found = Sources::read_file(&places, Some(Path::new("other.yaml"))).unwrap();
    assert_eq!(found, Some(("other.yaml".into(), String::new())));
}

#[test]
fn a_file_that_is_not_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let places = places_in(dir.path());
    let path = dir.path().join("config.yaml");
    fs::write(&path, b"log_level: info\n# \xff\n").unwrap();
    let error = Sources::read_file(&places, None).unwrap_err();
    assert_eq!(error, "config.yaml: not UTF-8 text at line 2");
    fs::write(&path, vec![b'\n'; (1 << 20) + 1]).unwrap();
    assert!(
        Sources::read_file(&places, None)
            .unwrap_err()
            .contains("longer than")
    );
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(
        Sources::read_file(&places, None)
            .unwrap_err()
            .starts_with("cannot read")
    );
}

/// Checks the sources in the child process of the test below.
fn assert_sources_of_a_bazel_run(sources: &Sources, base: &Path) {
    assert_eq!(sources.places.base, base);
    assert_eq!(
        sources.places.home.as_deref(),
        Some(Path::new("/home/someone"))
    );
    assert!(
        sources
            .env
            .iter()
            .all(|(name, _)| name.starts_with("GOREGO_"))
    );
    let config = config(sources);
    assert_eq!(config.log_level, LogLevel::Warn);
    assert_eq!(config.limits.max_connections, 5);
    assert_eq!(config.local_cache.dir, base.join("from-the-file"));
}

#[test]
fn relative_paths_under_bazel_run_start_in_the_directory_of_the_user() {
    const MARKER: &str = "GOREGO_TEST_BASE";
    if let Some(base) = env::var_os(MARKER) {
        let sources = Sources::from_process(None, vec!["log_level=warn".to_owned()]).unwrap();
        return assert_sources_of_a_bazel_run(&sources, Path::new(&base));
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("config.yaml"),
        "local_cache: {dir: from-the-file}\n",
    )
    .unwrap();
    let child = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "sources::relative_paths_under_bazel_run_start_in_the_directory_of_the_user",
        ])
        .env(MARKER, dir.path())
        .env("BUILD_WORKING_DIRECTORY", dir.path())
        .env("HOME", "/home/someone")
        .env("GOREGO_LIMITS_MAX_CONNECTIONS", "5")
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stdout)
    );
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
}
