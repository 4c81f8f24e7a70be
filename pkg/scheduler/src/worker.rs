//! Workers: the trait, and a scripted one for tests.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::state::{Grant, Phase, Report};

/// The runner of attempts: the executor of this node, or a peer.
#[async_trait]
pub trait Worker<J, O>: Send + Sync {
    /// Returns whether the worker meets the requirements of [`Request::platform`](crate::Request::platform).
    fn fits(&self, platform: &str) -> bool;

    /// Waits until the worker can start another attempt. Executions stay queued meanwhile, so that it must end after a
    /// while.
    async fn ready(&self);

    /// Runs an attempt to its end. An attempt that ends without a report, by a panic, counts as lost.
    async fn run(&self, attempt: Attempt<J>) -> Report<O>;
}

/// An attempt that a worker runs.
pub struct Attempt<J> {
    /// The work and the resources for it.
    pub grant: Grant<J>,
    /// Cancelled when the attempt has to stop. The worker then kills the action, and returns [`Report::Stopped`].
    pub stop: CancellationToken,
    pub(crate) progress: Arc<dyn Fn(Phase) + Send + Sync>,
}

impl<J> Attempt<J> {
    /// Records the phase that begins.
    pub fn begin(&self, phase: Phase) {
        (self.progress)(phase);
    }

    /// Returns the attempt with another observer of its phases, for decorators of workers.
    #[must_use]
    pub fn observed(self, observe: impl Fn(Phase) + Send + Sync + 'static) -> Self {
        let progress = Arc::clone(&self.progress);
        let both = move |phase| {
            observe(phase);
            progress(phase);
        };
        Self {
            progress: Arc::new(both),
            ..self
        }
    }
}

impl<J> fmt::Debug for Attempt<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempt = &self.grant.attempt;
        f.debug_tuple("Attempt").field(attempt).finish()
    }
}

/// A worker for tests, which hands its attempts to the test.
#[derive(Debug)]
pub struct ScriptedWorker<J, O>(mpsc::Sender<ScriptedAttempt<J, O>>);

/// An attempt of a [`ScriptedWorker`]. When dropped, it reports [`Report::Stopped`].
#[derive(Debug)]
pub struct ScriptedAttempt<J, O> {
    /// The attempt.
    pub attempt: Attempt<J>,
    report: oneshot::Sender<Report<O>>,
}

impl<J, O> ScriptedWorker<J, O> {
    /// Creates a worker that fits every platform. Its attempts arrive at the receiver when they start.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<ScriptedAttempt<J, O>>) {
        let (sender, receiver) = mpsc::channel(64);
        (Arc::new(Self(sender)), receiver)
    }
}

impl<J, O> ScriptedAttempt<J, O> {
    /// Ends the attempt.
    pub fn end(self, report: Report<O>) {
        // Fails if the runner is gone.
        let _ = self.report.send(report);
    }
}

#[async_trait]
impl<J: Send + Sync, O: Send + Sync> Worker<J, O> for ScriptedWorker<J, O> {
    fn fits(&self, _platform: &str) -> bool {
        true
    }

    async fn ready(&self) {}

    async fn run(&self, attempt: Attempt<J>) -> Report<O> {
        let (report, reported) = oneshot::channel();
        let scripted = ScriptedAttempt { attempt, report };
        if self.0.send(scripted).await.is_err() {
            return Report::Stopped;
        }
        reported.await.unwrap_or(Report::Stopped)
    }
}
