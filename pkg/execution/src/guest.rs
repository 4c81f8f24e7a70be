//! Actions of other nodes, and of this node on others.
//!
//! The entry node queues an action, and answers its clients. Another node runs the action as a guest: it reads the
//! action and the inputs through its own stores, and stores the outputs there, but not the result. The entry node
//! stores the result once it finds all outputs through its own stores.

mod ahead;
mod jobs;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use jobs::GuestJobs;
pub use wire::{decode_report, encode_report};

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use gorego_limits::{Budget, Call};
use gorego_scheduler::Report;
use gorego_storage::{ActionCache, BlobStore, Digest, Error, InstanceName, Outputs};
use reapi::{
    rpc::Code,
    v2::{ExecuteRequest, ExecuteResponse, RequestMetadata},
};
use tokio::time::sleep;

use crate::{
    Executor, Failure, Job,
    action::CheckedAction,
    admit::{Admission, kind_of, read_action},
    command::check_inline,
    publish,
};

/// The most tries to store the outputs of an action that another node ran.
const STORE_TRIES: u32 = 3;
/// The pause between two of these tries.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// An action that another node granted to this one.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestAction {
    /// The name of the entry node.
    pub entry: Arc<str>,
    /// The instance; may be empty.
    pub instance: InstanceName,
    /// The digest of the action.
    pub action: Digest,
    /// The time limit of the command, which the entry node has checked.
    pub timeout: Duration,
    /// The arrival of the request at the entry node.
    pub queued: SystemTime,
    /// The outputs that are returned inline where they fit.
    pub inline_stdout: bool,
    /// Set if stderr is returned inline where it fits.
    pub inline_stderr: bool,
    /// The output files that are returned inline where they fit.
    pub inline_output_files: Vec<String>,
    /// The metadata of the client's request.
    pub metadata: Option<RequestMetadata>,
}

impl Executor {
    /// Reads the action of another node, its command and its inputs, and checks them as if a client had sent them. The
    /// blobs are read near the entry node. The job has the call and the span of the current task.
    ///
    /// A failure concerns this node only: the action may succeed on others.
    pub async fn guest(&self, guest: GuestAction) -> Result<Arc<Job>, Failure> {
        let call = Call::current().near_to(Arc::clone(&guest.entry));
        call.scope(self.read_guest(guest)).await
    }

    async fn read_guest(&self, guest: GuestAction) -> Result<Arc<Job>, Failure> {
        let (options, blobs, resident) = self.parts();
        check_inline(&guest.inline_output_files)?;
        let (digest, mut action) = read_action(blobs, &guest.action).await?;
        // The entry node has applied its own limits.
        action.timeout = None;
        let action = CheckedAction {
            timeout: guest.timeout,
            ..CheckedAction::new(action, digest.function(), options)?
        };
        let request = ExecuteRequest {
            inline_stdout: guest.inline_stdout,
            inline_stderr: guest.inline_stderr,
            inline_output_files: guest.inline_output_files,
            ..ExecuteRequest::default()
        };
        let admission = Admission {
            options,
            blobs,
            resident,
            instance: guest.instance,
            digest,
            kind: kind_of(&action, guest.metadata.as_ref()),
            action,
            queued: guest.queued,
            entry: Some(guest.entry),
            is_here: true,
        };
        admission.job(&request).await
    }
}

/// The stores for the results of actions that other nodes ran.
#[derive(Clone, Debug)]
pub struct Publisher {
    blobs: Arc<dyn BlobStore>,
    results: Arc<dyn ActionCache>,
    /// The memory in which the directories of outputs are looked up.
    trees: Budget,
}

impl Publisher {
    /// Creates a publisher with the stores of a worker.
    pub fn new(blobs: Arc<dyn BlobStore>, results: Arc<dyn ActionCache>) -> Self {
        let trees = Budget::memory("memory for the directories of outputs", publish::TREES);
        Self {
            blobs,
            results,
            trees,
        }
    }

