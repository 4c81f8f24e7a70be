//! `Capabilities`, health and reflection.

use crate::common::*;
use gorego_server::{Limits, Options};
use reapi::v2::{
    CacheCapabilities, GetCapabilitiesRequest, ServerCapabilities, compressor, digest_function,
};
use tokio::sync::watch;
use tonic::{Code, Response, Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

async fn capabilities(server: &Server, instance: &str) -> Result<ServerCapabilities, Status> {
    let request = GetCapabilitiesRequest {
        instance_name: instance.to_owned(),
    };
    let answer = server
        .capabilities()
        .await
        .get_capabilities(request)
        .await?;
    Ok(answer.into_inner())
}

async fn cache_capabilities(options: Options) -> CacheCapabilities {
    let server = Server::with(options).await;
    let answer = capabilities(&server, "some/instance").await.unwrap();
    answer.cache_capabilities.unwrap()
}

#[tokio::test]
async fn capabilities_match_the_defaults() {
    let server = Server::start().await;
    let answer = capabilities(&server, "").await.unwrap();
    let cache = answer.cache_capabilities.unwrap();
    for function in [
        digest_function::Value::Sha256,
        digest_function::Value::Blake3,
    ] {
        assert!(cache.digest_functions.contains(&function.into()));
    }
    assert_eq!(cache.max_batch_total_size_bytes, 2 * 1024 * 1024);
    assert_eq!(cache.max_cas_blob_size_bytes, 0);
    let zstd = i32::from(compressor::Value::Zstd);
    assert_eq!(cache.supported_compressors, [zstd]);
    assert_eq!(cache.supported_batch_update_compressors, [zstd]);
    assert!(
        cache
            .action_cache_update_capabilities
            .unwrap()
            .update_enabled
    );
    assert!(!answer.execution_capabilities.unwrap().exec_enabled);
    let (low, high) = (
        answer.low_api_version.unwrap(),
        answer.high_api_version.unwrap(),
    );
    assert_eq!((low.major, low.minor), (2, 0));
    assert_eq!((high.major, high.minor), (2, 11));
}

#[tokio::test]
async fn capabilities_match_the_configuration() {
    let cache = cache_capabilities(Options {
        limits: Limits {
            max_batch_bytes: 123_456,
            max_blob_size: 7_890_123.try_into().ok(),
        },
        ac_updates: false,
        ..Options::default()
    })
    .await;
    assert_eq!(cache.max_batch_total_size_bytes, 123_456);
    assert_eq!(cache.max_cas_blob_size_bytes, 7_890_123);
    assert!(
        !cache
            .action_cache_update_capabilities
            .unwrap()
            .update_enabled
    );
}

#[tokio::test]
async fn every_advertised_digest_function_works() {
    let server = Server::start().await;
    let answer = capabilities(&server, "").await.unwrap();
    for value in answer.cache_capabilities.unwrap().digest_functions {
        let function = gorego_storage::DigestFunction::from_proto(value)
            .unwrap()
            .unwrap();
        let content = noise(1000, 1);
        let digest = function.digest(&content);
        let mut client = server.bytes().await;
        let name = format!("uploads/u/blobs/{function}/{digest}");
        write(&mut client, messages(&name, &content, 500))
            .await
            .unwrap();
        let name = format!("blobs/{function}/{digest}");
        assert_eq!(read(&mut client, &name, 0, 0).await.unwrap(), content);
    }
}

#[tokio::test]
async fn capabilities_of_an_invalid_instance_name_are_refused() {
    let server = Server::start().await;
    let outcome = capabilities(&server, "a/blobs").await;
    assert_refused(outcome, Code::InvalidArgument, "instance_name");
}

async fn check(server: &Server, service: &str) -> Result<ServingStatus, Status> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut client = HealthClient::new(server.connect().await);
    Ok(client.check(request).await?.into_inner().status())
}

async fn watch(server: &Server, service: &str) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut client = HealthClient::new(server.connect().await);
    client.watch(request).await.unwrap().into_inner()
}

async fn next(statuses: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let message = tokio::time::timeout(LONG, statuses.message()).await;
    message.unwrap().unwrap().map(|message| message.status())
}

#[tokio::test]
async fn health_covers_the_server_and_each_service() {
    let server = Server::start().await;
    for service in [
        "",
        "google.bytestream.ByteStream",
        "build.bazel.remote.execution.v2.ActionCache",
        "build.bazel.remote.execution.v2.Capabilities",
        "build.bazel.remote.execution.v2.ContentAddressableStorage",
    ] {
        let status = check(&server, service).await.unwrap();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let outcome = check(&server, "no.such.Service").await;
    assert_refused(outcome, Code::NotFound, "");
    let mut unknown = watch(&server, "no.such.Service").await;
    assert_eq!(
        next(&mut unknown).await,
        Some(ServingStatus::ServiceUnknown)
    );
}

#[tokio::test]
async fn health_follows_the_stores() {
    let (healthy, receiver) = watch::channel(true);
    let server = Server::limited(|options| options.transport.healthy = Some(receiver)).await;
    let mut watched = watch(&server, "").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    healthy.send_replace(false);
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    assert_eq!(check(&server, "").await.unwrap(), ServingStatus::NotServing);
    healthy.send_replace(true);
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    assert_eq!(check(&server, "").await.unwrap(), ServingStatus::Serving);
}

#[tokio::test]
async fn watchers_of_health_are_notified_of_the_shutdown_and_ended() {
    let server = Server::start().await;
    let mut watched = watch(&server, "").await;
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    server.shutdown.cancel();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    assert_eq!(next(&mut watched).await, None);
    server.ended().await.unwrap();
}

/// Returns the first message of an answer.
async fn first<T>(answer: Result<Response<Streaming<T>>, Status>) -> T {
    let message = answer.unwrap().into_inner().message().await;
    message.unwrap().expect("a message")
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let server = Server::start().await;
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(server.connect().await);
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let answer = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    let answer = first(answer).await;
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answer.message_response
    else {
        panic!("{answer:?}");
    };
    let mut names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "build.bazel.remote.execution.v2.ActionCache",
            "build.bazel.remote.execution.v2.Capabilities",
            "build.bazel.remote.execution.v2.ContentAddressableStorage",
            "google.bytestream.ByteStream",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ]
    );
}

#[tokio::test]
async fn reflection_describes_the_services_to_v1alpha_clients() {
    let server = Server::start().await;
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(server.connect().await);
    for symbol in [
        "google.bytestream.ByteStream",
        "grpc.reflection.v1alpha.ServerReflection",
    ] {
        let request = v1alpha::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(
                v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                    symbol.to_owned(),
                ),
            ),
        };
        let answer = client
            .server_reflection_info(tokio_stream::iter([request]))
            .await;
        let answer = first(answer).await;
        assert!(
            matches!(
                answer.message_response,
                Some(
                    v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_)
                )
            ),
            "{symbol}: {answer:?}"
        );
    }
}
