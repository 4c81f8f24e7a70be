//! Misses of Bazel, one for each cause, and their explanations by the server.
#![cfg(test)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use gorego_integration::{
    bazel::BazelServer,
    client::Client,
    content::digest_of,
    lock::Lock,
    peer::{FaultyPeer, Offer},
    server::Server,
    web, workspace,
};
use reapi::v2::Digest;
use serde_json::{Value, json};

const PAGE: &str = "telemetry.metrics_addr=127.0.0.1:0";
/// The size of the blobs that displace others from the cache.
const MIB: usize = 1 << 20;
/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

const COPY: &str = "cp $< $@";
const COPY_BY_FORCE: &str = "cp -f $< $@";

/// A package of the workspace. Its target `top` runs a command on the file `source.txt`.
struct Package<'a> {
    bazel: &'a mut BazelServer,
    name: &'static str,
}

impl<'a> Package<'a> {
    fn new(bazel: &'a mut BazelServer, name: &'static str, command: &str) -> Self {
        let package = Self { bazel, name };
        package.write("source.txt", &package.source());
        package.command(command);
        package
    }

    /// Returns the content of `source.txt`, which no other package has.
    fn source(&self) -> String {
        format!("source of {}\n", self.name)
    }

    fn write(&self, file: &str, content: &str) {
        let folder = self.bazel.source().join(self.name);
        workspace::write(&folder, file, content);
    }

    /// Changes the command.
    fn command(&self, command: &str) {
        let build = format!(
            "genrule(name = \"top\", srcs = [\"source.txt\"], outs = [\"top.txt\"], cmd = \"{command}\")\n"
        );
        self.write("BUILD.bazel", &build);
    }

    /// Builds the target; returns the id of the build.
    fn build(&mut self, server: &Server, options: &[&str]) -> String {
        let target = self.target();
        let mut arguments = vec!["build", target.as_str()];
        arguments.extend(options);
        let build = self.bazel.build(&server.grpc_url(), &arguments);
        let id = build.console.split("Invocation ID: ").nth(1);
        let id = id.and_then(|rest| rest.split_whitespace().next());
        id.unwrap_or_else(|| panic!("no invocation id in {}", build.console))
            .to_owned()
    }

    /// Builds the target; returns the one miss, once it is explained.
    async fn miss(&mut self, server: &Server, options: &[&str]) -> Value {
        let build = self.build(server, options);
        self.miss_of(server, &build, |miss| !miss["explanation"].is_null())
            .await
    }

    /// Builds the target; returns the explanation of the one miss.
    async fn explanation(&mut self, server: &Server, options: &[&str]) -> Value {
        self.miss(server, options).await["explanation"].take()
    }

    /// Returns the one miss of a build, once it is recorded and `is_done`.
    async fn miss_of(
        &self,
        server: &Server,
        build: &str,
        is_done: impl Fn(&Value) -> bool,
    ) -> Value {
        let path = format!("/api/v1/builds/{build}");
        let met = |response: &web::Response| {
            response.status == 200 && is_done(&response.json()["misses"][0])
        };
        let response = web::wait_for(server.metrics(), &path, met).await;
        let misses = &response.json()["misses"];
        assert_eq!(misses.as_array().map(Vec::len), Some(1), "{misses}");
        assert_eq!(misses[0]["target"], self.target());
        assert_eq!(misses[0]["mnemonic"], "Genrule");
        misses[0].clone()
    }

    fn target(&self) -> String {
        format!("//{}:top", self.name)
    }
}

/// Returns the differences of an explanation as `aspect name: before > after`.
fn differences(explanation: &Value) -> Vec<String> {
    assert_eq!(explanation["cause"]["kind"], "differs", "{explanation}");
    let text = |side: &Value| side.as_str().unwrap_or("-").to_owned();
    let render = |it: &Value| {
        let (aspect, name) = (text(&it["aspect"]), text(&it["name"]));
        format!(
            "{aspect} {name}: {} > {}",
            text(&it["before"]),
            text(&it["after"])
        )
    };
    let differences = explanation["comparison"]["differences"].as_array();
    differences
        .expect("a comparison")
        .iter()
        .map(render)
        .collect()
}

