//! Tests of the pages of builds, targets and actions, and of their JSON.
#![cfg(test)]

use std::collections::BTreeSet;

use bytes::Bytes;
use gorego_integration::{
    binary,
    client::Client,
    content::{digest_of, result_of},
    executor::{Executor, ON, TestAction},
    link::Link,
    metrics::Metrics,
    package::read,
    peer::FaultyPeer,
    process,
    server::Server,
    web::{Response, get, wait_for},
};
use prost::Message as _;
use reapi::v2::{Action, Command, Digest, Directory, DirectoryNode, FileNode};
use serde_json::Value;

/// The settings of a node of a cluster.
const IN_CLUSTER: [&str; 3] = [
    "cluster.enabled=true",
    "cluster.bind_addr=127.0.0.1",
    "cluster.bind_port=0",
];
const SERVED: &str = "telemetry.metrics_addr=127.0.0.1:0";

#[tokio::test(flavor = "multi_thread")]
async fn builds_are_removed_once_they_may_not_be_kept() {
    for setting in ["telemetry.ui=off", "telemetry.history_max=0"] {
        let mut server = Server::start(&[SERVED]);
        Client::miss_in_build(server.address(), "build", "//pkg:t", &digest_of(b"action")).await;
        server.ask_to_stop();
        assert!(server.wait().success());
        let folder = server.data().join("builds");
        let mut files = folder.read_dir().unwrap().map(|file| file.unwrap().path());
        assert!(files.any(|file| file.extension().is_some_and(|end| end == "build")));
        let server = server.restart_with(&[SERVED, setting]);
        let removed = format!(
            "removed the builds of earlier runs in {}",
            server.data().display()
        );
        server.wait_for_log(&removed);
        assert!(!folder.exists(), "{setting}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_in_an_outage_of_the_backing_cache_is_shown_as_such() {
    let peer = FaultyPeer::start();
    let link = Link::to(peer.address());
    let settings = [
        SERVED,
        "backing_cache.on_outage=degrade",
        "backing_cache.put_retry_count=0",
    ];
    let server = Server::in_front_of(&link.grpc_url(), &settings);
    let action = digest_of(b"action");
    peer.put_action("", &action, result_of([]));
    link.down();
    let client = Client::connect(server.address()).await;
    let missed = client.get_action(&action).await.unwrap_err();
    let named = "in the local tier, and the backing cache did not answer";
    assert!(missed.message().contains(named), "{missed}");
    Client::miss_in_build(server.address(), "build", "//:t", &action).await;
    let metrics = Metrics::of(server.metrics()).await;
    let outcome = |outcome: &str| {
        let labels = format!("kind=\"result\",tier=\"client\",outcome=\"{outcome}\"");
        metrics.get(&format!("gorego_cache_lookups_total{{{labels}}}"))
    };
    assert_eq!((outcome("outage"), outcome("miss")), (Some(2), Some(0)));

    let is_explained = |response: &Response| {
        response.status == 200 && !response.json()["misses"][0]["explanation"].is_null()
    };
    let build = wait_for(server.metrics(), "/api/v1/builds/build", is_explained).await;
    let explanation = &build.json()["misses"][0]["explanation"];
    assert_eq!(explanation["cause"]["kind"], "outage", "{build:#?}");
    let sentence = "The backing cache did not answer, and the local tier has no complete result.";
    assert_eq!(explanation["sentence"], sentence);
    for path in ["/builds/build", "/targets?label=%2F%2F:t"] {
        let page = get(server.metrics(), path).await.content;
        assert!(page.contains(sentence), "{path}: {page}");
    }
    let url = format!("http://{}", server.metrics());
    let mut explain = process::command(binary::gorego());
    explain.args(["explain", "//:t", "--url", &url]);
    let explained = explain.output().unwrap();
    let text = String::from_utf8(explained.stdout).unwrap();
    assert!(text.contains("The backing cache did not answer"), "{text}");

    // After the outage, the result is found.
    link.restore();
    let found = async { while client.get_action(&action).await.is_err() {} };
    let in_time = tokio::time::timeout(std::time::Duration::from_mins(1), found).await;
    in_time.expect("the result is found after the outage");
}

/// Uploads an action that runs `argument`, and then stores its result in a build that missed it.
async fn miss_and_store(server: &Server, id: &str, target: &str, argument: &str) -> Digest {
    let client = Client::connect(server.address()).await;
    let command = Command {
        arguments: vec![argument.to_owned()],
        ..Command::default()
    };
    let action = upload_action(&client, &command, &digest_of(b"")).await;
    Client::miss_in_build(server.address(), id, target, &action).await;
    client.store_in_build(id, target, &action).await;
    action
}

/// Uploads an action with this command and root of the inputs.
async fn upload_action(client: &Client, command: &Command, root: &Digest) -> Digest {
    let command = Bytes::from(command.encode_to_vec());
    let action = Action {
        command_digest: Some(digest_of(&command)),
        input_root_digest: Some(root.clone()),
        ..Action::default()
    };
    let action = Bytes::from(action.encode_to_vec());
    client
        .batch_upload(&[command, action.clone()])
        .await
        .unwrap();
    digest_of(&action)
}

/// Adds the names of all fields. Those below `targets` and `mnemonics` are names of the client.
fn add_fields(fields: &mut BTreeSet<String>, value: &Value, are_names: bool) {
    match value {
        Value::Array(items) => items.iter().for_each(|it| add_fields(fields, it, false)),
        Value::Object(entries) => {
            for (name, value) in entries {
                if !are_names {
                    fields.insert(name.clone());
                }
                let is_map = ["targets", "mnemonics"].contains(&name.as_str());
                add_fields(fields, value, is_map && value.is_object());
            }
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_and_field_of_the_api_is_documented() {
    let peer = FaultyPeer::start();
    let server = Server::in_front_of(
        &peer.grpc_url(),
        &[&ON[..], &IN_CLUSTER, &[SERVED]].concat(),
    );
    let executor = Executor::connect(server.address()).await;
    executor.execute(&TestAction::script("exit 0")).await;
    let (id, target) = ("a/build?", "//pkg:t & <b>");
    miss_and_store(&server, "earlier", target, "one").await;
    let action = miss_and_store(&server, id, target, "two").await;
    let is_explained = |response: &Response| {
        response.status == 200 && !response.json()["misses"][0]["explanation"].is_null()
    };
    wait_for(
        server.metrics(),
        "/api/v1/builds/a%2Fbuild%3F",
        is_explained,
    )
    .await;
    let digest = format!("{}/{}", action.hash, action.size_bytes);
    let documented = read("docs/api.md");
    let paths = documented.lines().filter_map(|line| {
        let path = line.strip_prefix("## `GET ")?.strip_suffix('`')?;
        let path = path
            .replace("{id}", "a%2Fbuild%3F")
            .replace("{digest}", &digest);
        Some(path.replace("{label}", "%2F%2Fpkg:t%20%26%20%3Cb%3E"))
    });
    let (mut answered, mut fields) = (0, BTreeSet::new());
    for path in paths.filter(|path| path != "/events") {
        let response = get(server.metrics(), &path).await;
        assert_eq!(response.status, 200, "{path}: {response:#?}");
        assert!(response.json().is_object(), "{path}");
        add_fields(&mut fields, &response.json(), false);
        answered += 1;
    }
    assert_eq!(answered, 8);
    // Those of parts that may be missing, too.
    for expected in [
        "free_on_disk",
        "breaker",
        "blobs",
        "aspect",
        "evidence",
        "phases",
    ] {
        assert!(fields.contains(expected), "no {expected} in {fields:?}");
    }
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let code = documented.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = code
        .flat_map(|code| code.split(|it| !is_name(it)))
        .collect();
    fields.retain(|field| !named.contains(field.as_str()));
    assert!(fields.is_empty(), "not in docs/api.md: {fields:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_builds_lead_to_the_action_and_escape_names() {
    let server = Server::start(&[SERVED]);
    let (id, target, action) = ("a/build?", "//pkg:t & <b>", digest_of(b"action"));
    Client::miss_in_build(server.address(), id, target, &action).await;
    let page =
        |path: &'static str| wait_for(server.metrics(), path, |response| response.status == 200);
    let build = page("/builds/a%2Fbuild%3F").await.content;
    assert!(
        build.contains("//pkg:t &amp; &lt;b&gt;") && !build.contains("<b>\""),
        "{build}"
    );
    let link = format!(
        "/actions/{}-{}?build=a%2Fbuild%3F",
        action.hash, action.size_bytes
    );
    for linked in [&link, "/targets?label=%2F%2Fpkg:t%20%26%20%3Cb%3E"] {
        assert!(build.contains(&format!("href=\"{linked}\"")), "{build}");
        let response = get(server.metrics(), linked).await;
        assert_eq!(response.status, 200, "{response:#?}");
    }
    let shown = get(server.metrics(), &link).await.content;
    assert!(shown.contains("The command cannot be shown"), "{shown}");
    let recent = get(server.metrics(), "/builds").await.content;
    assert!(recent.contains("href=\"/builds/a%2Fbuild%3F\""), "{recent}");
    for (wanted, found) in [
        (action.hash.as_str(), format!("/actions/{}", action.hash)),
        ("//pkg:t", "/targets?label=%2F%2Fpkg:t".to_owned()),
        ("a%2Fbuild%3F", "/builds/a%2Fbuild%3F".to_owned()),
    ] {
        let response = get(server.metrics(), &format!("/find?q={wanted}")).await;
        assert_eq!(response.status, 303, "{response:#?}");
        let location = format!("location: {found}");
        let is_named = response.headers.lines().any(|line| line == location);
        assert!(is_named, "{response:#?}");
    }
    assert_eq!(get(server.metrics(), "/builds/other").await.status, 404);
}

/// Uploads a directory of the file `first` and many directories, all `below`.
async fn upload_wide(client: &Client, below: &Digest) -> Digest {
    let directories = (0..5000).map(|number| DirectoryNode {
        name: format!("{number:04}"),
        digest: Some(below.clone()),
    });
    let file = FileNode {
        name: "first".to_owned(),
        digest: Some(digest_of(b"")),
        ..FileNode::default()
    };
    let directory = Directory {
        files: vec![file],
        directories: directories.collect(),
        ..Directory::default()
    };
    let encoded = Bytes::from(directory.encode_to_vec());
    client.upload_whole(&encoded).await.unwrap();
    digest_of(&encoded)
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_beyond_the_bounds_are_left_out_and_the_rest_is_shown() {
    let server = Server::start(&[SERVED]);
    let client = Client::connect(server.address()).await;
    // Some 10^18 files in five directories.
    let mut root = digest_of(b"");
    for _ in 0..5 {
        root = upload_wide(&client, &root).await;
    }
    let action = upload_action(&client, &Command::default(), &root).await;
    let action = format!("{}/{}", action.hash, action.size_bytes);

    let sentence = "Inputs are left out: they are in more than 2000 directories";
    let page = get(server.metrics(), &format!("/actions/{action}")).await;
    assert_eq!(page.status, 200, "{page:#?}");
    for shown in ["<code>first</code>", "<code>0000/first</code>", sentence] {
        assert!(page.content.contains(shown), "no {shown}: {}", page.content);
    }
    let json = get(server.metrics(), &format!("/api/v1/actions/{action}"))
        .await
        .json();
    assert_eq!(json["inputs"][0]["path"], "first", "{json:#}");
    let left_out = json["inputs_left_out"].as_str();
    assert!(
        left_out.is_some_and(|text| text.starts_with(sentence)),
        "{json:#}"
    );
    let url = format!("http://{}", server.metrics());
    let mut explain = process::command(binary::gorego());
    let explained = explain
        .args(["explain", &action, "--url", &url])
        .output()
        .unwrap();
    let text = String::from_utf8(explained.stdout).unwrap();
    assert!(text.contains("Inputs are left out"), "{text}");
}
