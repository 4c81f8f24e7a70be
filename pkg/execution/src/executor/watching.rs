//! Views of the operations of all clients: lists, and logs.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use gorego_sandbox::LiveCommand;
use gorego_scheduler::{
    AttemptId, End, EndedAction, ListedAction, LogKind, LogName, OperationName, Phase, Running,
    Stage, WorkerId,
};
use gorego_storage::InstanceName;
use reapi::{
    gorego::{
        ResourceUsage,
        cluster::{Attempt, Node, ReadLogRequest},
    },
    longrunning::Operation,
    v2::ExecuteResponse,
};
use tokio::{sync::OwnedSemaphorePermit, task::spawn_blocking, time::sleep};

use super::Executor;
use crate::{Failure, Job, LogReader, operation::OperationHead};

/// The most operations on a page of a list.
const MAX_PAGE: usize = 1000;
/// The most clients that follow a log at once. Each holds a file open.
pub(super) const MAX_READERS: usize = 64;
/// The interval in which a reader checks whether the node of an action has begun.
const POLL: Duration = Duration::from_millis(100);

/// The live log of a command.
#[derive(Debug)]
pub enum Log {
    /// The command runs on this node.
    Here(LogReader),
    /// The command runs on another node.
    Elsewhere(GuestLog),
}

/// The live log of a command that another node runs.
#[derive(Debug)]
pub struct GuestLog {
    /// The name.
    pub name: LogName,
    /// The name of the node.
    pub node: String,
    /// The request for the log to that node.
    pub request: ReadLogRequest,
    attempt: AttemptId,
    _permit: OwnedSemaphorePermit,
}

/// A queued or running action.
#[derive(Debug)]
pub struct CurrentAction {
    /// The name of one of its operations in lists.
    pub name: OperationName,
    /// The action.
    pub action: ListedAction<Job>,
    /// The resources that its command uses, at another node as of a second or two ago; `None` if it does not run.
    pub usage: Option<ResourceUsage>,
}

/// An action that has ended.
#[derive(Debug)]
pub struct RecentAction {
    /// The name of one of its operations in lists.
    pub name: OperationName,
    /// The action.
    pub action: EndedAction,
    /// The time of the submission.
    pub submitted: SystemTime,
    /// The end; `None` if the operation has expired.
    pub end: Option<End<ExecuteResponse>>,
}

/// A page of a list of operations.
#[derive(Debug, Default)]
pub struct OperationPage {
    /// The queued and running operations, the oldest first.
    pub operations: Vec<Operation>,
    /// The position of the next page; `None` on the last one.
    pub next: Option<usize>,
}

impl Executor {
    /// Returns the queued and running operations from position `from` on, at most `most` and at most a thousand; with an
    /// instance, only those of it. Operations that are merged are one. Positions shift when operations end. Their names
    /// give no right to end them.
    pub async fn list(
        &self,
        instance: Option<&InstanceName>,
        from: usize,
        most: usize,
    ) -> OperationPage {
        let end = from.saturating_add(most.clamp(1, MAX_PAGE));
        let listed = self.runner.list(end.saturating_add(1));
        let next = (listed.len() > end).then_some(end);
        let page = listed.into_iter().take(end).skip(from);
        let page = page.filter(|action| instance.is_none_or(|of| *of == action.key.instance));
        let page = self.measured(page.collect()).await;
        let operations = page.into_iter().map(
            |CurrentAction {
                 name,
                 action,
                 usage,
             }| {
                let head = OperationHead {
                    queued: SystemTime::now().checked_sub(action.age),
                    ..self.head_of(name, action.key.action)
                };
                head.listed(action, usage)
            },
        );
        let operations = operations.collect();
        OperationPage { operations, next }
    }

    /// Returns at most `most` of the queued and running actions, the oldest first.
    pub async fn current(&self, most: usize) -> Vec<CurrentAction> {
        self.measured(self.runner.list(most)).await
    }

    /// Returns the actions that ended last, the newest first.
    pub fn recent(&self) -> Vec<RecentAction> {
        let recent = self.runner.recent().into_iter();
        let recent = recent.map(|(action, stage)| RecentAction {
            name: self.shown(&action.key.instance, action.operation),
            submitted: self
                .epoch
                .checked_add(action.submitted)
                .unwrap_or(self.epoch),
            action,
            end: match stage {
                Some(Stage::Completed(end)) => Some(end),
                _ => None,
            },
        });
        recent.collect()
    }

