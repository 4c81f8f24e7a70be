use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

use super::*;

fn head(status: u16, headers: &[(&'static str, &'static str)]) -> response::Parts {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(()).unwrap().into_parts().0
}

/// Judges an answer by its headers alone. Returns whether a failure is temporary, and its message.
async fn grpc(head: response::Parts) -> Option<(bool, String)> {
    let body = Full::<Bytes>::default().collect().await.unwrap();
    let failure = judge_grpc(&head, body).err();
    failure.map(|failure| (failure.is_temporary, failure.why))
}

#[tokio::test]
async fn failures_of_grpc_name_a_remedy_and_are_retried_if_they_may_pass() {
    let kind = ("content-type", "application/grpc");
    for (status, is_temporary, remedy) in [
        ("14", true, USE_OTLP_PORT),
        ("8", true, USE_OTLP_PORT),
        ("16", false, USE_KEY),
        ("7", false, USE_KEY),
        ("12", false, USE_OTLP_PORT),
        ("3", false, USE_OTLP_PORT),
    ] {
        let failure = grpc(head(200, &[kind, ("grpc-status", status)])).await;
        let (found, why) = failure.unwrap();
        assert_eq!(found, is_temporary, "{status}");
        assert!(why.ends_with(remedy), "{why}");
    }
    assert_eq!(grpc(head(200, &[kind, ("grpc-status", "0")])).await, None);
    let page = ("content-type", "text/html");
    for (answer, is_temporary) in [
        (head(200, &[page]), false),
        (head(200, &[kind]), false),
        (head(503, &[page]), true),
    ] {
        let (found, why) = grpc(answer).await.unwrap();
        assert_eq!(found, is_temporary, "{why}");
    }
    let broken = ("grpc-status-details-bin", "%%%");
    let broken = head(200, &[kind, ("grpc-status", "14"), broken]);
    assert!(grpc(broken).await.unwrap().0, "no panic");
}

#[test]
fn failures_of_http_name_a_remedy_and_are_retried_if_they_may_pass() {
    for (status, is_temporary, remedy) in [
        (429, true, USE_OTLP_PORT),
        (503, true, USE_OTLP_PORT),
        (401, false, USE_KEY),
        (403, false, USE_KEY),
        (404, false, USE_OTLP_PORT),
        (200, false, USE_OTLP_PORT),
    ] {
        let page = head(status, &[("content-type", "text/html")]);
        let failure = judge_http(&page, b"<html>").unwrap_err();
        assert_eq!(failure.is_temporary, is_temporary, "{status}");
        assert!(failure.why.ends_with(remedy), "{}", failure.why);
    }
}

#[test]
fn spans_that_a_collector_refuses_are_reported_with_its_reason() {
    let answer = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 3,
            error_message: "too old".to_owned(),
        }),
    };
    let accepted = head(200, &[("content-type", PROTOBUF)]);
    let refused = judge_http(&accepted, &answer.encode_to_vec()).unwrap();
    assert_eq!(refused, (3, "too old".to_owned()));
    assert_eq!(judge_http(&accepted, b"").unwrap().0, 0);
}
