//! gRPC server reflection, in both versions that clients ask for.

use std::convert::Infallible;

use http_body::Body as HttpBody;
use tokio_util::sync::CancellationToken;
use tonic_reflection::server::Builder;
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use crate::{
    Error,
    grpc::{Body, RequestBody, Response},
};

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
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let builder = |own| {
            services.iter().fold(
                Builder::configure()
                    .register_encoded_file_descriptor_set(reapi::FILE_DESCRIPTOR_SET)
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

    pub(crate) async fn call(&self, request: http::Request<RequestBody>) -> Response {
        let reflector = if request.uri().path().starts_with("/grpc.reflection.v1.") {
            self.v1.clone()
        } else {
            self.v1alpha.clone()
        };
        let Ok(response) = reflector.oneshot(request.map(tonic::body::Body::new)).await;
        response.map(|body| {
            if body.is_end_stream() {
                Body::default()
            } else {
                Body::tonic(body, self.shutdown.clone().cancelled_owned())
            }
        })
    }
}
