//! The calls of a server, each observed from its headers to the end of its response.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use http::HeaderMap;

use crate::{Call, requests::Requests};

/// Observes calls. Clones observe together.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    pub(crate) requests: Arc<Requests>,
}

impl Calls {
    /// Begins to observe a call of the gRPC method at `path`, such as `/package.Service/Method`.
    pub fn began(&self, path: &str, headers: &HeaderMap, peer: SocketAddr) -> OngoingCall {
        let method = self.requests.began(path);
        OngoingCall {
            requests: Arc::clone(&self.requests),
            call: Arc::new(Call::new(method.name(), headers, peer)),
            method,
            began: Instant::now(),
        }
    }
}

/// A call in progress.
#[derive(Debug)]
pub struct OngoingCall {
    requests: Arc<Requests>,
    call: Arc<Call>,
    method: crate::requests::Method,
    began: Instant,
}

impl OngoingCall {
    /// Runs a step of the call in its context.
    pub fn within(&self, step: &mut dyn FnMut()) {
        self.call.within(step);
    }

    /// Records the end of the call, with the number of its gRPC status.
    pub fn ended(self, code: i32) {
        self.requests.ended(self.method, code, self.began.elapsed());
    }
}