/// Returns an action as the server shows it.
async fn action(server: &Server, miss: &Value) -> web::Response {
    let path = format!("/api/v1/actions/{}", text(&miss["action"]));
    web::get(server.metrics(), &path).await
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// Returns the path of a file of the cache by the first four digits of its name.
fn entry(server: &Server, folder: &str, hash: &str) -> PathBuf {
    let folder = server.data().join(folder);
    folder.join(&hash[..2]).join(&hash[2..4]).join(hash)
}

/// Checks that no file in `folder` contains `text`.
fn assert_no_file_contains(folder: &Path, text: &[u8]) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("a readable folder").path();
        // A file that is being saved is renamed meanwhile.
        let Ok(content) = fs::read(&path) else {
            continue;
        };
        let found = content.windows(text.len()).any(|part| part == text);
        assert!(!found, "{} contains a secret", path.display());
    }
}

#[tokio::test]
async fn each_cause_of_a_miss_is_explained() {
    let _lock = Lock::bazel();
    let bazel = &mut BazelServer::new(workspace::write_base);
    let server = Server::start(&[PAGE]);
    changes_of_an_action_are_named(&server, bazel).await;
    an_input_that_differs_is_named_if_the_client_uploads_inputs(&server, bazel).await;
    a_result_under_another_instance_name_is_named(&server, bazel).await;
    an_action_that_the_client_does_not_upload_is_not_explained_by_a_guess(&server, bazel).await;
    a_corrupt_result_is_lost(&server, bazel).await;
    a_result_whose_output_was_removed_is_incomplete_after_a_crash(server, bazel).await;
    an_evicted_result_is_distinguished_from_one_never_seen(bazel).await;
    a_miss_in_an_outage_names_the_outage(bazel).await;
}

async fn changes_of_an_action_are_named(server: &Server, bazel: &mut BazelServer) {
    let mut package = Package::new(bazel, "changes", COPY);
    let explained = package.explanation(server, &[]).await;
    assert_eq!(explained["cause"], json!({"kind": "never_seen"}));

    package.command(COPY_BY_FORCE);
    let found = differences(&package.explanation(server, &[]).await);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("argument 3: "), "{found:?}");
    let has = |part| found[0].contains(part);
    assert!(
        has("cp changes/source.txt") && has("cp -f changes/source.txt"),
        "{found:?}"
    );

    let mut options = vec!["--remote_default_exec_properties=pool=large"];
    let found = differences(&package.explanation(server, &options).await);
    assert_eq!(found, ["platform pool: - > large"]);

    options.extend(["--action_env=MODE=fast", "--action_env=API_TOKEN=hunter2"]);
    let found = differences(&package.explanation(server, &options).await);
    assert_eq!(
        found,
        [
            "variable API_TOKEN: - > [redacted]",
            "variable MODE: - > fast"
        ]
    );
    options.push("--action_env=API_TOKEN=hunter3");
    let found = differences(&package.explanation(server, &options).await);
    assert_eq!(found, ["variable API_TOKEN: [redacted] > [redacted]"]);

    package.write("source.txt", "second\n");
    let missed = package.miss(server, &options).await;
    let found = differences(&missed["explanation"]);
    // Bazel does not upload inputs for remote caching, so that only the root is known to differ.
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("input (input root): "), "{found:?}");
    let evidence = text(&missed["explanation"]["evidence"]);
    assert!(
        evidence.contains("remote caching never uploads"),
        "{evidence}"
    );

    // The action itself is shown without its secret, too.
    let action = action(server, &missed).await;
    assert!(
        action.content.contains("cp -f changes/source.txt"),
        "{action:?}"
    );
    assert!(action.content.contains("\"[redacted]\""), "{action:?}");
    assert_no_file_contains(&server.data().join("builds"), b"hunter");
    assert!(!action.content.contains("hunter"), "{action:?}");
}

