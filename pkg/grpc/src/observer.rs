//! Observation of calls from outside, for example by metrics and traces.

use std::{fmt, net::SocketAddr, sync::Arc};

use http::HeaderMap;
use tonic::Code;

/// An observer of all calls, health and reflection included. No function of it or of its calls may block.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// Begins to observe a call, which is the current [`gorego_limits::Call`] now, in all steps and at the end.
    fn began(&self, call: &CallHead<'_>) -> Box<dyn ObservedCall>;
}

/// The beginning of a call.
#[derive(Clone, Copy, Debug)]
pub struct CallHead<'a> {
    /// The method, such as `/package.Service/Method`. Clients choose it, so it may be unknown.
    pub path: &'a str,
    /// The headers; at most 16 KiB, unless the call is refused for them.
    pub headers: &'a HeaderMap,
    /// The client's address.
    pub peer: SocketAddr,
}

/// A call from its headers to the end of its response.
pub trait ObservedCall: Send + Sync {
    /// Runs `step`, a part of the call, once. A call has many steps, each run by any thread.
    fn within(&self, step: &mut dyn FnMut());

    /// Ends the observation with the call's status: `CANCELLED` if the client or the end of its connection cut the
    /// call off.
    fn ended(self: Box<Self>, code: Code);
}

/// The observation of a call, if there is an observer. Ends when it is dropped.
#[derive(Default)]
pub(crate) struct Observation(Option<(Box<dyn ObservedCall>, Code)>);

impl Observation {
    pub(crate) fn new(observer: Option<&Arc<dyn Observer>>, head: &CallHead<'_>) -> Self {
        Self(observer.map(|observer| (observer.began(head), Code::Cancelled)))
    }

    /// Runs a part of the call. `None` if the observer did not run it.
    pub(crate) fn step<T>(&self, step: impl FnOnce() -> T) -> Option<T> {
        let Some((call, _)) = &self.0 else {
            return Some(step());
        };
        let (mut step, mut done) = (Some(step), None);
        call.within(&mut || done = step.take().map(|step| step()));
        done
    }

    /// Records the status that the client is sent.
    pub(crate) fn answered(&mut self, status: Code) {
        if let Some((_, code)) = &mut self.0 {
            *code = status;
        }
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if let Some((call, code)) = self.0.take() {
            call.ended(code);
        }
    }
}
