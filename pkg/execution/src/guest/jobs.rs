//! The actions of other nodes that run on this node, for the readers of their logs.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use gorego_scheduler::{AttemptId, Generation, LogKind};
use parking_lot::Mutex;
use reapi::gorego::cluster::ReadLogRequest;

use crate::{Executor, Failure, Job, LogReader};

/// The fewest entries at which the entries of dropped jobs are removed.
const FEW: usize = 64;

/// The jobs of other nodes, by the attempts of the nodes that own them.
#[derive(Debug, Default)]
pub(crate) struct GuestJobs(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    jobs: HashMap<(Generation, AttemptId), Weak<Job>>,
    /// The number of entries at which the entries of dropped jobs are removed.
    limit: usize,
}

impl GuestJobs {
    fn add(&self, entry: Generation, attempt: AttemptId, job: &Arc<Job>) {
        let mut entries = self.0.lock();
        if entries.jobs.len() >= entries.limit {
            entries.jobs.retain(|_, job| job.strong_count() > 0);
            entries.limit = FEW.max(2 * entries.jobs.len());
        }
        entries.jobs.insert((entry, attempt), Arc::downgrade(job));
    }

    fn get(&self, entry: Generation, attempt: AttemptId) -> Option<Arc<Job>> {
        let entries = self.0.lock();
        entries.jobs.get(&(entry, attempt)).and_then(Weak::upgrade)
    }
}

impl Executor {
    /// Makes the logs of a job readable for the node that owns the attempt, before the job runs.
    pub fn show_guest(&self, entry: &Generation, attempt: AttemptId, job: &Arc<Job>) {
        self.guest_jobs().add(entry.clone(), attempt, job);
    }

    /// Returns a reader of a log of an action that runs on this node for another node. The log ends with the command,
    /// or with the attempt if the command does not run.
    pub fn guest_log(&self, request: &ReadLogRequest) -> Result<LogReader, Failure> {
        let entry = request.entry.as_ref();
        let entry = entry.and_then(|node| Generation::new(&node.name, node.generation).ok());
        let attempt = request.attempt.as_ref();
        let attempt = attempt.map(|attempt| AttemptId::new(attempt.execution, attempt.number));
        let named = entry.zip(attempt);
        let job = named.and_then(|(entry, attempt)| self.guest_jobs().get(entry, attempt));
        let job = job.ok_or_else(|| {
            Failure::UnknownOperation("the attempt has ended, or is not known here".to_owned())
        })?;
        let kind = if request.is_stderr {
            LogKind::Stderr
        } else {
            LogKind::Stdout
        };
        let permit = self.log_permit()?;
        Ok(job.live.read(request.run, kind, request.offset, permit))
    }
}
