//! Dispatch of calls, with what is common to all of them: deadline, panics, shutdown, health and reflection.

use std::{
    future::poll_fn, net::SocketAddr, panic::AssertUnwindSafe, pin::pin, sync::Arc, task::Poll,
    time::Duration,
};

use futures::FutureExt as _;
use gorego_tls::NodeIdentity;
use http::HeaderMap;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    Body, Error, Memory, Messages, Observer, Options,
    head::timeout,
    health::Health,
    observer::{CallHead, Observation},
    reflection::Reflection,
    response::{Response, refuse},
    status::{panicked, too_late},
    unavailable, watchdog,
};

/// The services behind a server.
pub trait Service: Send + Sync + 'static {
    /// The encoded `FileDescriptorSet` of the services, for reflection.
    const DESCRIPTORS: &'static [u8];

    /// The part of a call's headers that its answer needs.
    type Context: Send;

    /// Returns the full names of the services, as health and reflection list them.
    fn names(&self) -> &'static [&'static str];

    /// Refuses a call by its headers or its peer, or extracts the data that [`Self::call`] needs. The headers are
    /// dropped, since many calls may wait for long.
    fn admit(&self, path: &str, headers: &HeaderMap, peer: &Peer) -> Result<Self::Context, Status>;

    /// Answers a call of the method at `path`, such as `/package.Service/Method`.
    fn call(
        &self,
        path: &str,
        context: Self::Context,
        requests: Messages,
    ) -> impl Future<Output = Result<Body, Status>> + Send;

    /// Returns the refusal of a call of a method that this server does not have.
    fn unknown(&self, path: &str) -> Status {
        let known = self.names().join(", ");
        let path: String = path.chars().take(100).collect();
        Status::unimplemented(format!("no method {path:?}; this server offers {known}"))
    }
}

/// The other side of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its name as a node of a cluster, in the certificate that it showed; `None` if it showed none.
    pub node: Option<Arc<NodeIdentity>>,
}

/// A service, with health and reflection.
#[derive(Debug)]
pub(crate) struct Router<S> {
    service: S,
    health: Health,
    reflection: Reflection,
    memory: Memory,
    idle_timeout: Duration,
    observer: Option<Arc<dyn Observer>>,
    shutdown: CancellationToken,
}

impl<S: Service> Router<S> {
    pub(crate) fn new(
        service: S,
        options: &Options,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let names = service.names();
        Ok(Self {
            service,
            health: Health::new(names, options.healthy.clone(), shutdown.clone()),
            reflection: Reflection::new(names, S::DESCRIPTORS, shutdown.clone())?,
            memory: options.memory.clone(),
            idle_timeout: options.limits.idle_timeout,
            observer: options.observer.clone(),
            shutdown,
        })
    }

    /// Answers a call, observed until its response has ended.
    pub(crate) async fn call(&self, request: http::Request<Incoming>, peer: Peer) -> Response {
        let mut observed = self.observe(&request, peer.address);
        let (deadline, answer) = match timeout(request.headers()) {
            Ok(timeout) => {
                let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
                // Pinned here, since each layer of futures would have room for it twice.
                let mut answer = pin!(self.answer(request, &peer, deadline));
                let step = poll_fn(|cx| {
                    let polled = observed.step(|| answer.as_mut().poll(cx));
                    polled.unwrap_or_else(|| Poll::Ready(Err(panicked())))
                });
                (deadline, step.await)
            }
            Err(status) => (None, Err(status)),
        };
        match answer {
            Ok(body) => body.into_response(deadline, observed),
            Err(status) => {
                observed.answered(status.code());
                refuse(&status)
            }
        }
    }

    /// Records a call that was refused by its headers.
    pub(crate) fn refused<B>(
        &self,
        request: &http::Request<B>,
        peer: SocketAddr,
        refusal: &Response,
    ) {
        if let Some(status) = Status::from_header_map(refusal.headers()) {
            self.observe(request, peer).answered(status.code());
        }
    }

    fn observe<B>(&self, request: &http::Request<B>, peer: SocketAddr) -> Observation {
        let head = CallHead {
            path: request.uri().path(),
            headers: request.headers(),
            peer,
        };
        Observation::new(self.observer.as_ref(), &head)
    }

    /// Answers a call before its deadline. A panic fails this call alone.
    async fn answer(
        &self,
        request: http::Request<Incoming>,
        peer: &Peer,
        deadline: Option<Instant>,
    ) -> Result<Body, Status> {
        let answer = async {
            let (head, body) = request.into_parts();
            let path = head.uri.path();
            let is_health = matches!(path, Health::CHECK | Health::WATCH);
            if self.shutdown.is_cancelled() && !is_health {
                return Err(unavailable("shutting down"));
            }
            let context = self.service.admit(path, &head.headers, peer)?;
            drop(head.headers);
            let requests = Messages::new(body, self.idle_timeout, self.memory.clone());
            if is_health {
                // Boxed, since the future of a call is moved before it runs, and this one is large.
                let watches = path == Health::WATCH;
                Box::pin(self.health.call(watches, requests, &self.memory)).await
            } else if Reflection::METHODS.contains(&path) {
                Ok(self.reflection.call(requests))
            } else {
                self.service.call(path, context, requests).await
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
        answer.unwrap_or_else(|_| Err(panicked()))
    }
}