async fn an_input_that_differs_is_named_if_the_client_uploads_inputs(
    server: &Server,
    bazel: &mut BazelServer,
) {
    let mut package = Package::new(bazel, "inputs", COPY);
    // Bazel uploads all inputs for remote execution, and runs the action itself when that fails.
    let executor = FaultyPeer::with(Offer {
        executes: true,
        ..Offer::default()
    });
    let executor = format!("--remote_executor={}", executor.grpc_url());
    let options = [
        executor.as_str(),
        "--spawn_strategy=remote",
        "--remote_local_fallback",
    ];
    let first = digest_of(package.source().as_bytes());
    let explained = package.explanation(server, &options).await;
    assert_eq!(explained["cause"], json!({"kind": "never_seen"}));

    package.write("source.txt", "another source\n");
    let second = digest_of(b"another source\n");
    let found = differences(&package.explanation(server, &options).await);
    let (before, after) = (name(&first), name(&second));
    // Bazel marks all inputs as executable.
    let expected = format!("input inputs/source.txt: {before}, executable > {after}, executable");
    assert_eq!(found, [expected]);
}

/// Returns a digest as the server shows it.
fn name(digest: &Digest) -> String {
    format!("{}/{}", digest.hash, digest.size_bytes)
}

async fn a_result_under_another_instance_name_is_named(server: &Server, bazel: &mut BazelServer) {
    let mut package = Package::new(bazel, "instances", COPY);
    let options = ["--remote_instance_name=team/one"];
    package.explanation(server, &options).await;
    package.bazel.clean();
    let options = ["--remote_instance_name=team/two"];
    let explained = package.explanation(server, &options).await;
    let expected = json!({"kind": "other_instance", "instance": "team/one"});
    assert_eq!(explained["cause"], expected, "{explained}");
    let sentence = text(&explained["sentence"]);
    assert!(
        sentence.contains("team/one") && sentence.contains("team/two"),
        "{sentence}"
    );
}

async fn an_action_that_the_client_does_not_upload_is_not_explained_by_a_guess(
    server: &Server,
    bazel: &mut BazelServer,
) {
    let mut package = Package::new(bazel, "reader", COPY);
    package.explanation(server, &[]).await;
    package.command(COPY_BY_FORCE);
    let unknown = package.build(server, &["--noremote_upload_local_results"]);
    let missed = package.miss_of(server, &unknown, |miss| !miss.is_null());
    let missed = missed.await;
    assert_eq!(missed["explanation"], Value::Null);
    let action = action(server, &missed).await.json();
    let explained = &action["explanation"];
    assert_eq!(explained["cause"], json!({"kind": "not_uploaded"}));
    let sentence = "Unknown: the client never uploaded the action.";
    assert_eq!(explained["sentence"], sentence);
}

async fn a_corrupt_result_is_lost(server: &Server, bazel: &mut BazelServer) {
    let mut package = Package::new(bazel, "corrupt", COPY);
    let missed = package.miss(server, &[]).await;
    let hash = text(&missed["action"]).split('/').next().unwrap();
    // The folder of results of SHA-256 actions under the empty instance name, whose hash is its name.
    let folder = "ac/sha256/e3b0c44298fc1c149afbf4c8996fb924";
    let file = entry(server, folder, hash);
    let mut content = fs::read(&file).expect("the result is in the cache");
    content.reverse();
    fs::write(&file, content).expect("a writable file");

    package.bazel.clean();
    let again = package.miss(server, &[]).await;
    let stored = json!({"kind": "lost", "stored_ms": missed["stored_ms"]});
    assert_eq!(again["action"], missed["action"]);
    assert_eq!(again["explanation"]["cause"], stored, "{again}");
    let quarantined = fs::read_dir(server.data().join("quarantine"));
    assert_eq!(quarantined.expect("a folder").count(), 1);
}

