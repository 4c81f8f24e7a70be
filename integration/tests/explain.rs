//! Misses of Bazel, one for each cause, and their explanations by the server.
#![cfg(test)]

use std::{fs, path::Path};

use bytes::Bytes;
use gorego_integration::{
    bazel::{Build, Checkout},
    client::Client,
    lock::Lock,
    server::Server,
    web, workspace,
};
use serde_json::Value;

const PAGE: &str = "telemetry.metrics_addr=127.0.0.1:0";
/// The size of the blobs that displace others from the cache.
const MIB: usize = 1 << 20;

/// Writes a workspace whose target `//:top` runs `command` on `source.txt`.
fn write(dir: &Path, command: &str) {
    workspace::write_two_steps(dir, 1);
    let build = format!(
        "genrule(name = \"top\", srcs = [\"source.txt\"], outs = [\"top.txt\"], cmd = \"{command}\")\n"
    );
    workspace::write(dir, "BUILD.bazel", &build);
}

fn checkout(command: &str) -> Checkout {
    Checkout::new(|dir| write(dir, command))
}

const COPY: &str = "cp $< $@";

/// Builds `//:top`; returns the id of the build.
fn build(server: &Server, checkout: &Checkout, options: &[&str]) -> String {
    let mut arguments = vec!["build", "//:top"];
    arguments.extend(options);
    let Build { console, .. } = checkout.bazel(&server.grpc_url(), &[], &arguments);
    let id = console.split("Invocation ID: ").nth(1);
    let id = id.and_then(|rest| rest.split_whitespace().next());
    id.unwrap_or_else(|| panic!("no invocation id in {console}"))
        .to_owned()
}

/// Returns the one miss of a build, once it is recorded and `is_done`.
async fn miss(server: &Server, build: &str, is_done: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/api/v1/builds/{build}");
    let met =
        |response: &web::Response| response.status == 200 && is_done(&response.json()["misses"][0]);
    let response = web::wait_for(server.metrics(), &path, met).await;
    let misses = &response.json()["misses"];
    assert_eq!(misses.as_array().map(Vec::len), Some(1), "{misses}");
    assert_eq!(misses[0]["target"], "//:top");
    assert_eq!(misses[0]["mnemonic"], "Genrule");
    misses[0].clone()
}

/// Returns the explanation of the one miss of a build.
async fn explanation(server: &Server, build: &str) -> Value {
    let miss = miss(server, build, |miss| !miss["explanation"].is_null()).await;
    miss["explanation"].clone()
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

#[tokio::test]
async fn changes_of_an_action_are_named() {
    let _lock = Lock::bazel();
    let server = Server::start(&[PAGE]);
    let checkout = checkout(COPY);
    let first = build(&server, &checkout, &[]);
    let explained = explanation(&server, &first).await;
    assert_eq!(explained["cause"]["kind"], "never_seen", "{explained}");

    write(&checkout.source(), "cp -f $< $@");
    let changed = build(&server, &checkout, &[]);
    let found = differences(&explanation(&server, &changed).await);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("argument 3: "), "{found:?}");
    assert!(
        found[0].contains("cp source.txt") && found[0].contains("cp -f source.txt"),
        "{found:?}"
    );

    let environment = ["--action_env=MODE=fast", "--action_env=API_TOKEN=hunter2"];
    let changed = build(&server, &checkout, &environment);
    let found = differences(&explanation(&server, &changed).await);
    assert_eq!(
        found,
        [
            "variable API_TOKEN: - > [redacted]",
            "variable MODE: - > fast"
        ]
    );
    let environment = ["--action_env=MODE=fast", "--action_env=API_TOKEN=hunter3"];
    let changed = build(&server, &checkout, &environment);
    let found = differences(&explanation(&server, &changed).await);
    assert_eq!(found, ["variable API_TOKEN: [redacted] > [redacted]"]);

    workspace::write(&checkout.source(), "source.txt", "second\n");
    let changed = build(&server, &checkout, &environment);
    let explained = explanation(&server, &changed).await;
    let found = differences(&explained);
    // Bazel does not upload inputs for remote caching, so that only the root is known to differ.
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("input (input root): "), "{found:?}");
    let worth = explained["worth"].as_str().unwrap();
    assert!(worth.contains("remote caching never uploads"), "{worth}");

    // The action itself is shown without its secret, too.
    let missed = miss(&server, &changed, |_| true).await;
    let path = format!("/api/v1/actions/{}", missed["action"].as_str().unwrap());
    let action = web::get(server.metrics(), &path).await;
    assert!(action.content.contains("cp -f source.txt"), "{action:?}");
    assert!(action.content.contains("\"[redacted]\""), "{action:?}");
    assert_no_file_contains(&server.data().join("builds"), b"hunter");
    assert!(!action.content.contains("hunter"), "{action:?}");
}