    async fn measured(&self, actions: Vec<ListedAction<Job>>) -> Vec<CurrentAction> {
        let jobs: Vec<_> = actions
            .iter()
            .map(|action| Arc::clone(&action.job))
            .collect();
        let usage = self.measure(&jobs).await;
        let measured = actions.into_iter().zip(usage);
        let measured = measured.map(|(action, usage)| CurrentAction {
            name: self.shown(&action.key.instance, action.operation),
            usage: usage.or_else(|| elsewhere(&action)),
            action,
        });
        measured.collect()
    }

    /// Returns the resources that the command of each job uses; `None` for those whose command does not run at this
    /// node.
    pub async fn measure(&self, jobs: &[Arc<Job>]) -> Vec<Option<ResourceUsage>> {
        let commands = jobs.iter().map(|job| job.live.command());
        let commands: Vec<LiveCommand> = commands.map(Option::unwrap_or_default).collect();
        let _alone = self.measuring.lock().await;
        let measured = spawn_blocking(move || LiveCommand::measure(&commands)).await;
        let Ok(measured) = measured else {
            return vec![None; jobs.len()];
        };
        let usage = measured.into_iter().map(|usage| {
            let usage = usage?;
            Some(ResourceUsage {
                processor_ms: u64::try_from(usage.processor.as_millis()).unwrap_or(u64::MAX),
                resident_bytes: usage.resident_bytes,
            })
        });
        usage.collect()
    }

    /// Records the resources that the command of a job uses in an attempt at another node; `None` if it does not run.
    pub fn record_usage(&self, job: &Job, attempt: AttemptId, usage: Option<ResourceUsage>) {
        job.live.set_elsewhere(attempt, usage);
    }

    /// Returns the log of this name from `offset` on. Waits until the node that runs the action has begun. A command
    /// that runs again has another log, which the next message about the operation names.
    pub async fn log(&self, name: &LogName, offset: u64) -> Result<Log, Failure> {
        loop {
            let (running, job) = self.logged(name)?;
            if running.worker == WorkerId::new(&self.options.node) {
                let permit = self.log_permit()?;
                let reader = job.live.read(name.run, name.kind, offset, permit);
                return Ok(Log::Here(reader));
            }
            if running.phase.is_some() {
                return Ok(Log::Elsewhere(self.guest_log_of(name, &running, offset)?));
            }
            sleep(POLL).await;
        }
    }

    fn guest_log_of(
        &self,
        name: &LogName,
        running: &Running,
        offset: u64,
    ) -> Result<GuestLog, Failure> {
        let request = ReadLogRequest {
            entry: Some(Node {
                name: self.generation.node().to_owned(),
                generation: self.generation.number(),
            }),
            attempt: Some(Attempt {
                execution: running.attempt.execution(),
                number: running.attempt.number(),
            }),
            run: name.run,
            is_stderr: name.kind == LogKind::Stderr,
            offset,
        };
        Ok(GuestLog {
            name: name.clone(),
            node: running.worker.to_string(),
            attempt: running.attempt,
            request,
            _permit: self.log_permit()?,
        })
    }

    /// Returns whether the command of a log may still run.
    pub fn is_current(&self, log: &GuestLog) -> bool {
        let running = self.logged(&log.name);
        running.is_ok_and(|(running, _)| running.attempt == log.attempt)
    }

    /// Returns the attempt that writes a log, or will write it.
    fn logged(&self, name: &LogName) -> Result<(Running, Arc<Job>), Failure> {
        let id = name.operation;
        let found = self
            .runner
            .get(id)
            .filter(|(key, _)| name.generation == self.generation && name.instance == key.instance);
        let Some((_, stage)) = found else {
            let why = "the action ended a while ago, or this server has started again since";
            return Err(Failure::UnknownOperation(format!("no log {name}: {why}")));
        };
        let running = match stage {
            Stage::Executing(running) => Some(running),
            Stage::Queued | Stage::Completed(_) => None,
        };
        let running = running.filter(|running| {
            u32::from(running.run) == name.run && running.phase <= Some(Phase::Run)
        });
        running.zip(self.runner.job(id)).ok_or_else(|| {
            let why = "the command has ended, and the result of the action has the log";
            Failure::UnknownOperation(format!("no log {name}: {why}"))
        })
    }

    /// Returns the permit of a client that follows a log.
    pub(crate) fn log_permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let permit = Arc::clone(&self.readers).try_acquire_owned();
        permit.map_err(|_| {
            let why = format!("{MAX_READERS} clients follow logs already; try again when one ends");
            Failure::QueueFull(why)
        })
    }
}

/// Returns the resources that the command of an action uses at another node.
fn elsewhere(action: &ListedAction<Job>) -> Option<ResourceUsage> {
    let running = action.running.as_ref();
    let running = running.filter(|running| running.phase == Some(Phase::Run))?;
    action.job.live.elsewhere(running.attempt)
}
