//! gRPC server reflection, in both versions that clients ask for.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_limits::Permit;
use http::Uri;
use http_body_util::{BodyExt as _, Full};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_reflection::{
    pb::{v1::ServerReflectionRequest, v1alpha},
    server::Builder,
};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use crate::{Body, Error, Framed, Messages, decode, unavailable};

/// The largest request in bytes: the name of a file or a symbol.
const MAX_REQUEST: u64 = 64 * 1024;
const V1: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

type Reflector = BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    Infallible,
>;

/// The reflection service, which describes the services to clients such as grpcurl.
#[derive(Clone, Debug)]
pub(crate) struct Reflection {
    reflector: Reflector,
    shutdown: CancellationToken,
}

impl Reflection {
    /// The methods of both versions, whose messages have the same fields.
    pub(crate) const METHODS: [&'static str; 2] = [
        V1,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ];

    /// Describes `services`, health and reflection.
    pub(crate) fn new(
        services: &[&'static str],
        descriptors: &'static [u8],
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let own = [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ];
        let builder = Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(v1alpha::FILE_DESCRIPTOR_SET);
        let builder = services
            .iter()
            .chain(&own)
            .fold(builder, |builder, name| builder.with_service_name(*name));
        let reflector = BoxCloneSyncService::new(builder.build_v1()?);
        Ok(Self {
            reflector,
            shutdown,
        })
    }

    /// Answers a call, a request at a time until the server shuts down: tonic's service would end a call with `OK`
    /// after a malformed request, and would reserve the memory of any length that a client announces.
    pub(crate) fn call(&self, requests: Messages) -> Body {
        let state = (self.clone(), requests);
        let answers = stream::try_unfold(state, |(reflection, mut requests)| async {
            let answer = answer(&mut requests, reflection.reflector.clone());
            let answer = reflection.shutdown.run_until_cancelled(answer).await;
            let answer = answer.ok_or_else(|| unavailable("shutting down"))??;
            Ok(answer.map(|answer| (answer, (reflection, requests))))
        });
        Body::messages(answers.boxed(), Permit::default())
    }
}

/// Answers the next request; `None` at the end of the call.
async fn answer(requests: &mut Messages, reflector: Reflector) -> Result<Option<Framed>, Status> {
    let Some(len) = requests.next_len(MAX_REQUEST).await? else {
        return Ok(None);
    };
    let request: ServerReflectionRequest = decode(requests.whole(Bytes::new(), len).await?)?;
    let body = tonic::body::Body::new(Full::new(Framed::encode(&request).head));
    let mut request = http::Request::new(body);
    *request.uri_mut() = Uri::from_static(V1);
    let Ok(response) = reflector.oneshot(request).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().unwrap_or(&head.headers);
    match Status::from_header_map(trailers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(Some(Framed {
            head: body.to_bytes(),
            payload: Bytes::new(),
        })),
    }
}
