//! gRPC server reflection, in both versions that clients ask for.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use gorego_limits::Permit;
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_reflection::{pb::v1::ServerReflectionRequest, server::Builder};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use crate::{Body, Error, Framed, Messages, Response, decode, unavailable};

/// The largest request taken, in bytes: the name of a file or a symbol.
const MAX_REQUEST: u64 = 64 * 1024;

type Reflector = BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    Infallible,
>;

/// Describes the services to clients such as grpcurl.
#[derive(Clone, Debug)]
pub(crate) struct Reflection {
    v1: Reflector,
    v1alpha: Reflector,
    shutdown: CancellationToken,
}

impl Reflection {
    /// Describes `services`, and itself.
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

    /// Answers the requests of one call. tonic's service ends with `OK` whatever is wrong with one
    /// of them, so they are read here, and what is wrong takes the place of that.
    pub(crate) async fn call(&self, head: http::request::Parts, requests: Messages) -> Response {
        let reflector = if head.uri.path().starts_with("/grpc.reflection.v1.") {
            self.v1.clone()
        } else {
            self.v1alpha.clone()
        };
        let wrong = Wrong::default();
        let requests = StreamBody::new(checked(requests, Arc::clone(&wrong)));
        let request = http::Request::from_parts(head, tonic::body::Body::new(requests));
        let Ok(response) = reflector.oneshot(request).await;
        response.map(|body| {
            if body.is_end_stream() {
                Body::default()
            } else {
                let answers = answers(body, wrong, self.shutdown.clone());
                Body::messages(answers.boxed(), Permit::default())
            }
        })
    }
}

/// What was wrong with a request.
type Wrong = Arc<OnceLock<Status>>;

/// The requests as they go over the wire, up to one that is not right.
fn checked(
    requests: Messages,
    wrong: Wrong,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
    stream::unfold(requests, move |mut requests| {
        let wrong = Arc::clone(&wrong);
        async move {
            match next(&mut requests).await {
                Ok(request) => Some((Ok(Frame::data(request?.head)), requests)),
                Err(status) => {
                    let _ = wrong.set(status);
                    None
                }
            }
        }
    })
}

/// The next request. Both versions have the same fields.
async fn next(requests: &mut Messages) -> Result<Option<Framed>, Status> {
    let Some(len) = requests.next_len_within(MAX_REQUEST.into()).await? else {
        return Ok(None);
    };
    let request: ServerReflectionRequest = decode(requests.whole(len).await?)?;
    Ok(Some(Framed::encode(&request)))
}

/// What tonic's service answers, until the server shuts down.
fn answers(
    body: tonic::body::Body,
    wrong: Wrong,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<Framed, Status>> + Send {
    stream::try_unfold(body, move |mut body| {
        let (wrong, shutdown) = (Arc::clone(&wrong), shutdown.clone());
        async move {
            let frame = shutdown.run_until_cancelled(body.frame()).await;
            let frame = frame.ok_or_else(|| unavailable("shutting down"))?;
            let trailers = match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(head)) => {
                    let framed = Framed {
                        head,
                        ..Framed::default()
                    };
                    return Ok(Some((framed, body)));
                }
                Some(Err(frame)) => frame.into_trailers().ok(),
                None => None,
            };
            let told = || trailers.and_then(|trailers| Status::from_header_map(&trailers));
            match wrong.get().cloned().or_else(told) {
                Some(status) if status.code() != Code::Ok => Err(status),
                _ => Ok(None),
            }
        }
    })
}
