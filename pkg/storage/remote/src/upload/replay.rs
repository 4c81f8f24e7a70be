//! Uploads of content that can be had as often as need be.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{sync::OwnedSemaphorePermit, time};
use tonic::Code;

use super::{
    super::{
        RemoteStore,
        body::{Plan, Sending},
        failure::{Failure, mismatch},
        peer::Turn,
        store::random_upload,
    },
    Progress, compressing, compressor, error, query, write,
};
use gorego_storage::{Blob, BlobFile, Chunks, Digest, Error, Hasher, Put, Result};

/// What can be read again.
pub(super) enum Content {
    Bytes(Bytes),
    File(BlobFile),
}

/// Stores bytes or a file of the right length, going on where an attempt broke off.
pub(super) async fn put(
    store: &RemoteStore,
    digest: &Digest,
    content: Content,
    mut zstd: bool,
    permit: Arc<OwnedSemaphorePermit>,
) -> Result<Put> {
    let new_name = |zstd| store.write_name(digest, &random_upload(), compressor(zstd));
    let mut backoff = store.peer.backoff();
    let (mut name, mut offset) = (new_name(zstd), 0);
    // The most that the peer ever had: it may forget, but not for ever.
    let mut furthest = 0;
    let mut turn = Turn::First;
    loop {
        let sending = sending(digest, &content, name.clone(), offset, zstd)?;
        let attempt = write(&store.peer, turn, digest, &sending, zstd, &permit);
        let failure = match attempt.await {
            Ok(put) => return Ok(put),
            Err(Failure::Own(error)) => {
                unreadable(&content, &error);
                return Err(error);
            }
            Err(failure) => failure,
        };
        let code = failure.code();
        if code == Some(Code::AlreadyExists) {
            return Ok(Put::Existed);
        }
        if code == Some(Code::InvalidArgument) && offset == 0 {
            check(digest, &content).await?;
        }
        if zstd && failure.is_unknown_form() {
            store.known.correct(|known| known.zstd_streams = false);
            zstd = false;
            (name, offset) = (new_name(zstd), 0);
            continue;
        }
        // A peer may have something against going on; it has to say so of a new upload, too.
        let anew = zstd || code == Some(Code::Aborted) || !failure.is_retryable();
        let delay = (failure.is_retryable() || offset > 0)
            .then(|| backoff.next_delay())
            .flatten();
        let Some(delay) = delay else {
            return Err(error(&store.peer, digest, failure));
        };
        time::sleep(delay).await;
        turn = Turn::Again;
        if anew {
            (name, offset) = (new_name(zstd), 0);
            continue;
        }
        let progress = query(&store.peer, turn, &name).await;
        let Progress {
            committed,
            complete,
        } = progress.map_err(|failure| error(&store.peer, digest, failure))?;
        if complete {
            return Ok(Put::Stored);
        }
        let committed = committed.min(digest.size());
        if committed > furthest {
            furthest = committed;
            backoff.progressed();
        }
        offset = committed;
    }
}

fn sending(
    digest: &Digest,
    content: &Content,
    name: String,
    offset: u64,
    zstd: bool,
) -> Result<Arc<Sending>> {
    let len = digest.size() - offset;
    let plan = Plan {
        digest: *digest,
        name,
        start: offset,
        len,
        ends: true,
        compressing: compressing(digest, zstd, len)?,
    };
    Ok(Sending::new(plan, chunks(content, offset)))
}

/// The content from `offset` on, once more.
fn chunks(content: &Content, offset: u64) -> Chunks {
    match content {
        Content::Bytes(bytes) => {
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            Blob::Bytes(bytes.slice(offset.min(bytes.len())..)).into_chunks()
        }
        Content::File(file) => Blob::File(BlobFile {
            file: Arc::clone(&file.file),
            path: file.path.clone(),
            offset: file.offset + offset,
            len: file.len.saturating_sub(offset),
            guard: None,
        })
        .into_chunks(),
    }
}

/// Whether it is the content that is wrong.
async fn check(digest: &Digest, content: &Content) -> Result<()> {
    let mut hasher = Hasher::new(digest.function());
    let mut chunks = chunks(content, 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.inspect_err(|error| unreadable(content, error))?;
        hasher.update(&chunk);
    }
    let actual = hasher.finish();
    if actual == *digest {
        Ok(())
    } else {
        Err(mismatch(digest, actual))
    }
}

/// Tells whose file it is that it could not be read.
fn unreadable(content: &Content, error: &Error) {
    if let (
        Content::File(BlobFile {
            guard: Some(guard), ..
        }),
        Error::Io { .. },
    ) = (content, error)
    {
        guard.unreadable();
    }
}
