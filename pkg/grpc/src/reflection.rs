//! gRPC server reflection, in both versions that clients ask for.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_limits::Permit;
use http::Uri;
use http_body_util::{BodyExt as _, Full};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_reflection::{pb::v1::ServerReflectionRequest, server::Builder};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use crate::{Body, Error, Framed, Messages, decode, unavailable};

/// The largest request in bytes: the name of a file or a symbol.
const MAX_REQUEST: u64 = 64 * 1024;

type Reflector = BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    Infallible,
>;

/// The reflection service, which describes the services to clients such as grpcurl.
#[derive(Clone, Debug)]
pub(crate) struct Reflection {
    v1: Reflector,
    v1alpha: Reflector,
    shutdown: CancellationToken,
}

impl Reflection {
    /// Describes `services`, health and reflection.
    pub(crate) fn new(
        services: &[&'static str],
        descriptors: &'static [u8],
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let builder = |own| {
            services.iter().fold(
                Builder::configure()
                    .register_encoded_file_descriptor_set(descriptors)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                    .with_service_name("grpc.health.v1.Health")
                    .with_service_name(own),
                |builder, service| builder.with_service_name(*service),
            )
        };
        let v1 = builder("grpc.reflection.v1.ServerReflection").build_v1()?;
        let v1alpha = builder("grpc.reflection.v1alpha.ServerReflection").build_v1alpha()?;
        Ok(Self {
            v1: BoxCloneSyncService::new(v1),
            v1alpha: BoxCloneSyncService::new(v1alpha),
            shutdown,
        })
    }

    /// Answers a call, a request at a time until the server shuts down: tonic's service would end a call with `OK`
    /// after a malformed request, and would reserve the memory of any length that a client announces.
    pub(crate) fn call(&self, uri: &Uri, requests: Messages) -> Body {
        let reflector = if uri.path().starts_with("/grpc.reflection.v1.") {
            self.v1.clone()
        } else {
            self.v1alpha.clone()
        };
        let (uri, shutdown) = (uri.clone(), self.shutdown.clone());
        let answers = stream::try_unfold(requests, move |mut requests| {
            let (reflector, uri, shutdown) = (reflector.clone(), uri.clone(), shutdown.clone());
            async move {
                let answer = answer(&mut requests, reflector, uri);
                let answer = shutdown.run_until_cancelled(answer).await;
                let answer = answer.ok_or_else(|| unavailable("shutting down"))??;
                Ok(answer.map(|answer| (answer, requests)))
            }
        });
        Body::messages(answers.boxed(), Permit::default())
    }
}

/// Answers the next request; `None` at the end of the call. Both versions have the same fields.
async fn answer(
    requests: &mut Messages,
    reflector: Reflector,
    uri: Uri,
) -> Result<Option<Framed>, Status> {
    let Some(len) = requests.next_len(MAX_REQUEST).await? else {
        return Ok(None);
    };
    let request: ServerReflectionRequest = decode(requests.whole(Bytes::new(), len).await?)?;
    let body = tonic::body::Body::new(Full::new(Framed::encode(&request).head));
    let mut request = http::Request::new(body);
    *request.uri_mut() = uri;
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
