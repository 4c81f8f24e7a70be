//! The response of an action, and its way into the stores.

mod lines;
mod metadata;

use std::sync::Arc;

use bytes::Bytes;
use gorego_limits::Budget;
use gorego_sandbox::Ended;
use gorego_storage::{ActionCache, BlobStore, Digest, Error, Outputs, find_outputs};
use prost::Message as _;
use reapi::v2::{ActionResult, ExecuteResponse};

use crate::{Failure, Job, abort::Abort, collect::Collected, logs::Log};
pub(crate) use lines::describe;
pub(crate) use metadata::{Times, peak_of};

/// The memory in which the directories of outputs are looked up, of all actions together, in bytes.
pub(crate) const TREES: u64 = 32 << 20;

/// The exit code of a command that was killed.
const KILLED: i32 = 128 + 9;
/// The most blobs of one call to the store.
const BATCH: usize = 1000;
/// The most bytes of the blobs of one call to the store, unless one is larger.
const BATCH_BYTES: usize = 4 << 20;

/// An action that ran to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The report of its processes.
    pub ended: Ended,
    /// Its outputs, or the reason why they cannot be returned.
    pub outputs: Result<Collected, Failure>,
    /// Its standard output.
    pub stdout: Log,
    /// Its standard error.
    pub stderr: Log,
}

/// Stores blobs in batches.
pub(crate) async fn put_blobs(
    blobs: &dyn BlobStore,
    content: Vec<(Digest, Bytes)>,
) -> Result<(), Abort> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut content = content.into_iter().peekable();
    while let Some((digest, blob)) = content.next() {
        bytes += blob.len();
        batch.push((digest, blob));
        let next = content.peek().map(|(_, blob)| blob.len());
        let is_last = next.is_none_or(|next| bytes + next > BATCH_BYTES || batch.len() >= BATCH);
        if is_last {
            for put in blobs.put_batch(std::mem::take(&mut batch)).await {
                put?;
            }
            bytes = 0;
        }
    }
    Ok(())
}

/// Extends the leases of the outputs of a response. Fails if one is missing.
pub(crate) async fn hold(
    blobs: &Arc<dyn BlobStore>,
    trees: &Budget,
    action: Digest,
    response: &ExecuteResponse,
) -> Result<(), Error> {
    let Some(result) = &response.result else {
        return Ok(());
    };
    let outputs = Outputs::of(&action, result, Arc::clone(blobs), trees.clone())?;
    find_outputs(outputs, &**blobs).await
}

/// Stores the result of an action that succeeded, unless the client forbids it. Returns a line for the client if that
/// failed. There is none about other actions, since their clients know that they are not cached.
pub(crate) async fn put_result(
    results: &dyn ActionCache,
    job: &Job,
    response: &ExecuteResponse,
) -> Option<String> {
    let result = response.result.as_ref()?;
    if response.status.is_some() || result.exit_code != 0 || job.do_not_cache {
        return None;
    }
    let mut stored = result.clone();
    // Clients should not store inlined content; those who read a result ask for it.
    stored.stdout_raw = Bytes::new();
    stored.stderr_raw = Bytes::new();
    for file in &mut stored.output_files {
        file.contents = Bytes::new();
    }
    let error = results
        .put(job.key.instance.as_str(), &job.key.action, stored)
        .await
        .err()?;
    let action = job.key.action;
    tracing::warn!(%action, %error, "the result of an action was not cached");
    Some(format!("the result was not cached: {error}"))
}

impl Finished {
    /// Builds the response of an attempt, that ran `alone` if an earlier one ran out of memory. Its result has no
    /// metadata yet.
    pub(crate) fn response(self, job: &Job, alone: bool) -> ExecuteResponse {
        let mut lines = lines::lines(&self.ended, alone);
        let timed_out = self.ended.timed_out.then(|| {
            let seconds = job.timeout.as_secs_f64();
            Failure::TimedOut(format!(
                "the command did not end within its timeout of {seconds} s"
            ))
        });
        let (mut result, failure) = match self.outputs {
            Ok(collected) => {
                lines.extend(collected.notes);
                (collected.result, timed_out)
            }
            Err(failure) => (ActionResult::default(), Some(timed_out.unwrap_or(failure))),
        };
        result.exit_code = exit_code(&self.ended);
        result.stdout_digest = self.stdout.digest.map(|digest| digest.to_proto());
        result.stdout_raw = self.stdout.inline;
        result.stderr_digest = self.stderr.digest.map(|digest| digest.to_proto());
        result.stderr_raw = self.stderr.inline;
        ExecuteResponse {
            result: Some(result),
            status: failure.map(|failure| failure.status()),
            message: lines.join("\n"),
            ..ExecuteResponse::default()
        }
    }
}

/// Adds a line to the message of a response.
pub(crate) fn add_line(message: &mut String, line: &str) {
    if !message.is_empty() {
        message.push('\n');
    }
    message.push_str(line);
}

/// Returns the exit code as shells do.
fn exit_code(ended: &Ended) -> i32 {
    // Where the kernel killed one process of it, the command may have ended by itself.
    if ended.excess.is_some() {
        KILLED
    } else {
        ended.exit.shell_code()
    }
}

/// Returns the response of an action without a result.
pub(crate) fn failed(failure: &Failure) -> ExecuteResponse {
    ExecuteResponse {
        status: Some(failure.status()),
        ..ExecuteResponse::default()
    }
}

/// Returns a response as the outcome of an attempt.
pub(crate) fn outcome(value: ExecuteResponse) -> gorego_scheduler::Outcome<ExecuteResponse> {
    let bytes = value.encoded_len() as u64;
    gorego_scheduler::Outcome { value, bytes }
}
