//! The call that work in the background is done for.

use gorego_limits::Call;
use tracing::{Instrument as _, Span};

/// The call that asked for an action, and its span. The work for it has both, and may outlive the call.
#[derive(Clone, Debug)]
pub struct Origin {
    call: Call,
    /// Boxed, since few of the queued actions are traced.
    span: Option<Box<Span>>,
}

impl Origin {
    /// Returns the call and the span of the current task.
    pub fn current() -> Self {
        let span = Span::current();
        Self {
            call: Call::current().detached(),
            span: (!span.is_none()).then(|| Box::new(span)),
        }
    }

    fn span(&self) -> Span {
        self.span.as_deref().map_or_else(Span::none, Span::clone)
    }

    /// Runs `work` as part of the call.
    pub fn scope<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        self.call.scope(work.instrument(self.span()))
    }

    /// Runs `step`, which may block, as part of the call.
    pub fn run<T>(&self, step: impl FnOnce() -> T) -> T {
        self.call.run(|| self.span().in_scope(step))
    }
}
