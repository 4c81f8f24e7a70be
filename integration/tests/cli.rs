//! Tests of the commands that show a running server in a terminal.
#![cfg(test)]

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Output, Stdio},
};

use bytes::Bytes;
use gorego_integration::{
    binary,
    client::{Client, add_request_metadata},
    content::{blob, digest_of, result_of},
    process::{self, describe},
    project,
    server::{self, Server},
    terminal::Terminal,
    web,
};
use prost::Message as _;
use reapi::v2::{
    Action, Digest, GetActionResultRequest, RequestMetadata, ToolDetails,
    UpdateActionResultRequest, action_cache_client::ActionCacheClient,
    command::EnvironmentVariable,
};
use rustix::process::Signal;
use tonic::Request;

const SERVED: &str = "telemetry.metrics_addr=127.0.0.1:0";
/// The sequences that leave the second screen of a terminal and show the cursor.
const RESTORED: [&str; 2] = ["\u{1b}[?1049l", "\u{1b}[?25h"];

/// Returns the command `gorego` with these words, and proxies that do not exist.
fn gorego(words: &[&str]) -> Command {
    let mut command = process::command(binary::gorego());
    server::forget_settings(&mut command);
    for name in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        command.env(name, "http://127.0.0.1:9");
    }
    command.args(words).current_dir("/").stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    let output = gorego(words).output();
    output.unwrap_or_else(|e| panic!("starting gorego {words:?}: {e}"))
}

/// Runs a command that must succeed; returns its text.
fn text_of(words: &[&str]) -> String {
    let output = run(words);
    let (text, errors) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    let status = describe(output.status);
    assert!(output.status.success(), "{words:?}: {status}: {errors}");
    String::from_utf8(text).expect("text")
}

/// Runs a command that must fail with status 1; returns its sentence.
fn sentence_of(words: &[&str]) -> String {
    let output = run(words);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {errors}");
    assert_eq!(
        (output.stdout.len(), errors.lines().count()),
        (0, 1),
        "{errors}"
    );
    errors
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// A compilation with these options.
struct Compilation {
    action: Bytes,
    command: Bytes,
}

impl Compilation {
    fn new(level: &str, variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| EnvironmentVariable {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        });
        let arguments = ["gcc", level, "-c", "main.c", "-o", "out/0"];
        let command = reapi::v2::Command {
            arguments: arguments.map(str::to_owned).to_vec(),
            environment_variables: variables.collect(),
            ..reapi::v2::Command::default()
        };
        let command = Bytes::from(command.encode_to_vec());
        let action = Action {
            command_digest: Some(digest_of(&command)),
            input_root_digest: Some(digest_of(b"")),
            ..Action::default()
        };
        let action = Bytes::from(action.encode_to_vec());
        Self { action, command }
    }

    fn digest(&self) -> Digest {
        digest_of(&self.action)
    }
}

/// Wraps a call of a build that names its target, as Bazel does.
fn call<T>(build: &str, message: T) -> Request<T> {
    let metadata = RequestMetadata {
        tool_details: Some(ToolDetails {
            tool_name: "bazel".to_owned(),
            tool_version: "8.4.2".to_owned(),
        }),
        tool_invocation_id: build.to_owned(),
        target_id: "//app:main".to_owned(),
        action_mnemonic: "CppCompile".to_owned(),
        ..RequestMetadata::default()
    };
    let mut request = Request::new(message);
    add_request_metadata(request.metadata_mut(), &metadata);
    request
}

/// Looks a compilation up, as the build `build`. Stores its result after a miss.
async fn compile(client: &Client, build: &str, compilation: &Compilation) {
    let output = blob(1, 5000);
    let mut results = ActionCacheClient::new(client.channel());
    let lookup = GetActionResultRequest {
        action_digest: Some(compilation.digest()),
        ..GetActionResultRequest::default()
    };
    if results.get_action_result(call(build, lookup)).await.is_ok() {
        return;
    }
    let blobs = [
        output.clone(),
        compilation.action.clone(),
        compilation.command.clone(),
    ];
    client.batch_upload(&blobs).await.unwrap();
    let result = UpdateActionResultRequest {
        action_digest: Some(compilation.digest()),
        action_result: Some(result_of([digest_of(&output)])),
        ..UpdateActionResultRequest::default()
    };
    results
        .update_action_result(call(build, result))
        .await
        .unwrap();
}

