//! `grpc.health.v1`: whether this server serves, asked once or watched.

use futures::{StreamExt as _, stream};
use gorego_limits::Permit;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
};

use crate::{Body, Framed};

/// The health of all services: they share the stores, so they share their fate.
#[derive(Debug)]
pub(crate) struct Health {
    services: &'static [&'static str],
    /// Whether the stores work.
    healthy: watch::Receiver<bool>,
    shutdown: CancellationToken,
    /// Keeps `healthy` open when nobody else watches the stores.
    _own: Option<watch::Sender<bool>>,
}

impl Health {
    /// The health of `services`, and of the server as a whole under the empty name.
    pub(crate) fn new(
        services: &'static [&'static str],
        healthy: Option<watch::Receiver<bool>>,
        shutdown: CancellationToken,
    ) -> Self {
        let (own, healthy) = if let Some(healthy) = healthy {
            (None, healthy)
        } else {
            let (sender, receiver) = watch::channel(true);
            (Some(sender), receiver)
        };
        Self {
            services,
            healthy,
            shutdown,
            _own: own,
        }
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }

    /// `Health.Check`.
    pub(crate) fn check(
        &self,
        request: &HealthCheckRequest,
    ) -> Result<HealthCheckResponse, Status> {
        if !self.knows(&request.service) {
            return Err(Status::not_found("no such service"));
        }
        let serving = !self.shutdown.is_cancelled() && *self.healthy.borrow();
        Ok(response(status(serving)))
    }

    /// `Health.Watch`: the present status, then each change, until the server shuts down.
    pub(crate) fn watch(&self, request: &HealthCheckRequest) -> Body {
        let known = self.knows(&request.service);
        let watcher = Watcher {
            healthy: self.healthy.clone(),
            shutdown: self.shutdown.clone(),
            last: None,
        };
        Body::messages(
            stream::unfold(watcher, move |watcher| watcher.next(known))
                .map(|status| Ok(Framed::encode(&response(status))))
                .boxed(),
            Permit::default(),
        )
    }
}

struct Watcher {
    healthy: watch::Receiver<bool>,
    shutdown: CancellationToken,
    last: Option<ServingStatus>,
}

impl Watcher {
    /// The next status that differs from the last one; `None` after that of the shutdown.
    async fn next(mut self, known: bool) -> Option<(ServingStatus, Self)> {
        loop {
            let down = self.shutdown.is_cancelled();
            let serving = !down && *self.healthy.borrow_and_update();
            let now = if known {
                status(serving)
            } else {
                ServingStatus::ServiceUnknown
            };
            if self.last != Some(now) {
                self.last = Some(now);
                return Some((now, self));
            }
            if down {
                return None;
            }
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                changed = self.healthy.changed() => if changed.is_err() {
                    // Nobody watches the stores any more: their last state stands.
                    self.shutdown.cancelled().await;
                },
            }
        }
    }
}

const fn status(serving: bool) -> ServingStatus {
    if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}
