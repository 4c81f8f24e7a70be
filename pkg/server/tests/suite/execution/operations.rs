//! `google.longrunning.Operations`.

use std::time::Duration;

use reapi::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, ListOperationsRequest, ListOperationsResponse,
    WaitOperationRequest,
};
use reapi::{gorego::ActionState, v2::RequestMetadata};
use tonic::{Request, Status, metadata::MetadataValue};

use super::*;

/// Ends or drops an operation.
async fn cancel(server: &ExecutingServer, name: &str) -> Result<(), Status> {
    let name = name.to_owned();
    let request = CancelOperationRequest { name };
    server
        .operations()
        .await
        .cancel_operation(request)
        .await
        .map(drop)
}

async fn delete(server: &ExecutingServer, name: &str) -> Result<(), Status> {
    let name = name.to_owned();
    let request = DeleteOperationRequest { name };
    server
        .operations()
        .await
        .delete_operation(request)
        .await
        .map(drop)
}

async fn list(
    server: &ExecutingServer,
    request: ListOperationsRequest,
) -> Result<ListOperationsResponse, Status> {
    let listed = server.operations().await.list_operations(request).await?;
    Ok(listed.into_inner())
}

#[tokio::test]
async fn an_operation_is_found_by_the_name_that_its_client_got() {
    let mut server = ExecutingServer::start().await;
    let action = server.action("a").await;
    let in_instance = ExecuteRequest {
        instance_name: "some/instance".to_owned(),
        ..request(&action)
    };
    let mut messages = server.execute(in_instance).await.unwrap();
    let (name, _) = messages.stage().await;
    assert!(
        name.starts_with("some/instance/operations/node-7-"),
        "{name}"
    );
    let attempt = server.attempt().await;
    let mut later = server.wait(&name).await.unwrap();
    assert_eq!(later.stage().await, (name.clone(), Value::Executing));
    assert_eq!(
        metadata(&server.get(&name).await.unwrap()).stage(),
        Value::Executing
    );
    attempt.end(exited(1));
    assert_eq!(messages.response().await, later.response().await);
    let last = server.get(&name).await.unwrap();
    assert_eq!(response(&last).result.unwrap().exit_code, 1);
    assert_eq!(
        server.wait(&name).await.unwrap().next().await.unwrap(),
        Some(last)
    );

    let (own, id) = name.rsplit_once("-7-").unwrap();
    let random = format!("{:032x}", 1);
    for (name, code) in [
        (format!("{own}-6-{id}"), Code::NotFound),
        (format!("operations/node-7-{id}"), Code::NotFound),
        (format!("{own}-7-{random}"), Code::NotFound),
        (format!("{}-{random}", shown(&name)), Code::NotFound),
        ("a".to_owned(), Code::InvalidArgument),
    ] {
        let codes = [
            server.wait(&name).await.err().unwrap().code(),
            server.get(&name).await.unwrap_err().code(),
            cancel(&server, &name).await.unwrap_err().code(),
            delete(&server, &name).await.unwrap_err().code(),
        ];
        assert_eq!(codes, [code; 4], "{name}");
    }
}