    /// Stores the result of an action that the node `from` ran, if it succeeded and may be cached. Returns the response
    /// for clients. Fails if an output is missing, or cannot be stored.
    ///
    /// The entry node calls this. If the entry node is gone, the node that ran the action calls it.
    pub async fn publish(
        &self,
        job: &Job,
        mut response: ExecuteResponse,
        from: &str,
    ) -> Result<ExecuteResponse, Error> {
        let publish = async {
            let mut tries = 1;
            loop {
                match self.hold(job.key.action, &response).await {
                    Err(error) if tries < STORE_TRIES && may_pass(&error) => {
                        tries += 1;
                        sleep(STORE_PAUSE).await;
                    }
                    held => break held?,
                }
            }
            let note = publish::put_result(&*self.results, job, &response).await;
            if let Some(note) = note {
                publish::add_line(&mut response.message, &note);
            }
            Ok(response)
        };
        // The result belongs to the client's call.
        let near = async { Call::current().near_to(from.into()).scope(publish).await };
        job.origin.scope(near).await
    }

    /// Extends the leases of the outputs. Reads missing outputs, which the other node may have in its local tier only:
    /// the backing cache may be read-only, or down. Outputs that are missing nevertheless are stored: the other node may
    /// have another backing cache.
    async fn hold(&self, action: Digest, response: &ExecuteResponse) -> Result<(), Error> {
        let hold = || publish::hold(&self.blobs, &self.trees, action, response);
        let Some(result) = &response.result else {
            return Ok(());
        };
        match hold().await {
            Err(error) if error.is_miss() => {}
            held => return held,
        }
        let (blobs, trees) = (Arc::clone(&self.blobs), self.trees.clone());
        let mut outputs = Outputs::of(&action, result, blobs, trees)?;
        while let Some(digests) = outputs.next().await? {
            for fetched in self.blobs.fetch_batch(&digests).await {
                fetched?;
            }
            for digest in self.blobs.find_missing(&digests).await? {
                let blob = self.blobs.get(&digest, 0).await?;
                self.blobs.put(&digest, blob).await?;
            }
        }
        hold().await
    }

    /// Returns the report of an attempt on the node `from` to the scheduler. Stores a result as [`Self::publish`] does.
    pub async fn report(
        &self,
        job: &Job,
        report: Report<ExecuteResponse>,
        from: &str,
    ) -> Report<ExecuteResponse> {
        let Report::Done(outcome) = report else {
            return report;
        };
        let error = match self.publish(job, outcome.value, from).await {
            Ok(response) => return Report::Done(publish::outcome(response)),
            Err(error) => error,
        };
        let action = job.key.action;
        if lacks_outputs(&error) {
            let why = format!("node {from} ran action {action}, but its outputs are not available");
            return failed_attempt(Failure::Internal(format!("{why}: {error}")));
        }
        tracing::warn!(%action, node = from, %error, "failed to store the outputs of an action that another node ran");
        // The cause may be this node, so the attempt does not count as a failure of the other node.
        Report::Unsuited(publish::outcome(failed(Failure::from_store(error))))
    }
}

/// Returns whether the same call may succeed later.
fn may_pass(error: &Error) -> bool {
    error.may_pass() || matches!(error, Error::Outage { .. })
}

/// Returns whether an output is missing at the node that ran the action and in all other stores, which all answered.
const fn lacks_outputs(error: &Error) -> bool {
    error.is_miss() && !matches!(error, Error::Outage { .. })
}

/// Returns the report of an attempt that failed on its node, so that another one may follow.
pub fn failed_attempt(failure: Failure) -> Report<ExecuteResponse> {
    unsuccessful(failed(failure))
}

/// Returns the response of an attempt that failed.
fn failed(failure: Failure) -> ExecuteResponse {
    publish::failed(&failure.without_retry_advice())
}

/// Returns the report of an attempt with an error. That an action is invalid, or lacks blobs or a program, is no sign
/// that its node fails.
fn unsuccessful(response: ExecuteResponse) -> Report<ExecuteResponse> {
    let code = response.status.as_ref().map(|status| status.code);
    let of_action = [Code::FailedPrecondition, Code::InvalidArgument].map(|code| code as i32);
    let outcome = publish::outcome(response);
    if code.is_some_and(|code| of_action.contains(&code)) {
        Report::Unsuited(outcome)
    } else {
        Report::Failed(outcome)
    }
}