async fn a_result_whose_output_was_removed_is_incomplete_after_a_crash(
    server: Server,
    bazel: &mut BazelServer,
) {
    let mut package = Package::new(bazel, "removed", COPY);
    let first = package.build(&server, &[]);
    let is_explained = |miss: &Value| !miss["explanation"].is_null();
    let before = package.miss_of(&server, &first, is_explained).await;
    // Builds are saved within seconds.
    let folder = server.data().join("builds");
    let is_saved = || {
        let files = fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut contents = files.filter_map(|file| fs::read(file.path()).ok());
        contents.any(|content| String::from_utf8_lossy(&content).contains(&first))
    };
    let wait = async {
        while !is_saved() {
            tokio::task::yield_now().await;
        }
    };
    let saved = tokio::time::timeout(PATIENCE, wait).await;
    saved.expect("the build was not saved within a minute");
    // The content of source.txt is also that of the output.
    let output = digest_of(package.source().as_bytes());
    fs::remove_file(entry(&server, "cas", &output.hash)).expect("the output is in the cache");

    let server = server.restart();
    let after = package.miss_of(&server, &first, is_explained).await;
    assert_eq!(after, before, "the build survives kill -9");
    package.bazel.clean();
    let explained = package.explanation(&server, &[]).await;
    let expected = json!({"kind": "incomplete", "blob": name(&output), "evicted_ms": null});
    assert_eq!(explained["cause"], expected, "{explained}");
}

async fn an_evicted_result_is_distinguished_from_one_never_seen(bazel: &mut BazelServer) {
    let server = Server::start(&[
        PAGE,
        "local_cache.max_size_gb=0.02",
        "local_cache.lease=0s",
        "local_cache.upload_lease=0s",
    ]);
    let mut package = Package::new(bazel, "evicted", COPY);
    let first = package.miss(&server, &[]).await;
    let client = Client::connect(server.address()).await;
    for seed in 0..40u8 {
        let blob = Bytes::from(vec![seed; MIB + usize::from(seed)]);
        client
            .upload_whole(&blob)
            .await
            .expect("the cache makes room");
    }
    package.command(COPY_BY_FORCE);
    let explained = package.explanation(&server, &[]).await;
    assert_eq!(explained["cause"], json!({"kind": "not_comparable"}));
    let sentence = text(&explained["sentence"]);
    let reason = format!("action {} is not in the cache", text(&first["action"]));
    assert!(sentence.contains(&reason), "{sentence}");

    package.command(COPY);
    let again = package.miss(&server, &[]).await;
    assert_eq!(again["action"], first["action"]);
    let cause = &again["explanation"]["cause"];
    assert_eq!(cause["kind"], "evicted", "{again}");
    let ms = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no time: {value}"));
    // Evictions are recorded to the second.
    let evicted = ms(&cause["at_ms"]);
    let (stored, missed) = (ms(&first["stored_ms"]), ms(&again["at_ms"]));
    assert!(
        stored / 1000 * 1000 <= evicted && evicted <= missed,
        "{cause}"
    );
}

async fn a_miss_in_an_outage_names_the_outage(bazel: &mut BazelServer) {
    // No program listens on this port.
    let target = "grpc://127.0.0.1:1";
    let settings = [PAGE, "backing_cache.on_outage=degrade"];
    let server = Server::in_front_of(target, &settings);
    let mut package = Package::new(bazel, "outage", COPY);
    let explained = package.explanation(&server, &[]).await;
    assert_eq!(explained["cause"], json!({"kind": "outage"}), "{explained}");
    let sentence = text(&explained["sentence"]);
    assert!(sentence.contains("did not answer"), "{sentence}");
}
