//! Malformed requests, which fail with a reason and affect no other client.

use crate::common::{
    raw::{RawClient, RawResponse, finish, framed},
    *,
};
use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRunner};
use prost::Message;
use reapi::{
    bytestream::{QueryWriteStatusRequest, ReadRequest, WriteRequest},
    v2,
};
use tonic::Code;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_request::MessageRequest,
};

const CAS: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage";
const RESULTS: &str = "/build.bazel.remote.execution.v2.ActionCache";
const BYTES: &str = "/google.bytestream.ByteStream";

fn methods() -> Vec<String> {
    vec![
        format!("{CAS}/FindMissingBlobs"),
        format!("{CAS}/BatchUpdateBlobs"),
        format!("{CAS}/BatchReadBlobs"),
        format!("{CAS}/GetTree"),
        format!("{RESULTS}/GetActionResult"),
        format!("{RESULTS}/UpdateActionResult"),
        format!("{BYTES}/Read"),
        format!("{BYTES}/Write"),
        format!("{BYTES}/QueryWriteStatus"),
        "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities".to_owned(),
        "/grpc.health.v1.Health/Check".to_owned(),
    ]
}

/// Digests that are valid, nearly valid, or nonsense.
fn digest() -> impl Strategy<Value = Option<v2::Digest>> {
    let hash = prop_oneof![
        "[0-9a-f]{64}",
        "[0-9a-f]{40}",
        "[0-9a-fA-F]{0,130}",
        "\\PC{0,70}",
        Just(sha256(b"").hex()),
    ];
    let size = prop_oneof![0_i64..10, any::<i64>()];
    proptest::option::weighted(
        0.9,
        (hash, size).prop_map(|(hash, size_bytes)| v2::Digest { hash, size_bytes }),
    )
}

fn instance() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z/]{0,20}", "\\PC{0,20}"]
}

fn function() -> impl Strategy<Value = i32> {
    prop_oneof![Just(0), -1_i32..12, any::<i32>()]
}

fn resource_name() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        Just("blobs".to_owned()),
        Just("uploads".to_owned()),
        Just("compressed-blobs".to_owned()),
        Just("zstd".to_owned()),
        Just("blake3".to_owned()),
        "[0-9a-f]{64}",
        "[0-9]{1,20}",
        "\\PC{0,10}",
    ];
    let nonsense = proptest::collection::vec(segment, 0..8).prop_map(|parts| parts.join("/"));
    let upload = ("[a-z]{1,3}", any::<bool>(), "[0-9a-f]{64}", 0..10).prop_map(
        |(uuid, compressed, hash, size)| {
            let kind = if compressed {
                "compressed-blobs/zstd"
            } else {
                "blobs"
            };
            format!("uploads/{uuid}/{kind}/{hash}/{size}")
        },
    );
    prop_oneof![nonsense, upload]
}

fn data() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn write_request() -> impl Strategy<Value = WriteRequest> {
    let offset = prop_oneof![Just(0_i64), -2_i64..20, any::<i64>()];
    (resource_name(), offset, any::<bool>(), data()).prop_map(
        |(resource_name, write_offset, finish_write, data)| WriteRequest {
            resource_name,
            write_offset,
            finish_write,
            data,
        },
    )
}

/// A call of a method: its path and its encoded request.
fn call(path: &str, request: &impl Message) -> (String, Bytes) {
    (path.to_owned(), framed(&request.encode_to_vec()))
}

/// Requests of `ByteStream` with arbitrary values.
fn stream_call() -> impl Strategy<Value = (String, Bytes)> {
    let read = (resource_name(), any::<i64>(), any::<i64>()).prop_map(
        |(resource_name, read_offset, read_limit)| {
            let request = ReadRequest {
                resource_name,
                read_offset,
                read_limit,
            };
            call(&format!("{BYTES}/Read"), &request)
        },
    );
    let query = resource_name().prop_map(|resource_name| {
        let request = QueryWriteStatusRequest { resource_name };
        call(&format!("{BYTES}/QueryWriteStatus"), &request)
    });
    let write = proptest::collection::vec(write_request(), 0..4).prop_map(|requests| {
        let messages = requests
            .iter()
            .map(|request| framed(&request.encode_to_vec()));
        let body = messages.collect::<Vec<_>>().concat();
        (format!("{BYTES}/Write"), body.into())
    });
    prop_oneof![read, query, write]
}

