//! `ActionCache`.

use crate::common::*;
use bytes::Bytes;
use gorego_server::Options;
use gorego_storage::{ActionCache as _, Digest, DigestFunction};
use prost::Message as _;
use reapi::v2::{
    self, ActionResult, GetActionResultRequest, OutputDirectory, OutputFile,
    UpdateActionResultRequest,
};
use tonic::{Code, Status};

async fn update(
    server: &Server,
    instance: &str,
    action: &Digest,
    result: ActionResult,
) -> Result<ActionResult, Status> {
    let request = UpdateActionResultRequest {
        instance_name: instance.to_owned(),
        action_digest: Some(action.to_proto()),
        action_result: Some(result),
        ..UpdateActionResultRequest::default()
    };
    let answer = server.actions().await.update_action_result(request).await?;
    Ok(answer.into_inner())
}

async fn get(server: &Server, instance: &str, action: &Digest) -> Result<ActionResult, Status> {
    get_with(server, instance, action, |_| ()).await
}

async fn get_with(
    server: &Server,
    instance: &str,
    action: &Digest,
    change: impl FnOnce(&mut GetActionResultRequest),
) -> Result<ActionResult, Status> {
    let mut request = GetActionResultRequest {
        instance_name: instance.to_owned(),
        action_digest: Some(action.to_proto()),
        ..GetActionResultRequest::default()
    };
    change(&mut request);
    let answer = server.actions().await.get_action_result(request).await?;
    Ok(answer.into_inner())
}

fn result(exit_code: i32) -> ActionResult {
    ActionResult {
        exit_code,
        stdout_raw: Bytes::from_static(b"said"),
        ..ActionResult::default()
    }
}

fn file(path: &str, digest: Option<v2::Digest>) -> OutputFile {
    OutputFile {
        path: path.to_owned(),
        digest,
        ..OutputFile::default()
    }
}

#[tokio::test]
async fn a_stored_result_is_returned_unchanged_and_the_last_write_wins() {
    let server = Server::start().await;
    let action = sha256(b"action");
    for code in [1, 2] {
        let stored = update(&server, "", &action, result(code)).await.unwrap();
        assert_eq!(stored, result(code));
        assert_eq!(get(&server, "", &action).await.unwrap(), result(code));
    }
}

#[tokio::test]
async fn a_miss_tells_whether_there_is_no_result_or_a_blob_is_missing() {
    let server = Server::of_complete_results().await;
    // The client names no digest function.
    for function in [DigestFunction::Sha256, DigestFunction::Blake3] {
        let (action, blob) = (function.digest(b"action"), function.digest(b"output"));
        let miss = async || {
            let status = get(&server, "", &action).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound);
            status.message().to_owned()
        };
        assert_eq!(miss().await, format!("no result of action {action}"));
        let result = ActionResult {
            output_files: vec![file("a", Some(blob.to_proto()))],
            ..ActionResult::default()
        };
        server.store.put("", &action, result).await.unwrap();
        let expected = format!("result of action {action} is incomplete: blob {blob} is missing");
        assert_eq!(miss().await, expected);
    }
}

#[tokio::test]
async fn each_instance_has_its_own_results() {
    let server = Server::start().await;
    let action = sha256(b"action");
    let instances = ["", "main", "main/sub"];
    for (code, instance) in (1..).zip(instances) {
        let outcome = get(&server, instance, &action).await;
        assert_refused(outcome, Code::NotFound, "");
        update(&server, instance, &action, result(code))
            .await
            .unwrap();
    }
    for (code, instance) in (1..).zip(instances) {
        let found = get(&server, instance, &action).await.unwrap();
        assert_eq!(found.exit_code, code, "{instance}");
    }
    for instance in ["blobs", "main//sub", "/main", "a/operations"] {
        let outcome = get(&server, instance, &action).await;
        assert_refused(outcome, Code::InvalidArgument, "instance_name");
        let outcome = update(&server, instance, &action, result(1)).await;
        assert_refused(outcome, Code::InvalidArgument, "instance_name");
    }
}

