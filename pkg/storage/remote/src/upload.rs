//! `ByteStream.Write` that goes on where it broke off, as far as its content can be had again.

mod replay;
mod stream;

use std::sync::Arc;

use reapi::bytestream::{QueryWriteStatusRequest, byte_stream_client::ByteStreamClient};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status};

use self::replay::Content;
use super::{
    RemoteCapabilities, RemoteStore,
    body::{CloseOnDrop, Sending},
    compression::Compressing,
    connect::Link,
    failure::Failure,
    peer::{Peer, Turn},
};
use gorego_storage::{Blob, Compressor, Digest, Error, Put, Result};

/// Stores content of the right length.
pub(super) async fn put(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
    blob: Blob,
) -> Result<Put> {
    let permit = store.peer.stream_permit().await;
    let permit = permit.map_err(|failure| error(&store.peer, digest, failure))?;
    let permit = Arc::new(permit);
    // An upload that has a name may be gone on with by its owner, which counts what it sent itself.
    let named = matches!(&blob, Blob::Stream(stream) if stream.resume.is_some());
    let compress = (!named)
        .then(|| store.compress(capabilities, digest.size()))
        .flatten();
    let zstd = compress.is_some();
    let content = match blob {
        Blob::Stream(stream) => return stream::put(store, digest, stream, zstd, permit).await,
        Blob::Bytes(bytes) => Content::Bytes(bytes),
        Blob::File(file) => Content::File(file),
    };
    replay::put(store, digest, content, zstd, permit).await
}

fn error(peer: &Peer, digest: &Digest, failure: Failure) -> Error {
    peer.error(&format_args!("storing {digest}"), failure)
}

/// What a peer says of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    committed: u64,
    complete: bool,
}

async fn query(peer: &Peer, turn: Turn, name: &str) -> Result<Progress, Failure> {
    let request = QueryWriteStatusRequest {
        resource_name: name.to_owned(),
    };
    let answer = peer.call_until(peer.end(0), turn, 0, |link| {
        let request = request.clone();
        async move {
            ByteStreamClient::new(link)
                .query_write_status(request)
                .await
        }
    });
    match answer.await {
        Ok(answer) => Ok(Progress {
            committed: u64::try_from(answer.committed_size).unwrap_or_default(),
            complete: answer.complete,
        }),
        Err(failure) if matches!(failure.code(), Some(Code::NotFound | Code::Unimplemented)) => {
            Ok(Progress {
                committed: 0,
                complete: false,
            })
        }
        Err(failure) => Err(failure),
    }
}

/// How many bytes of an upload the peer has; of a complete one, all.
pub(super) async fn committed(peer: &Peer, digest: &Digest, name: &str) -> Result<u64, Failure> {
    let progress = query(peer, Turn::First, name).await?;
    Ok(if progress.complete {
        digest.size()
    } else {
        progress.committed.min(digest.size())
    })
}

/// What takes content of `bytes` bytes to the peer, if it is to be compressed.
fn compressing(digest: &Digest, zstd: bool, bytes: u64) -> Result<Option<Compressing>> {
    let compressing = zstd.then(|| Compressing::new(bytes)).transpose();
    compressing.map_err(|why| Error::Unavailable(format!("compressing {digest}: {why}")))
}

const fn compressor(zstd: bool) -> Compressor {
    if zstd {
        Compressor::Zstd
    } else {
        Compressor::Identity
    }
}

/// Sends once. Dropped, the request is ended in order, so that the peer keeps what was sent.
async fn write(
    peer: &Arc<Peer>,
    turn: Turn,
    digest: &Digest,
    sending: &Arc<Sending>,
    compressed: bool,
    permit: &Arc<OwnedSemaphorePermit>,
) -> Result<Put, Failure> {
    let (link, attempt) = peer.open_long(turn).await?;
    let close = CloseOnDrop(Arc::clone(sending));
    let (patience, last) = (peer.timeout(), peer.deadline(digest.size()));
    let request = {
        let (sending, permit) = (Arc::clone(sending), Arc::clone(permit));
        async move {
            let _permit = permit;
            tokio::select! {
                answer = ask(link, Arc::clone(&sending)) => answer.map_err(Failure::from),
                wait = sending.stalled(patience, last) => Err(Failure::TimedOut(wait)),
            }
        }
    };
    let Ok(Some(answer)) = peer.spawn(request).await else {
        let why = format!("upload of {digest} was cut off");
        return Err(Failure::Own(Error::Unavailable(why)));
    };
    drop(close);
    if let Some(error) = sending.take_error() {
        return Err(Failure::Own(error));
    }
    attempt.ended(answer.as_ref().err());
    judge(digest, sending, compressed, answer?)
}

async fn ask(link: Link, sending: Arc<Sending>) -> Result<i64, Status> {
    let answer = ByteStreamClient::new(link)
        .write(sending.messages())
        .await?;
    Ok(answer.into_inner().committed_size)
}

/// What the peer's answer means. For compressed content peers count differently.
fn judge(
    digest: &Digest,
    sending: &Sending,
    compressed: bool,
    committed: i64,
) -> Result<Put, Failure> {
    const NOT_COUNTED: i64 = -1;
    let progress = sending.progress();
    let is = |bytes: u64| i64::try_from(bytes) == Ok(committed);
    let existed = !progress.finished() || compressed && committed == NOT_COUNTED;
    let whole = is(digest.size())
        || compressed && (committed == NOT_COUNTED || progress.finished() && is(progress.sent));
    match (whole, existed) {
        (true, true) => Ok(Put::Existed),
        (true, false) => Ok(Put::Stored),
        // As good as broken off.
        (false, _) => Err(Failure::Status(Status::unavailable(format!(
            "it says that {committed} bytes are stored"
        )))),
    }
}