/// Makes a miss and a hit of one compilation, and a miss of another that differs.
async fn build(server: &Server) {
    let client = Client::connect(server.address()).await;
    let known = Compilation::new("-O2", &[]);
    compile(&client, "first-build", &known).await;
    compile(&client, "second-build", &known).await;
    let differs = Compilation::new("-O3", &[("LANG", "C")]);
    compile(&client, "second-build", &differs).await;
    // A call is counted after its response, and a miss is explained in the background.
    let path = "/api/v1/targets?label=//app:main";
    let is_explained = |response: &web::Response| {
        response.status == 200 && {
            let misses = &response.json()["misses"];
            misses[0]["miss"]["explanation"].is_object()
                && misses[1]["miss"]["explanation"].is_object()
        }
    };
    web::wait_for(server.metrics(), path, is_explained).await;
    let is_counted = |response: &web::Response| {
        let methods = response.json()["traffic"]["methods"].clone();
        let calls = methods.as_array().unwrap().iter();
        calls.map(|it| it["calls"].as_u64().unwrap()).sum::<u64>() == 7
    };
    web::wait_for(server.metrics(), "/api/v1/status", is_counted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_shows_hits_as_text_and_as_json() {
    let server = Server::start(&[SERVED]);
    build(&server).await;
    let url = url(server.metrics());
    let text = text_of(&["stats", "--url", &url]);
    let results = text
        .lines()
        .find(|line| line.starts_with("Clients") && line.contains("results"));
    let results: Vec<_> = results.expect("a line").split_whitespace().collect();
    assert_eq!(
        results,
        ["Clients", "results", "33.3", "%", "1", "2", "0", "0", "0"]
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    let json = text_of(&["stats", "--json", "--url", &url]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["status"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_find_the_server_of_the_same_configuration() {
    let server = Server::start(&[SERVED]);
    let setting = format!("telemetry.metrics_addr={}", server.metrics());
    let text = text_of(&["stats", "--set", &setting]);
    assert!(text.starts_with("gorego "), "{text}");
    let why = sentence_of(&["stats", "--set", "telemetry.metrics_addr="]);
    assert!(why.contains("telemetry.metrics_addr is empty"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_earlier_builds_are_hidden_after_a_change_of_the_patterns_of_secrets() {
    let mut server = Server::start(&[SERVED]);
    build(&server).await;
    server.ask_to_stop();
    assert!(server.wait().success());
    let folder = server.data().join("builds");
    let saved = || {
        let files = folder.read_dir().unwrap();
        // A file that is being saved is renamed meanwhile.
        let contents = files.filter_map(|file| fs::read(file.unwrap().path()).ok());
        String::from_utf8_lossy(&contents.collect::<Vec<_>>().concat()).into_owned()
    };
    assert!(saved().contains("-O3"));
    let server = server.restart_with(&[SERVED, "telemetry.redact=level"]);
    let path = "/api/v1/builds/second-build";
    let response = web::wait_for(server.metrics(), path, |response| response.status == 200).await;
    let explanation = &response.json()["misses"][0]["explanation"];
    let differences = explanation["comparison"]["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 2, "{explanation}");
    for difference in differences {
        assert_eq!(difference["after"], "[redacted]");
    }
    let page = web::get(server.metrics(), "/builds/second-build").await;
    for text in [saved(), response.content, page.content] {
        assert!(!text.contains("-O3"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_names_the_differences_of_a_miss() {
    let server = Server::start(&[SERVED]);
    build(&server).await;
    let url = url(server.metrics());
    let text = text_of(&["explain", "//app:main", "--url", &url]);
    for line in ["    - -O2", "    + -O3", "    variable LANG", "    + C"] {
        assert!(
            text.lines().any(|found| found == line),
            "no {line:?} in {text}"
        );
    }
    let action = Compilation::new("-O3", &[("LANG", "C")]).digest();
    let sized = format!("{}/{}", action.hash, action.size_bytes);
    for digest in [&action.hash, &sized, &format!("blake3/{sized}")] {
        let text = text_of(&["explain", digest, "--url", &url]);
        assert!(text.starts_with(&format!("action {sized}\n")), "{text}");
        assert!(text.contains("    + -O3\n"), "{text}");
    }
    let json = text_of(&["explain", "//app:main", "--json", "--url", &url]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        json["misses"][0]["miss"]["explanation"]["cause"]["kind"],
        "differs"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn explaining_an_unrecorded_name_is_an_error() {
    let server = Server::start(&[SERVED]);
    let url = url(server.metrics());
    let hash = digest_of(b"unknown").hash;
    for subject in ["//no:target", &hash] {
        let why = sentence_of(&["explain", subject, "--url", &url]);
        assert!(why.contains("has no record of"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_its_server_exits_with_status_1_and_a_sentence() {
    let server = Server::start(&[SERVED, "telemetry.ui=off"]);
    let cache = url(server.address());
    let page = url(server.metrics());
    for (url, part) in [
        (
            "http://127.0.0.1:9",
            "nothing answers at http://127.0.0.1:9",
        ),
        (&cache, "is no page of gorego"),
        (&page, "telemetry.ui is off"),
        ("https://localhost", "accepted: http://host:port"),
    ] {
        for command in [&["stats"][..], &["stats", "--json"], &["explain", "//a"]] {
            let mut words = command.to_vec();
            words.extend(["--url", url]);
            let why = sentence_of(&words);
            assert!(why.contains(part), "{words:?}: {why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_needs_a_terminal() {
    let server = Server::start(&[SERVED]);
    let why = sentence_of(&["top", "--url", &url(server.metrics())]);
    assert!(why.contains("needs a terminal"), "{why}");
}

/// Starts `top` and waits until it has drawn its last line.
fn top(server: &Server, columns: u16, rows: u16) -> Terminal {
    let command = gorego(&["top", "--url", &url(server.metrics())]);
    let mut terminal = Terminal::start(&command, columns, rows);
    terminal.wait_for("quits");
    assert!(!terminal.is_restored(), "keys are not read one by one");
    terminal
}

/// Waits for the end of `top`; checks its status, and that the terminal is as before.
fn assert_left(mut terminal: Terminal, status: i32) {
    let (ended, text) = terminal.wait();
    assert_eq!(ended.code(), Some(status), "{text:?}");
    for sequence in RESTORED {
        assert!(text.contains(sequence), "no {sequence:?} in {text:?}");
    }
    assert!(terminal.is_restored(), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn top_restores_the_terminal_at_each_way_to_leave() {
    let server = Server::start(&[SERVED]);
    for key in [&b"q"[..], b"\x1b", b"\x03"] {
        let mut terminal = top(&server, 80, 24);
        terminal.take_text();
        terminal.type_keys(key);
        assert_left(terminal, 0);
    }
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let terminal = top(&server, 80, 24);
        terminal.signal(signal);
        assert_left(terminal, status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_is_live_and_survives_the_end_of_its_server() {
    let mut server = Server::start(&[SERVED]);
    let mut terminal = top(&server, 120, 40);
    let text = terminal.take_text();
    assert!(!text.contains("first-build"), "{text:?}");
    build(&server).await;
    terminal.wait_for("first-build");
    terminal.wait_for("second-build");
    server.kill();
    terminal.wait_for("nothing");
    terminal.take_text();
    terminal.type_keys(b"q");
    assert_left(terminal, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn top_follows_the_size_of_the_terminal() {
    let server = Server::start(&[SERVED]);
    let mut terminal = top(&server, 80, 8);
    let text = terminal.take_text();
    assert!(!text.contains("Backing"), "{text:?}");
    terminal.resize(80, 30);
    terminal.wait_for("Backing");
    terminal.take_text();
    terminal.resize(1, 1);
    terminal.resize(81, 31);
    terminal.wait_for("Backing");
    terminal.type_keys(b"q");
    assert_left(terminal, 0);
}

/// Returns the lines that follow `command` in a block of the README.
fn example(readme: &str, command: &str) -> String {
    let begin = format!("$ {command}\n");
    let (_, after) = readme.split_once(&begin).expect("an example");
    let (text, _) = after.split_once("```").expect("the end of the block");
    text.to_owned()
}

/// Replaces what differs from server to server: numbers and their units.
fn shape(text: &str) -> Vec<String> {
    const UNITS: [&str; 13] = [
        "%", "B", "KiB", "MiB", "GiB", "TiB", "s", "ms", "µs", "min", "h", "days", "-",
    ];
    let lines = text.lines().map(|line| {
        let words = line.split_whitespace().map(|word| {
            let is_number = word.contains(|char: char| char.is_ascii_digit());
            let is_unit = UNITS.contains(&word.trim_end_matches([',', ')']));
            if is_number || is_unit { "#" } else { word }
        });
        let mut words: Vec<_> = words.collect();
        words.dedup_by(|a, b| *a == "#" && *b == "#");
        words.join(" ")
    });
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_shows_what_the_commands_print() {
    let readme = std::fs::read_to_string(project::root().join("README.md")).unwrap();
    let server = Server::start(&[SERVED]);
    build(&server).await;
    let url = url(server.metrics());
    let digest = Compilation::new("-O3", &[("LANG", "C")]).digest();
    for (command, subject) in [("stats", None), ("explain //app:main", Some(digest.hash))] {
        let mut words = vec![command.split(' ').next().unwrap()];
        words.extend(subject.as_deref());
        words.extend(["--url", &url]);
        let printed = text_of(&words);
        let shown = example(&readme, &format!("gorego {command}"));
        assert_eq!(
            shape(&shown),
            shape(&printed),
            "README:\n{shown}\nprinted:\n{printed}"
        );
    }
}
