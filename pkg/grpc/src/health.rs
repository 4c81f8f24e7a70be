//! `grpc.health.v1`.

use futures::{StreamExt as _, stream};
use gorego_limits::Permit;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
};

use crate::{Body, Framed, Memory, Messages, decode_within};

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

    /// Answers a call; `None` if there is no such method.
    pub(crate) async fn call(
        &self,
        path: &str,
        requests: Messages,
        memory: &Memory,
    ) -> Result<Option<Body>, Status> {
        let (_, method) = path.rsplit_once('/').unwrap_or_default();
        if !matches!(method, "Check" | "Watch") {
            return Ok(None);
        }
        // The fields take no more memory than the message.
        let (encoded, wire) = requests.only(MAX_REQUEST).await?;
        let (request, _permits) = decode_within(memory, encoded, wire, |_| Ok(0)).await?;
        let HealthCheckRequest { service } = request;
        let known = service.is_empty() || self.services.contains(&service.as_str());
        let watcher = Watcher {
            known,
            healthy: self.healthy.clone(),
            shutdown: self.shutdown.clone(),
            last: None,
        };
        if method == "Watch" {
            let statuses = stream::unfold(watcher, Watcher::next);
            let messages = statuses.map(|status| Ok(Framed::encode(&response(status))));
            return Ok(Some(Body::messages(messages.boxed(), Permit::default())));
        }
        if !known {
            return Err(Status::not_found("no such service"));
        }
        let status = response(watcher.status());
        Body::reply(memory, &status).await.map(Some)
    }
}

/// A watcher of the health of one service.
struct Watcher {
    known: bool,
    healthy: watch::Receiver<bool>,
    shutdown: CancellationToken,
    last: Option<ServingStatus>,
}

impl Watcher {
    fn status(&self) -> ServingStatus {
        if !self.known {
            ServingStatus::ServiceUnknown
        } else if *self.healthy.borrow() && !self.shutdown.is_cancelled() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }

    /// Waits for a status that differs from the last one; `None` after that of the shutdown.
    async fn next(mut self) -> Option<(ServingStatus, Self)> {
        loop {
            let down = self.shutdown.is_cancelled();
            self.healthy.mark_unchanged();
            let now = self.status();
            if self.last.replace(now) != Some(now) {
                return Some((now, self));
            }
            if down {
                return None;
            }
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                changed = self.healthy.changed() => if changed.is_err() {
                    // No more reports: the last one stays valid.
                    self.shutdown.cancelled().await;
                },
            }
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    let status = status.into();
    HealthCheckResponse { status }
}
