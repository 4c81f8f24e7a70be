//! Tests of actions that a server refuses, and of servers that refuse to execute.
#![cfg(test)]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use bytes::Bytes;
use gorego_integration::{
    client::Client,
    content::{blob, digest_of},
    executor::{Details, Executor, TestAction, outcome, request, start, succeeded},
    server::{Server, refusal},
};
use prost::Message as _;
use reapi::v2::{Action, Digest, Directory, DirectoryNode};
use rustix::process::geteuid;
use tempfile::TempDir;
use tonic::{Code, Status};

/// Timeouts of at most ten seconds.
const SHORT: [&str; 2] = ["execution.max_timeout=10s", "execution.default_timeout=10s"];

fn subject(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.hash, digest.size_bytes)
}

/// Checks that a refusal has this code and names `part`, and that clients are not told to repeat or upload anything.
fn assert_final(refused: &Status, code: Code, part: &str) {
    assert_eq!(refused.code(), code, "{refused}");
    assert!(refused.message().contains(part), "no {part:?} in {refused}");
    assert_eq!(Details::of(refused), Details::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_missing_blob_is_a_violation_and_the_action_runs_after_their_upload() {
    let (_server, executor) = start(&[]).await;
    let action = TestAction::script("cat a dir/b")
        .input("a", blob(1, 10).to_vec())
        .input("dir/b", blob(2, 2000).to_vec())
        .input("present", "present");
    let (digest, blobs) = action.blobs();
    let absent = executor.begin(request(&digest)).await.unwrap_err();
    assert_eq!(absent.code(), Code::FailedPrecondition, "{absent}");
    let missing = [subject(&digest)].to_vec();
    let retry = false;
    assert_eq!(Details::of(&absent), Details { missing, retry });

    // The action and all directories: what they name is then known.
    let inputs = [blob(1, 10), blob(2, 2000)];
    let (without, with): (Vec<_>, Vec<_>) = blobs
        .iter()
        .cloned()
        .partition(|blob| inputs.contains(blob));
    let command = blobs.get(blobs.len() - 2).unwrap();
    let with: Vec<_> = with.into_iter().filter(|blob| blob != command).collect();
    executor.client.batch_upload(&with).await.unwrap();
    let refused = executor.begin(request(&digest)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let absent = inputs.iter().chain([command]);
    let mut missing: Vec<_> = absent.map(|blob| subject(&digest_of(blob))).collect();
    missing.sort();
    assert_eq!(Details::of(&refused), Details { missing, retry });

    executor.client.batch_upload(&without).await.unwrap();
    executor
        .client
        .batch_upload(std::slice::from_ref(command))
        .await
        .unwrap();
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    succeeded(messages.response().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_action_is_refused_with_the_name_of_the_field() {
    let (_server, executor) = start(&SHORT).await;
    let valid = || TestAction::script("true");
    let mut nowhere = valid();
    nowhere.command.working_directory = "../up".to_owned();
    for (action, field) in [
        (TestAction::of(&[]), "arguments"),
        (valid().output("/absolute"), "output_paths[0]"),
        (valid().variable("A=B", ""), "environment_variables[0].name"),
        (nowhere, "working_directory"),
        (valid().timeout(-1), "timeout"),
        (valid().input("a/../b", ""), "name"),
    ] {
        let refused = executor.refusal(&action).await;
        assert_final(&refused, Code::InvalidArgument, field);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_above_the_maximum_is_refused_with_the_key() {
    let (_server, executor) = start(&SHORT).await;
    let refused = executor
        .refusal(&TestAction::script("true").timeout(11))
        .await;
    assert_final(&refused, Code::InvalidArgument, "execution.max_timeout");
    let accepted = TestAction::script("true").timeout(10);
    succeeded(executor.execute(&accepted).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_platform_properties_are_refused_unless_they_are_configured() {
    let (_server, executor) = start(&["execution.platform=pool=large"]).await;
    let unknown = TestAction::script("true").property("gpu", "2");
    let refused = executor.refusal(&unknown).await;
    assert_final(&refused, Code::FailedPrecondition, "gpu=2");
    assert_final(&refused, Code::FailedPrecondition, "execution.platform");
    let image = TestAction::script("true").property("container-image", "docker://a");
    let refused = executor.refusal(&image).await;
    let setting = "`container-image: '*'` in `execution.platform`";
    assert_final(&refused, Code::FailedPrecondition, setting);
    let known = TestAction::script("true")
        .property("pool", "large")
        .property("OSFamily", "Linux");
    succeeded(executor.execute(&known).await);

    let (_server, executor) = start(&["execution.platform=container-image=*"]).await;
    succeeded(executor.execute(&image).await);
    let (_server, executor) = start(&["execution.unknown_platform=ignore"]).await;
    succeeded(executor.execute(&unknown).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_program_or_working_directory_is_the_clients_error() {
    let (_server, executor) = start(&[]).await;
    let not_executable = TestAction::of(&["./file"]).directory("file");
    for (action, program) in [
        (TestAction::of(&["./absent"]), "./absent"),
        (TestAction::of(&["no-such-program"]), "no-such-program"),
        (TestAction::of(&["/no/such/program"]), "/no/such/program"),
        (not_executable, "./file"),
    ] {
        let response = executor.execute(&action).await;
        let (code, message) = outcome(&response);
        assert_eq!(code, Code::FailedPrecondition, "{message}");
        assert!(message.contains(program), "{message}");
        let details = Details::of_response(&response.status.unwrap());
        assert_eq!(details, Details::default());
    }
    let mut nowhere = TestAction::script("true");
    nowhere.command.working_directory = "absent".to_owned();
    let (code, message) = outcome(&executor.execute(&nowhere).await);
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(message.contains("working_directory"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_above_the_limit_are_refused_with_the_key() {
    let (_server, executor) = start(&["execution.max_input_bytes=1000"]).await;
    let action = TestAction::script("true").input("a", vec![b'x'; 1001]);
    let refused = executor.refusal(&action).await;
    assert_final(
        &refused,
        Code::FailedPrecondition,
        "execution.max_input_bytes",
    );
}

/// Returns a directory with these directories, as a blob.
fn parent(children: &[(String, Digest)]) -> Bytes {
    let nodes = children.iter().map(|(name, digest)| DirectoryNode {
        name: name.clone(),
        digest: Some(digest.clone()),
    });
    let directory = Directory {
        directories: nodes.collect(),
        ..Directory::default()
    };
    Bytes::from(directory.encode_to_vec())
}

/// Returns the blobs of a tree with a directory in each of so many levels, `width` times below its parent. The root is
/// the last one.
fn nested(levels: usize, width: usize) -> Vec<Bytes> {
    let mut blobs = vec![parent(&[])];
    for _ in 0..levels {
        let child = digest_of(blobs.last().unwrap());
        let names = (0..width).map(|name| (format!("{name:04}"), child.clone()));
        blobs.push(parent(&names.collect::<Vec<_>>()));
    }
    blobs
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_too_large_to_stage_are_refused_in_little_memory() {
    let (server, executor) = start(&[]).await;
    succeeded(executor.execute(&TestAction::script("true")).await);
    // A million directories, a chain of 20,000, and one that occurs 2^40 times.
    for (name, levels, width) in [("wide", 2, 1000), ("deep", 20_000, 1), ("repeated", 40, 2)] {
        let mut blobs = nested(levels, width);
        let command = TestAction::script("true").command;
        let action = Action {
            input_root_digest: blobs.last().map(|root| digest_of(root)),
            command_digest: Some(digest_of(&command.encode_to_vec())),
            ..Action::default()
        };
        blobs.extend([
            command.encode_to_vec().into(),
            action.encode_to_vec().into(),
        ]);
        for batch in blobs.chunks(10_000) {
            executor.client.batch_upload(batch).await.unwrap();
        }
        let before = server.peak_memory();
        let digest = digest_of(blobs.last().unwrap());
        let refused = executor.begin(request(&digest)).await.unwrap_err();
        let is_final = [Code::InvalidArgument, Code::FailedPrecondition].contains(&refused.code());
        assert!(is_final, "{name}: {refused}");
        assert_eq!(Details::of(&refused), Details::default(), "{name}");
        let grown = server.peak_memory().saturating_sub(before);
        assert!(grown < 64 << 20, "{name}: {grown} bytes");
    }
    succeeded(executor.execute(&TestAction::script("exit 0")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_answers_unimplemented_with_the_key_that_turns_execution_on() {
    // By default, actions of ordinary users are executed on a loopback address.
    let mut off = vec![&["execution.enabled=false"][..]];
    off.extend(geteuid().is_root().then_some(&[][..]));
    for settings in off {
        let server = Server::start(settings);
        let executor = Executor::connect(server.address()).await;
        let digest = executor.upload(&TestAction::script("true")).await;
        let refused = executor.begin(request(&digest)).await.unwrap_err();
        let unwaited = executor.wait("operations/a").await.unwrap_err();
        let uncancelled = executor.cancel("operations/a").await.unwrap_err();
        for refused in [refused, unwaited, uncancelled] {
            assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
            assert!(refused.message().contains("execution.enabled"), "{refused}");
        }
        let client = Client::connect(server.address()).await;
        assert_eq!(client.find_missing(vec![digest]).await.unwrap(), []);
    }
}

#[test]
fn root_needs_a_build_root_that_the_users_of_actions_reach_or_the_consent_of_run_as_root() {
    if !geteuid().is_root() {
        // Any other user executes as itself.
        drop(Server::start(&["execution.enabled=true"]));
        return;
    }
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    let plain = ["execution.enabled=true", "execution.sandbox.enabled=false"];
    let (status, log) = refusal(&dir.path().join("data"), &plain);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(
        log.contains("execution.build_root: the users of actions have no access"),
        "{log}"
    );
    assert!(log.contains("execution.run_as_root: true"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_of_an_earlier_run_is_not_found() {
    let (server, executor) = start(&[]).await;
    let mut messages = executor.start(&TestAction::script("true")).await;
    succeeded(messages.response().await);
    let name = messages.name.clone();
    let waited = executor.wait(&name).await.unwrap().response().await;
    succeeded(waited);
    let server = server.restart();
    let executor = Executor::connect(server.address()).await;
    let refused = executor.wait(&name).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
}
