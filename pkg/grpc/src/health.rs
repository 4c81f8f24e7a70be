//! `grpc.health.v1`.

use std::future::{pending, ready};

use futures::{Stream, StreamExt as _, stream};
use gorego_limits::Permit;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
};

use crate::{Body, Framed, Memory, Messages, decode};

/// The largest request in bytes: the name of a service.
const MAX_REQUEST: u64 = 64 * 1024;

/// The health service. All services have the same health, since they share the stores.
#[derive(Debug)]
pub(crate) struct Health {
    services: &'static [&'static str],
    healthy: watch::Receiver<bool>,
    shutdown: CancellationToken,
}

impl Health {
    pub(crate) const CHECK: &'static str = "/grpc.health.v1.Health/Check";
    pub(crate) const WATCH: &'static str = "/grpc.health.v1.Health/Watch";

    /// Creates the health of `services`, and of the whole server under the empty name.
    pub(crate) fn new(
        services: &'static [&'static str],
        healthy: Option<watch::Receiver<bool>>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            services,
            // The receiver keeps its value when nobody sends.
            healthy: healthy.unwrap_or_else(|| watch::channel(true).1),
            shutdown,
        }
    }

    /// Answers `Check`; with `watches`, `Watch`.
    pub(crate) async fn call(
        &self,
        watches: bool,
        requests: Messages,
        memory: &Memory,
    ) -> Result<Body, Status> {
        let (request, _permit) = requests.only(MAX_REQUEST).await?;
        let HealthCheckRequest { service } = decode(request)?;
        let known = service.is_empty() || self.services.contains(&service.as_str());
        let response = move |serving| HealthCheckResponse {
            status: match serving {
                _ if !known => ServingStatus::ServiceUnknown,
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            }
            .into(),
        };
        if watches {
            let responses = self.reports().map(response);
            let mut last = None;
            let changes = responses.filter(move |now| ready(last.replace(*now) != Some(*now)));
            let messages = changes.map(|response| Ok(Framed::encode(&response)));
            return Ok(Body::messages(messages.boxed(), Permit::default()));
        }
        if !known {
            return Err(Status::not_found("no such service"));
        }
        let serving = *self.healthy.borrow() && !self.shutdown.is_cancelled();
        Body::reply(memory, &response(serving)).await
    }

    /// Streams the health: the current value, each change, and `false` at shutdown.
    fn reports(&self) -> impl Stream<Item = bool> + use<> {
        let mut healthy = self.healthy.clone();
        healthy.mark_changed();
        let reports = stream::unfold(healthy, async |mut healthy| {
            if healthy.changed().await.is_err() {
                // No more reports: the last one stays valid.
                pending::<()>().await;
            }
            let report = *healthy.borrow_and_update();
            Some((report, healthy))
        });
        let shutdown = self.shutdown.clone().cancelled_owned();
        reports
            .take_until(shutdown)
            .chain(stream::once(ready(false)))
    }
}