#[tokio::test]
async fn updates_are_refused_where_they_are_off() {
    let server = Server::with(Options {
        ac_updates: false,
        ..Options::default()
    })
    .await;
    let action = sha256(b"action");
    let outcome = update(&server, "", &action, result(1)).await;
    assert_refused(outcome, Code::PermissionDenied, "");
    assert_refused(get(&server, "", &action).await, Code::NotFound, "");
}

#[tokio::test]
async fn malformed_digests_in_a_result_are_refused_with_their_field() {
    let server = Server::start().await;
    let action = sha256(b"action");
    let good = Some(sha256(b"x").to_proto());
    let bad = good.clone().map(|digest| v2::Digest {
        hash: "a".to_owned(),
        ..digest
    });
    let directory = |tree_digest, root_directory_digest| OutputDirectory {
        tree_digest,
        root_directory_digest,
        ..OutputDirectory::default()
    };
    let file_and = |digest| ActionResult {
        output_files: vec![file("a", good.clone()), file("b", digest)],
        ..ActionResult::default()
    };
    let with_directory = |directory| ActionResult {
        output_directories: vec![directory],
        ..ActionResult::default()
    };
    let cases = [
        (file_and(bad.clone()), "output_files[1].digest.hash"),
        (file_and(None), "output_files[1].digest: digest is missing"),
        (
            with_directory(directory(bad.clone(), None)),
            "output_directories[0].tree_digest.hash",
        ),
        (
            with_directory(directory(None, None)),
            "output_directories[0].tree_digest: digest is missing",
        ),
        (
            with_directory(directory(good.clone(), bad.clone())),
            "output_directories[0].root_directory_digest.hash",
        ),
        (
            ActionResult {
                stderr_digest: Some(v2::Digest {
                    size_bytes: -1,
                    ..good.clone().unwrap()
                }),
                ..ActionResult::default()
            },
            "stderr_digest.size_bytes",
        ),
    ];
    let bad_stdout = ActionResult {
        stdout_digest: bad,
        ..ActionResult::default()
    };
    let cases = cases
        .into_iter()
        .chain([(bad_stdout, "stdout_digest.hash")]);
    for (result, field) in cases {
        let outcome = update(&server, "", &action, result).await;
        let field = format!("action_result.{field}");
        assert_refused(outcome, Code::InvalidArgument, &field);
    }
    assert_refused(get(&server, "", &action).await, Code::NotFound, "");
}

#[tokio::test]
async fn an_output_directory_may_have_a_root_digest_alone() {
    let server = Server::start().await;
    let action = sha256(b"action");
    let only_root = ActionResult {
        output_directories: vec![OutputDirectory {
            root_directory_digest: Some(sha256(b"x").to_proto()),
            ..OutputDirectory::default()
        }],
        ..ActionResult::default()
    };
    update(&server, "", &action, only_root).await.unwrap();
}

#[tokio::test]
async fn a_missing_action_digest_or_result_is_refused() {
    let server = Server::start().await;
    let mut client = server.actions().await;
    let outcome = client
        .get_action_result(GetActionResultRequest::default())
        .await;
    assert_refused(
        outcome,
        Code::InvalidArgument,
        "action_digest: digest is missing",
    );
    let outcome = client
        .update_action_result(UpdateActionResultRequest::default())
        .await;
    assert_refused(
        outcome,
        Code::InvalidArgument,
        "action_digest: digest is missing",
    );
    let request = UpdateActionResultRequest {
        action_digest: Some(sha256(b"action").to_proto()),
        ..UpdateActionResultRequest::default()
    };
    let outcome = client.update_action_result(request).await;
    assert_refused(outcome, Code::InvalidArgument, "action_result");
}