/// Requests of the other services with arbitrary values.
fn storage_call() -> impl Strategy<Value = (String, Bytes)> {
    let parts = (instance(), digest(), function(), data(), any::<i32>());
    let update = parts.prop_map(|(instance_name, digest, digest_function, data, number)| {
        let request = v2::BatchUpdateBlobsRequest {
            instance_name,
            requests: vec![v2::batch_update_blobs_request::Request {
                digest,
                data,
                compressor: number % 4,
            }],
            digest_function,
        };
        call(&format!("{CAS}/BatchUpdateBlobs"), &request)
    });
    let parts = (instance(), digest(), function(), "\\PC{0,5}", any::<i32>());
    let tree = parts.prop_map(
        |(instance_name, root_digest, digest_function, page_token, page_size)| {
            let request = v2::GetTreeRequest {
                instance_name,
                root_digest,
                page_size,
                page_token,
                digest_function,
            };
            call(&format!("{CAS}/GetTree"), &request)
        },
    );
    let parts = (instance(), digest(), digest(), function());
    let result = parts.prop_map(|(instance_name, action_digest, digest, digest_function)| {
        let request = v2::UpdateActionResultRequest {
            instance_name,
            action_digest,
            action_result: Some(v2::ActionResult {
                stdout_digest: digest,
                ..v2::ActionResult::default()
            }),
            digest_function,
            ..v2::UpdateActionResultRequest::default()
        };
        call(&format!("{RESULTS}/UpdateActionResult"), &request)
    });
    prop_oneof![update, tree, result]
}

/// Sends each request to a server, which must not answer with an error of its own.
fn send_all<S: Strategy<Value = (String, Bytes)>>(calls: &S) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    let client = runtime.block_on(RawClient::connect(&server, 65_535));
    let client = std::cell::RefCell::new(client);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(500));
    let outcome = runner.run(calls, |(path, body)| {
        let response: RawResponse = runtime.block_on(client.borrow_mut().call(&path, body));
        let code = response.code.expect("a gRPC answer");
        let fault_of_the_server = matches!(
            code,
            Code::Internal | Code::Unknown | Code::DataLoss | Code::Unavailable
        );
        prop_assert!(!fault_of_the_server, "{} is told {:?}", path, response);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn invalid_values_in_requests_never_fail_as_server_errors() {
    send_all(&prop_oneof![stream_call(), storage_call()]);
}

#[test]
fn malformed_requests_never_fail_as_server_errors() {
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..100).prop_map(|bytes| framed(&bytes)),
        proptest::collection::vec(any::<u8>(), 0..100).prop_map(Bytes::from),
    ];
    send_all(&(proptest::sample::select(methods()), body));
}

#[tokio::test]
async fn reflection_reports_the_error_of_a_request() {
    let idle_timeout = std::time::Duration::from_secs(2);
    let server =
        Server::limited(|options| options.transport.limits.idle_timeout = idle_timeout).await;
    let mut client = RawClient::connect(&server, 65_535).await;
    let wrong = [
        (framed(b"\xff\xff\xff"), Code::InvalidArgument),
        (framed(b"cut off").slice(..8), Code::InvalidArgument),
        (framed(&vec![0; 70_000]), Code::ResourceExhausted),
        (Bytes::from_static(b"\x07\0\0\0\0"), Code::InvalidArgument),
    ];
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        for (request, code) in &wrong {
            let response = client.call(&path, request.clone()).await;
            assert_eq!(response.code, Some(*code), "{response:?}");
        }
        let absent = ServerReflectionRequest {
            message_request: Some(MessageRequest::FileContainingSymbol("absent".to_owned())),
            ..ServerReflectionRequest::default()
        };
        let absent = framed(&absent.encode_to_vec());
        let response = client.call(&path, absent).await;
        assert_eq!(response.code, Some(Code::NotFound), "{response:?}");
        let (response, mut stalled) = client.open(&path);
        stalled
            .send_data(Bytes::from_static(b"\0\0"), false)
            .unwrap();
        let response = finish(response).await;
        assert_eq!(response.code, Some(Code::DeadlineExceeded), "{response:?}");
    }
}
