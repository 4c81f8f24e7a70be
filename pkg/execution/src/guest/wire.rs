//! Granted actions and reports as messages between nodes.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use gorego_scheduler::Report;
use gorego_storage::{Blob, BlobStore, Digest, DigestFunction, Error, InstanceName};
use prost::Message as _;
use reapi::{
    gorego::cluster::{Done, Grant, done::End},
    v2::{ExecuteResponse, RequestMetadata},
};

use super::{GuestAction, failed, failed_attempt, unsuccessful};
use crate::{Failure, Job, publish};

/// The most bytes of a response in a message, of which links take 64 KiB.
const INLINE: usize = 48 << 10;
/// The function of the digests of longer responses.
const FUNCTION: DigestFunction = DigestFunction::Sha256;
/// The most bytes of a response. Clients take far less in a message.
const MAX_RESPONSE: u64 = 64 << 20;

impl GuestAction {
    /// Reads the action of a grant by the node `entry`.
    pub fn from_grant(entry: &str, grant: &Grant) -> Result<Self, String> {
        let metadata = match &*grant.metadata {
            [] => None,
            encoded => Some(RequestMetadata::decode(encoded).map_err(|why| why.to_string())?),
        };
        let instance = InstanceName::parse(&grant.instance).map_err(|why| why.to_string())?;
        let queued = u64::try_from(grant.queued_at_ns).unwrap_or_default();
        Ok(Self {
            entry: entry.into(),
            instance,
            action: read_digest(&grant.function, &grant.hash, grant.size)?,
            timeout: Duration::from_millis(grant.timeout_ms),
            queued: SystemTime::UNIX_EPOCH + Duration::from_nanos(queued),
            inline_stdout: grant.inline_stdout,
            inline_stderr: grant.inline_stderr,
            inline_output_files: grant.inline_output_files.clone(),
            metadata,
        })
    }
}

/// Returns the digest in a message.
pub(super) fn read_digest(function: &str, hash: &[u8], size: u64) -> Result<Digest, String> {
    let function = DigestFunction::from_name(function);
    let digest = function.and_then(|function| Digest::from_hash(function, hash, size));
    digest.ok_or_else(|| "the digest of the action is malformed".to_owned())
}

impl Job {
    /// Returns the part of a grant that describes the action. The claim, the attempt and its resources, the client's
    /// metadata and the trace are not set.
    pub fn to_grant(&self) -> Grant {
        let queued = self.queued.duration_since(SystemTime::UNIX_EPOCH);
        let queued = queued.unwrap_or_default().as_nanos();
        let timeout = self.timeout.as_nanos().div_ceil(1_000_000);
        Grant {
            instance: self.key.instance.as_str().to_owned(),
            function: self.key.action.function().name().to_owned(),
            hash: Bytes::copy_from_slice(self.key.action.hash()),
            size: self.key.action.size(),
            timeout_ms: u64::try_from(timeout).unwrap_or(u64::MAX),
            inline_stdout: self.inline_stdout,
            inline_stderr: self.inline_stderr,
            inline_output_files: self.inline_output_files.clone(),
            queued_at_ns: i64::try_from(queued).unwrap_or(i64::MAX),
            ..Grant::default()
        }
    }
}

/// Returns a report as a message, without the attempt. A long response becomes a blob in `blobs`, the local tier of
/// this node. If the blob cannot be stored, the attempt counts as failed.
pub async fn encode_report(report: Report<ExecuteResponse>, blobs: &dyn BlobStore) -> Done {
    let (end, response) = match report {
        Report::Done(outcome) => (End::Done, outcome.value),
        Report::OutOfMemory(outcome) => (End::OutOfMemory, outcome.value),
        Report::Failed(outcome) | Report::Unsuited(outcome) => (End::Failed, outcome.value),
        Report::Stopped => return of(End::Stopped, Bytes::new()),
    };
    let response = Bytes::from(response.encode_to_vec());
    if response.len() <= INLINE {
        return of(end, response);
    }
    let digest = FUNCTION.digest(&response);
    match blobs.put(&digest, Blob::Bytes(response)).await {
        Ok(_) => Done {
            response_hash: Bytes::copy_from_slice(digest.hash()),
            response_size: digest.size(),
            ..of(end, Bytes::new())
        },
        Err(error) => {
            let response = failed(Failure::from_store(error));
            of(End::Failed, response.encode_to_vec().into())
        }
    }
}

fn of(end: End, response: Bytes) -> Done {
    Done {
        end: end.into(),
        response,
        ..Done::default()
    }
}

/// Reads a report from a message. A long response is read from `blobs`, the local tier of the sender. If it cannot be
/// read, the attempt counts as failed.
pub async fn decode_report(done: Done, blobs: &dyn BlobStore) -> Report<ExecuteResponse> {
    let end = done.end();
    if end == End::Stopped {
        return Report::Stopped;
    }
    let response = match read(done, blobs).await {
        Ok(response) => response,
        Err(why) => {
            let why = format!("the response of another node is unreadable: {why}");
            return failed_attempt(Failure::Unavailable(why));
        }
    };
    match end {
        End::Done => Report::Done(publish::outcome(response)),
        End::OutOfMemory => Report::OutOfMemory(publish::outcome(response)),
        End::Failed | End::Stopped | End::Declined => unsuccessful(response),
    }
}

async fn read(done: Done, blobs: &dyn BlobStore) -> Result<ExecuteResponse, String> {
    let content = if done.response_hash.is_empty() {
        done.response
    } else {
        let digest = Digest::from_hash(FUNCTION, &done.response_hash, done.response_size);
        let digest = digest.filter(|digest| digest.size() <= MAX_RESPONSE);
        let digest = digest.ok_or("its digest is malformed")?;
        let blob = async { blobs.get(&digest, 0).await?.into_bytes().await };
        blob.await.map_err(|error: Error| error.to_string())?
    };
    ExecuteResponse::decode(content).map_err(|why| why.to_string())
}
