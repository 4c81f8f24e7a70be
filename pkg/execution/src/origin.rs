//! The call that work in the background is done for.

use gorego_limits::Call;
use tracing::{Instrument as _, Span};

/// The call that asked for an action, and its span. The work for it has both, and may outlive the call.
#[derive(Clone, Debug)]
pub struct Origin {
    call: Call,
    span: Span,
}

impl Origin {
    /// Returns the call and the span of the current task.
    pub fn current() -> Self {
        Self {
            call: Call::current().detached(),
            span: Span::current(),
        }
    }

    /// Runs `work` as part of the call.
    pub fn scope<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        self.call.scope(work.instrument(self.span.clone()))
    }

    /// Runs `step`, which may block, as part of the call.
    pub fn run<T>(&self, step: impl FnOnce() -> T) -> T {
        self.call.run(|| self.span.in_scope(step))
    }
}