/// Checks that no file in `folder` contains `text`.
fn assert_no_file_contains(folder: &Path, text: &[u8]) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("a readable folder").path();
        let content = fs::read(&path).expect("a readable file");
        let found = content.windows(text.len()).any(|part| part == text);
        assert!(!found, "{} contains a secret", path.display());
    }
}

#[tokio::test]
async fn an_action_that_a_client_does_not_upload_is_not_explained_by_a_guess() {
    let _lock = Lock::bazel();
    let server = Server::start(&[PAGE]);
    let first = build(&server, &checkout(COPY), &[]);
    explanation(&server, &first).await;
    let reader = checkout("cp -f $< $@");
    let unknown = build(&server, &reader, &["--noremote_upload_local_results"]);
    let missed = miss(&server, &unknown, |miss| !miss.is_null()).await;
    assert_eq!(missed["explanation"], Value::Null);
    let path = format!("/api/v1/actions/{}", missed["action"].as_str().unwrap());
    let action = web::get(server.metrics(), &path).await.json();
    let explained = &action["explanation"];
    assert_eq!(explained["cause"]["kind"], "not_uploaded", "{action}");
    let sentence = "Unknown: the client never uploaded the action.";
    assert_eq!(explained["sentence"], sentence);
}

#[tokio::test]
async fn a_result_whose_output_was_removed_is_incomplete_after_a_crash() {
    let _lock = Lock::bazel();
    let server = Server::start(&[PAGE]);
    let first = build(&server, &checkout(COPY), &[]);
    let before = explanation(&server, &first).await;
    // Builds are saved within seconds.
    let folder = server.data().join("builds");
    let is_saved = || fs::read_dir(&folder).is_ok_and(|mut files| files.next().is_some());
    let wait = async {
        while !is_saved() {
            tokio::task::yield_now().await;
        }
    };
    let saved = tokio::time::timeout(std::time::Duration::from_mins(1), wait).await;
    saved.expect("no build was saved within a minute");
    // The content of source.txt is also that of the output.
    let output = gorego_integration::content::digest_of(b"first\n");
    let hash = &output.hash;
    let file = server
        .data()
        .join("cas")
        .join(&hash[..2])
        .join(&hash[2..4])
        .join(hash);
    fs::remove_file(file).expect("the output is in the cache");

    let server = server.restart();
    assert_eq!(
        explanation(&server, &first).await,
        before,
        "the build survives kill -9"
    );
    let again = build(&server, &checkout(COPY), &[]);
    let explained = explanation(&server, &again).await;
    let blob = format!("{hash}/{}", output.size_bytes);
    let expected = serde_json::json!({"kind": "incomplete", "blob": blob, "evicted_ms": null});
    assert_eq!(explained["cause"], expected, "{explained}");
}

#[tokio::test]
async fn an_evicted_result_is_distinguished_from_one_never_seen() {
    let _lock = Lock::bazel();
    let settings = [
        PAGE,
        "local_cache.max_size_gb=0.02",
        "local_cache.lease=0s",
        "local_cache.upload_lease=0s",
    ];
    let server = Server::start(&settings);
    let first = build(&server, &checkout(COPY), &[]);
    explanation(&server, &first).await;
    let client = Client::connect(server.address()).await;
    for seed in 0..40u8 {
        let blob = Bytes::from(vec![seed; MIB + usize::from(seed)]);
        client
            .upload_whole(&blob)
            .await
            .expect("the cache makes room");
    }
    let again = build(&server, &checkout(COPY), &[]);
    let explained = explanation(&server, &again).await;
    assert_eq!(explained["cause"]["kind"], "evicted", "{explained}");
    assert!(
        explained["cause"]["at_ms"]
            .as_u64()
            .is_some_and(|at| at > 0),
        "{explained}"
    );
}