#[tokio::test]
async fn digests_in_a_result_have_the_actions_function() {
    let server = Server::start().await;
    let function = DigestFunction::Blake3;
    let action = function.digest(b"action");
    let output = function.digest(b"output");
    let request = UpdateActionResultRequest {
        action_digest: Some(action.to_proto()),
        action_result: Some(ActionResult {
            output_files: vec![file("a", Some(output.to_proto()))],
            ..ActionResult::default()
        }),
        digest_function: function.to_proto().into(),
        ..UpdateActionResultRequest::default()
    };
    let mut client = server.actions().await;
    client.update_action_result(request).await.unwrap();
    // The same hash under another function is another action.
    let outcome = get_with(&server, "", &action, |request| {
        request.digest_function = DigestFunction::Sha256.to_proto().into();
    });
    assert_refused(outcome.await, Code::NotFound, "");
    let found = get_with(&server, "", &action, |request| {
        request.digest_function = function.to_proto().into();
    });
    assert_eq!(found.await.unwrap().output_files.len(), 1);
}

/// A server with a result of two streams and two files of 1000 bytes each.
async fn server_with_outputs(max_batch_bytes: u64) -> (Server, Digest, Vec<Bytes>) {
    let server = Server::limited(|options| options.limits.max_batch_bytes = max_batch_bytes).await;
    let contents: Vec<_> = (0..4).map(|seed| noise(1000, seed)).collect();
    let mut digests = Vec::new();
    for content in &contents {
        digests.push(Some(server.has(content).await.to_proto()));
    }
    let action = sha256(b"action");
    let result = ActionResult {
        stdout_digest: digests[0].clone(),
        stderr_digest: digests[1].clone(),
        output_files: vec![file("a", digests[2].clone()), file("b", digests[3].clone())],
        ..ActionResult::default()
    };
    server.store.put("", &action, result).await.unwrap();
    (server, action, contents)
}

fn inlined(result: &ActionResult) -> [&Bytes; 4] {
    let [a, b] = result.output_files.as_slice() else {
        panic!("two files");
    };
    [
        &result.stdout_raw,
        &result.stderr_raw,
        &a.contents,
        &b.contents,
    ]
}

#[tokio::test]
async fn outputs_are_inlined_on_request() {
    let (server, action, contents) = server_with_outputs(100_000).await;
    let plain = get(&server, "", &action).await.unwrap();
    assert!(inlined(&plain).iter().all(|content| content.is_empty()));

    let found = get_with(&server, "", &action, |request| {
        request.inline_stdout = true;
        request.inline_output_files = vec!["b".to_owned(), "no output".to_owned()];
    })
    .await
    .unwrap();
    let empty = Bytes::new();
    assert_eq!(
        inlined(&found),
        [&contents[0], &empty, &empty, &contents[3]]
    );

    let found = get_with(&server, "", &action, |request| {
        request.inline_stderr = true;
        request.inline_output_files = vec!["a".to_owned()];
    })
    .await
    .unwrap();
    assert_eq!(
        inlined(&found),
        [&empty, &contents[1], &contents[2], &empty]
    );
    assert_eq!(found.stderr_digest, plain.stderr_digest, "digests stay");
}

#[tokio::test]
async fn outputs_are_inlined_up_to_the_batch_limit() {
    let (server, action, contents) = server_with_outputs(3500).await;
    let found = get_with(&server, "", &action, |request| {
        request.inline_stdout = true;
        request.inline_stderr = true;
        request.inline_output_files = vec!["a".to_owned(), "b".to_owned()];
    })
    .await
    .unwrap();
    let empty = Bytes::new();
    let expected = [&contents[0], &contents[1], &contents[2], &empty];
    assert_eq!(inlined(&found), expected);
    assert!(found.encoded_len() <= 3500);
}

#[tokio::test]
async fn a_missing_output_is_not_inlined() {
    let (server, action, contents) = server_with_outputs(100_000).await;
    server.store.remove(&sha256(&contents[0]));
    let found = get_with(&server, "", &action, |request| {
        request.inline_stdout = true;
        request.inline_stderr = true;
    })
    .await
    .unwrap();
    assert_eq!(inlined(&found)[..2], [&Bytes::new(), &contents[1]]);
}

#[tokio::test]
async fn a_result_larger_than_a_message_of_clients_is_refused() {
    let server = Server::start().await;
    let huge = ActionResult {
        stdout_raw: noise(5_000_000, 1),
        ..ActionResult::default()
    };
    let outcome = update(&server, "", &sha256(b"action"), huge).await;
    assert_refused(outcome, Code::ResourceExhausted, "at most");
}
