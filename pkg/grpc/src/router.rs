//! Calls: their deadline, panics, shutdown, health and reflection; the others go to the service.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt as _;
use http::HeaderMap;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    Call, Error, Memory, Options, Response, call::panicked, deadline, head::timeout,
    health::Health, reflection::Reflection, refuse, response::too_late, unavailable,
};

const HEALTH: &str = "/grpc.health.v1.Health";
const REFLECTION: &str = "/grpc.reflection.";

/// The largest request to health: the name of a service.
const SMALL: u64 = 64 * 1024;

/// The methods behind a server.
pub trait Service: Send + Sync + 'static {
    /// The full names of its services, as health and reflection list them.
    const NAMES: &'static [&'static str];

    /// Refuses a call by its headers.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Status>;

    /// Answers a call of `method` of `service`; `None` if there is no such method.
    fn call(
        &self,
        service: &str,
        method: &str,
        call: Call,
    ) -> impl Future<Output = Option<Response>> + Send;
}

/// A service, and what is common to all calls.
#[derive(Debug)]
pub(crate) struct Router<S> {
    service: S,
    health: Health,
    reflection: Reflection,
    memory: Memory,
    idle_timeout: Duration,
    shutdown: CancellationToken,
}

impl<S: Service> Router<S> {
    pub(crate) fn new(
        service: S,
        options: Options,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        Ok(Self {
            service,
            health: Health::new(S::NAMES, options.healthy, shutdown.clone()),
            reflection: Reflection::new(S::NAMES, options.descriptors, shutdown.clone())?,
            memory: options.memory,
            idle_timeout: options.limits.idle_timeout,
            shutdown,
        })
    }

    /// Answers any call within the time that its client gives it. A panic while doing so does not
    /// affect other calls.
    pub(crate) async fn call(&self, request: http::Request<Incoming>) -> Response {
        let deadline = match timeout(request.headers()) {
            Ok(timeout) => timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            Err(status) => return refuse(&status),
        };
        let answer = AssertUnwindSafe(self.dispatch(request)).catch_unwind();
        let answer = match deadline {
            None => answer.await,
            Some(deadline) => {
                deadline::end_at(deadline);
                match timeout_at(deadline, answer).await {
                    Ok(answer) => answer,
                    Err(_) => return refuse(&too_late()),
                }
            }
        };
        let mut response = answer.unwrap_or_else(|_| refuse(&panicked()));
        if let Some(deadline) = deadline {
            response.body_mut().end_at(deadline);
        }
        response
    }

    async fn dispatch(&self, request: http::Request<Incoming>) -> Response {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path();
        let (service, method) = path.rsplit_once('/').unwrap_or_default();
        if self.shutdown.is_cancelled() && service != HEALTH {
            return refuse(&unavailable("shutting down"));
        }
        if let Err(status) = self.service.admit(&parts.headers) {
            return refuse(&status);
        }
        // The service needs no header, and many calls may wait for long.
        parts.headers = HeaderMap::new();
        let call = Call::new(body, self.idle_timeout, self.memory.clone());
        // In boxes, since the future of a call is moved about before it runs, and these are large.
        let answer = match service {
            HEALTH => Box::pin(self.health(method, call)).await,
            service if service.starts_with(REFLECTION) => {
                let requests = call.into_messages();
                return Box::pin(self.reflection.call(parts, requests)).await;
            }
            service => {
                let service = service.strip_prefix('/').unwrap_or_default();
                self.service.call(service, method, call).await
            }
        };
        answer.unwrap_or_else(|| {
            let known = S::NAMES.join(", ");
            refuse(&Status::unimplemented(format!(
                "no method {:?} here; this server offers {known}",
                path.chars().take(100).collect::<String>()
            )))
        })
    }

    async fn health(&self, method: &str, call: Call) -> Option<Response> {
        Some(match method {
            "Check" => {
                call.unary(SMALL, flat, async |request| self.health.check(&request))
                    .await
            }
            "Watch" => {
                call.answered(SMALL, flat, async |request| Ok(self.health.watch(&request)))
                    .await
            }
            _ => return None,
        })
    }
}

/// The memory that the fields of health's requests take beside the message: at most the message's size.
#[expect(clippy::unnecessary_wraps, reason = "a Measure")]
const fn flat(_encoded: &[u8]) -> Result<usize, Status> {
    Ok(0)
}
