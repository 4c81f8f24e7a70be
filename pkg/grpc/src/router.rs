//! Dispatch of calls, with what is common to all of them: deadline, panics, shutdown, health and reflection.

use std::{panic::AssertUnwindSafe, pin::pin, time::Duration};

use futures::FutureExt as _;
use http::HeaderMap;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    Body, Error, Memory, Messages, Options,
    head::timeout,
    health::Health,
    reflection::Reflection,
    response::{Response, refuse},
    status::{panicked, too_late},
    unavailable, watchdog,
};

/// The services behind a server.
pub trait Service: Send + Sync + 'static {
    /// The full names of the services, as health and reflection list them.
    const NAMES: &'static [&'static str];
    /// The encoded `FileDescriptorSet` of the services, for reflection.
    const DESCRIPTORS: &'static [u8];

    /// Refuses a call by its headers.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Status>;

    /// Answers a call of the method at `path`, such as `/package.Service/Method`.
    fn call(
        &self,
        path: &str,
        requests: Messages,
    ) -> impl Future<Output = Result<Body, Status>> + Send;

    /// Returns the refusal of a call of a method that this server does not have.
    fn unknown(path: &str) -> Status {
        let known = Self::NAMES.join(", ");
        let path: String = path.chars().take(100).collect();
        Status::unimplemented(format!("no method {path:?}; this server offers {known}"))
    }
}

/// A service, with health and reflection.
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
        options: &Options,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        Ok(Self {
            service,
            health: Health::new(S::NAMES, options.healthy.clone(), shutdown.clone()),
            reflection: Reflection::new(S::NAMES, S::DESCRIPTORS, shutdown.clone())?,
            memory: options.memory.clone(),
            idle_timeout: options.limits.idle_timeout,
            shutdown,
        })
    }

    /// Answers a call before its deadline. A panic fails this call alone.
    pub(crate) async fn call(&self, request: http::Request<Incoming>) -> Response {
        let timeout = match timeout(request.headers()) {
            Ok(timeout) => timeout,
            Err(status) => return refuse(&status),
        };
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let answer = async {
            let (head, body) = request.into_parts();
            let path = head.uri.path();
            let is_health = matches!(path, Health::CHECK | Health::WATCH);
            if self.shutdown.is_cancelled() && !is_health {
                return Err(unavailable("shutting down"));
            }
            self.service.admit(&head.headers)?;
            // No service needs a header, and many calls may wait for long.
            drop(head.headers);
            let requests = Messages::new(body, self.idle_timeout, self.memory.clone());
            if is_health {
                // Boxed, since the future of a call is moved before it runs, and this one is large.
                let watches = path == Health::WATCH;
                Box::pin(self.health.call(watches, requests, &self.memory)).await
            } else if Reflection::METHODS.contains(&path) {
                Ok(self.reflection.call(requests))
            } else {
                self.service.call(path, requests).await
            }
        };
        // Pinned here, since each layer of futures would have room for it twice.
        let answer = pin!(AssertUnwindSafe(answer).catch_unwind());
        let answer = match deadline {
            None => answer.await,
            Some(deadline) => {
                watchdog::end_at(deadline);
                let answer = timeout_at(deadline, answer).await;
                answer.unwrap_or_else(|_| Ok(Err(too_late())))
            }
        };
        match answer.unwrap_or_else(|_| Err(panicked())) {
            Ok(body) => body.into_response(deadline),
            Err(status) => refuse(&status),
        }
    }
}
