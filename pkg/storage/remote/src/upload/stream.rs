//! Uploads of content that comes once. Only its owner can go on where one broke off.

use std::{sync::Arc, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time};
use tonic::Code;

use super::{
    super::{
        RemoteStore,
        body::{DiscardOnDrop, Plan, Progress, Sending},
        failure::{Failure, mismatch},
        peer::{Peer, Turn},
        store::random_upload,
    },
    compressing, compressor, error, query, write,
};
use gorego_storage::{BlobStream, Digest, Error, Put, Result};

/// Stores arriving content.
pub(super) async fn put(
    store: &RemoteStore,
    digest: &Digest,
    stream: BlobStream,
    mut zstd: bool,
    permit: Arc<OwnedSemaphorePermit>,
) -> Result<Put> {
    let BlobStream { chunks, resume, .. } = stream;
    let named = resume.is_some();
    let (upload, offset) = match resume {
        Some(resume) => (resume.upload, resume.offset),
        None => (random_upload(), 0),
    };
    let mut name = store.write_name(digest, &upload, compressor(zstd));
    if offset > 0 && is_complete(store, digest, &name, offset).await? {
        return Ok(Put::Existed);
    }
    let mut backoff = store.peer.backoff();
    let mut source = chunks;
    let mut turn = Turn::First;
    loop {
        let plan = Plan {
            digest: *digest,
            name: name.clone(),
            start: offset,
            len: digest.size() - offset,
            ends: false,
            compressing: compressing(digest, zstd, digest.size() - offset)?,
        };
        let sending = Sending::new(plan, source);
        let _discard = DiscardOnDrop(Arc::clone(&sending));
        let outcome = write(&store.peer, turn, digest, &sending, zstd, &permit).await;
        let progress = sending.progress();
        let judged = judge(&store.peer, digest, (offset, named), outcome, progress);
        let failure = match judged? {
            Ok(put) => return Ok(put),
            Err(failure) => failure,
        };
        let plain = zstd && failure.is_unknown_form() && !progress.finished();
        if plain {
            store.known.correct(|known| known.zstd_streams = false);
            zstd = false;
            name = store.write_name(digest, &upload, compressor(zstd));
        }
        let delay = if plain {
            Some(Duration::ZERO)
        } else {
            failure
                .is_retryable()
                .then(|| backoff.next_delay())
                .flatten()
        };
        let Some((untouched, delay)) = sending.take_source().zip(delay) else {
            return Err(error(&store.peer, digest, failure));
        };
        source = untouched;
        time::sleep(delay).await;
        turn = Turn::Again;
    }
}

/// What came of an attempt, of which a failure need not be the end. `named` is an upload that others
/// may go on with.
fn judge(
    peer: &Peer,
    digest: &Digest,
    (offset, named): (u64, bool),
    outcome: Result<Put, Failure>,
    progress: Progress,
) -> Result<Result<Put, Failure>> {
    let wrong_size = progress.ended && offset + progress.taken != digest.size();
    let failure = match outcome {
        Ok(put) if !wrong_size || !progress.finished() => return Ok(Ok(put)),
        _ if wrong_size => {
            let bytes = format!("{} bytes", offset + progress.taken);
            return Err(wrong(digest, offset, bytes));
        }
        Ok(put) => return Ok(Ok(put)),
        Err(Failure::Own(error)) => return Err(error),
        Err(failure) => failure,
    };
    let refused = || {
        let bytes = format!("what {} refuses: {failure}", peer.name());
        Err(wrong(digest, offset, bytes))
    };
    match failure.code() {
        Some(Code::AlreadyExists) => Ok(Ok(Put::Existed)),
        Some(Code::InvalidArgument) if progress.finished() => refused(),
        Some(Code::Aborted) if progress.finished() && offset > 0 => refused(),
        Some(Code::Aborted) if named => Err(Error::Superseded(*digest)),
        _ => Ok(Err(failure)),
    }
}

/// Whether there is nothing left to send; an error when what comes before `offset` is not there.
async fn is_complete(
    store: &RemoteStore,
    digest: &Digest,
    name: &str,
    offset: u64,
) -> Result<bool> {
    let progress = query(&store.peer, Turn::First, name).await;
    let progress = progress.map_err(|failure| error(&store.peer, digest, failure))?;
    if !progress.complete && (progress.committed < offset || offset > digest.size()) {
        return Err(Error::UploadOffset {
            digest: *digest,
            offset,
            committed: progress.committed,
        });
    }
    Ok(progress.complete)
}

/// Of content that went on from `offset`, the beginning may be what is wrong.
fn wrong(digest: &Digest, offset: u64, actual: String) -> Error {
    match mismatch(digest, actual) {
        Error::Mismatch { expected, actual } if offset > 0 => {
            Error::ResumedMismatch { expected, actual }
        }
        other => other,
    }
}