#[tokio::test]
async fn a_cancelled_operation_ends_for_its_client_and_stops_the_action() {
    let mut server = ExecutingServer::start().await;
    let mut messages = server.run("a").await;
    let (name, _) = messages.stage().await;
    let attempt = server.attempt().await;
    assert_eq!(
        delete(&server, &name).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    cancel(&server, &name).await.unwrap();
    attempt.attempt.stop.cancelled().await;
    assert_eq!(outcome(&messages.response().await).0, Code::Cancelled);
    cancel(&server, &name).await.unwrap();
    delete(&server, &name).await.unwrap();
    assert_eq!(server.get(&name).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_wait_returns_the_state_after_the_completion_or_the_timeout() {
    let mut server = ExecutingServer::start().await;
    let mut messages = server.run("a").await;
    let (name, _) = messages.stage().await;
    let attempt = server.attempt().await;
    let wait = async |seconds: Option<i64>| {
        let request = WaitOperationRequest {
            name: name.clone(),
            timeout: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        };
        let waited = server.operations().await.wait_operation(request).await;
        waited.map(tonic::Response::into_inner)
    };
    assert!(!wait(Some(0)).await.unwrap().done);
    assert_eq!(
        wait(Some(-1)).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let end = async {
        tokio::time::sleep(Duration::ZERO).await;
        attempt.end(exited(2));
    };
    let (waited, ()) = tokio::join!(wait(None), end);
    assert_eq!(response(&waited.unwrap()).result.unwrap().exit_code, 2);
}

/// Executes actions of these instances, and returns their names.
async fn submit(
    server: &ExecutingServer,
    sent: &RequestMetadata,
    instances: &[&str],
) -> (Vec<String>, Vec<Messages>) {
    let (mut names, mut calls) = (vec![], vec![]);
    for (number, instance) in instances.iter().enumerate() {
        let action = server.action(&number.to_string()).await;
        let mut request = Request::new(ExecuteRequest {
            instance_name: (*instance).to_owned(),
            ..request(&action)
        });
        let value = MetadataValue::from_bytes(&sent.encode_to_vec());
        request
            .metadata_mut()
            .insert_bin(reapi::metadata::HEADER, value);
        let mut messages = server.execute(request).await.unwrap();
        names.push(messages.stage().await.0);
        calls.push(messages);
    }
    (names, calls)
}

/// Returns the name in lists of the operation that its client knows as `name`.
fn shown(name: &str) -> String {
    let (shown, token) = name.rsplit_once('-').unwrap();
    assert_eq!(token.len(), 32);
    shown.to_owned()
}

fn names(listed: &ListOperationsResponse) -> Vec<String> {
    let names = listed
        .operations
        .iter()
        .map(|operation| operation.name.clone());
    names.collect()
}

#[tokio::test]
async fn queued_and_running_operations_are_listed_with_their_target() {
    let mut server = ExecutingServer::start().await;
    let sent = RequestMetadata {
        tool_invocation_id: "some build".to_owned(),
        target_id: "//some:target".to_owned(),
        action_mnemonic: "Rustc".to_owned(),
        ..RequestMetadata::default()
    };
    let (all, _calls) = submit(&server, &sent, &["", "i", "i"]).await;
    let all: Vec<_> = all.iter().map(|name| shown(name)).collect();
    let _running = server.attempt().await;
    let listed = list(&server, ListOperationsRequest::default())
        .await
        .unwrap();
    assert_eq!(names(&listed), all);
    assert_eq!(listed.next_page_token, "");
    let first = metadata(&listed.operations[0]);
    assert_eq!(first.stage(), Value::Executing);
    let partial = first.partial_execution_metadata.unwrap();
    assert!(partial.queued_timestamp.is_some() && partial.worker_start_timestamp.is_some());
    let target = RequestMetadata::decode(partial.auxiliary_metadata[0].value.as_slice());
    assert_eq!(target.unwrap(), sent);
    let state = ActionState::decode(partial.auxiliary_metadata[1].value.as_slice()).unwrap();
    assert_eq!((state.phase.as_str(), state.attempts), ("fetch", 1));
    assert_eq!(state.usage, None);
    assert_eq!(metadata(&listed.operations[1]).stage(), Value::Queued);
    for (name, expected) in [("operations", &all[..1]), ("i/operations", &all[1..])] {
        let request = ListOperationsRequest {
            name: name.to_owned(),
            ..ListOperationsRequest::default()
        };
        assert_eq!(names(&list(&server, request).await.unwrap()), expected);
    }
}

#[tokio::test]
async fn a_name_from_a_list_shows_its_operation_and_cannot_end_it() {
    let mut server = ExecutingServer::start().await;
    let mut messages = server.run("a").await;
    let (name, _) = messages.stage().await;
    let attempt = server.attempt().await;
    let listed = list(&server, ListOperationsRequest::default());
    let listed = names(&listed.await.unwrap()).remove(0);
    assert_eq!(server.get(&listed).await.unwrap().name, listed);
    let wait = WaitOperationRequest {
        name: listed.clone(),
        timeout: None,
    };
    let codes = [
        cancel(&server, &listed).await.unwrap_err().code(),
        delete(&server, &listed).await.unwrap_err().code(),
        server.wait(&listed).await.err().unwrap().code(),
        server
            .operations()
            .await
            .wait_operation(wait)
            .await
            .unwrap_err()
            .code(),
    ];
    assert_eq!(codes, [Code::PermissionDenied; 4]);
    attempt.end(exited(3));
    assert_eq!(messages.response().await.result.unwrap().exit_code, 3);
    let ended = server.get(&listed).await.unwrap();
    assert_eq!(response(&ended).result.unwrap().exit_code, 3);
    delete(&server, &name).await.unwrap();
}

#[tokio::test]
async fn a_list_comes_in_pages() {
    let server = ExecutingServer::start().await;
    let (all, _calls) = submit(&server, &RequestMetadata::default(), &["", "", "", "", ""]).await;
    let mut paged = vec![];
    let mut request = ListOperationsRequest {
        page_size: 2,
        ..ListOperationsRequest::default()
    };
    for expected in [2, 2, 1] {
        let page = list(&server, request.clone()).await.unwrap();
        assert_eq!(page.operations.len(), expected);
        paged.extend(names(&page));
        request.page_token = page.next_page_token;
    }
    assert_eq!(request.page_token, "");
    let all: Vec<_> = all.iter().map(|name| shown(name)).collect();
    assert_eq!(paged, all);
}

#[tokio::test]
async fn a_list_with_a_filter_or_another_parent_is_refused() {
    let server = ExecutingServer::start().await;
    let refused = |change: fn(&mut ListOperationsRequest)| {
        let mut request = ListOperationsRequest::default();
        change(&mut request);
        list(&server, request)
    };
    let text = "accepted is";
    let filter = refused(|request| request.filter = "a=b".to_owned()).await;
    assert_refused(filter, Code::InvalidArgument, text);
    let parent = refused(|request| request.name = "i".to_owned()).await;
    assert_refused(parent, Code::InvalidArgument, text);
    let negative = refused(|request| request.page_size = -1).await;
    assert_refused(negative, Code::InvalidArgument, "page_size");
    let token = refused(|request| request.page_token = "x".to_owned()).await;
    assert_refused(token, Code::InvalidArgument, "page_token");
}
