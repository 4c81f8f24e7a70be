//! The calls of a server, each observed from its headers to the end of its response.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use http::HeaderMap;
use tracing::{Level, Span, enabled, info};

use crate::{
    Call, logs,
    requests::{Method, Requests, code_name},
    traces::{context::Sampling, request},
};

/// Observes calls. Clones observe together.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    pub(crate) requests: Arc<Requests>,
    sampling: Option<Sampling>,
}

impl Calls {
    /// Creates an observer. It traces the calls that `sampling` selects; none without it.
    pub fn new(sampling: Option<Sampling>) -> Self {
        Self {
            sampling,
            ..Self::default()
        }
    }

    /// Begins to observe the call of the current task, of the gRPC method at `path`, such as `/package.Service/Method`.
    pub fn began(&self, path: &str, headers: &HeaderMap, peer: SocketAddr) -> OngoingCall {
        let method = self.requests.began(path);
        let call = Arc::new(Call::new(method.name(), headers, peer));
        call.attach();
        let samples = |sampling: Sampling| sampling.samples(call.parent.as_deref());
        OngoingCall {
            requests: Arc::clone(&self.requests),
            span: match self.sampling {
                Some(sampling) if samples(sampling) => request::begin(&call, path),
                _ => Span::none(),
            },
            call,
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
    span: Span,
    method: Method,
    began: Instant,
}

impl OngoingCall {
    /// Runs a step of the call in its span.
    pub fn within(&self, step: &mut dyn FnMut()) {
        self.span.in_scope(step);
    }

    /// Records the end of the call, with the number of its gRPC status.
    pub fn ended(self, code: i32) {
        let took = self.began.elapsed();
        self.requests
            .ended(self.method, code, took, self.call.trace_id());
        request::end(&self.span, code);
        if !enabled!(target: logs::ACCESS, Level::INFO) {
            return;
        }
        let metadata = self.call.metadata();
        info!(
            target: logs::ACCESS,
            method = self.call.method,
            code = code_name(code),
            seconds = took.as_secs_f64(),
            peer = %self.call.peer,
            action = metadata.map(|sent| sent.action_id.as_str()),
            target = metadata.map(|sent| sent.target_id.as_str()),
            mnemonic = metadata.map(|sent| sent.action_mnemonic.as_str()),
        );
    }
}
