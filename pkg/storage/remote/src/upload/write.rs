//! One attempt of an upload: its messages, and the wait for the answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use reapi::bytestream::{WriteRequest, WriteResponse};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time,
};
use tonic::Status;

use super::super::{
    compression::FrameEncoder,
    failure::Failure,
    grpc,
    methods::{self, Limits},
    peer::Peer,
    retry::Retry,
};
use gorego_storage::{Chunks, Digest, Error, Put, Result};

/// The most content in one message, in bytes: a quarter of what peers accept at least.
const MAX_MESSAGE: usize = 1 << 20;
/// The time that a peer has to notice the end of an interrupted upload.
const PARTING: Duration = Duration::from_secs(5);

/// The content of one attempt, and the amount sent.
pub(super) struct Content<'a> {
    pub(super) source: Chunks,
    digest: &'a Digest,
    /// The resource name, until the first message takes it.
    name: String,
    /// The position in the blob at which the content starts, in bytes.
    start: u64,
    /// The number of bytes that the source should have.
    len: u64,
    /// Set if the source ends after `len` bytes for certain. A stream may continue, or fail.
    ends: bool,
    compressing: Option<FrameEncoder>,
    /// The number of bytes read from the source.
    pub(super) read: u64,
    /// The number of bytes sent, in the form in which they were sent.
    sent: u64,
    /// Set once the source ended or exceeded `len`.
    ended: bool,
    /// Set once the last message was sent.
    pub(super) finished: bool,
    /// The rest of a piece, in the form in which it is sent.
    rest: Bytes,
}

impl<'a> Content<'a> {
    pub(super) fn new(
        source: Chunks,
        digest: &'a Digest,
        name: String,
        start: u64,
        ends: bool,
        compressing: Option<FrameEncoder>,
    ) -> Self {
        let len = digest.size() - start;
        Self {
            source,
            digest,
            name,
            start,
            len,
            ends,
            compressing,
            read: 0,
            sent: 0,
            ended: ends && len == 0,
            finished: false,
            rest: Bytes::new(),
        }
    }

    /// Whether the source can still be read from its beginning.
    pub(super) const fn is_untouched(&self) -> bool {
        self.read == 0 && !self.ended
    }

    pub(super) const fn has_wrong_size(&self) -> bool {
        self.ended && self.read != self.len
    }

    /// Returns the next message.
    async fn next(&mut self) -> Result<WriteRequest> {
        while self.rest.is_empty() && !self.ended {
            let next = self.source.next();
            // The name is sent first, so that a peer that has the blob can answer early.
            let piece = if self.name.is_empty() {
                next.await
            } else {
                let Some(piece) = next.now_or_never() else {
                    break;
                };
                piece
            };
            self.take(piece.transpose()?)?;
        }
        Ok(self.message())
    }

    /// Takes a piece of the source, or its end.
    fn take(&mut self, piece: Option<Bytes>) -> Result<()> {
        let Some(mut piece) = piece else {
            self.ended = true;
            return self.check_size();
        };
        // One byte too many shows the peer that the content is too long.
        let most = (self.len - self.read).saturating_add(1);
        piece.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        self.read += piece.len() as u64;
        let is_whole = self.read == self.len;
        self.ended = self.read > self.len || self.ends && is_whole;
        if self.ended {
            self.check_size()?;
        }
        self.rest = match &mut self.compressing {
            Some(compressing) => compressing.next(&piece, is_whole).map_err(|why| {
                Error::Unavailable(format!("failed to compress {}: {why}", self.digest))
            })?,
            None => piece,
        };
        Ok(())
    }

    /// Fails if compressed content has another size: a frame states its size, and cannot end early. The
    /// peer checks the size of other content.
    fn check_size(&self) -> Result<()> {
        if self.compressing.is_none() || self.read == self.len {
            return Ok(());
        }
        let (read, digest, len) = (self.read, self.digest, self.len);
        let why = format!("{read} bytes of {digest} arrived instead of {len}");
        Err(Error::Unavailable(why))
    }

    fn message(&mut self) -> WriteRequest {
        let data = self.rest.split_to(self.rest.len().min(MAX_MESSAGE));
        let offset = self.start + self.sent;
        self.sent += data.len() as u64;
        self.finished = self.ended && self.rest.is_empty();
        WriteRequest {
            resource_name: std::mem::take(&mut self.name),
            write_offset: i64::try_from(offset).unwrap_or(i64::MAX),
            finish_write: self.finished,
            data,
        }
    }

    /// Checks the committed size in the peer's answer. Peers count compressed content differently.
    fn judge(&self, committed: i64) -> Result<Put, Failure> {
        const NOT_COUNTED: i64 = -1;
        let is = |bytes: u64| i64::try_from(bytes) == Ok(committed);
        let compressed = self.compressing.is_some();
        let is_uncounted = compressed && committed == NOT_COUNTED;
        let is_all_sent = compressed && self.finished && is(self.sent);
        if is(self.digest.size()) && !self.finished || is_uncounted {
            Ok(Put::Existed)
        } else if is(self.digest.size()) || is_all_sent {
            Ok(Put::Stored)
        } else {
            // Retried like an interrupted upload.
            let why = format!("it reports {committed} bytes as stored");
            Err(Status::unavailable(why).into())
        }
    }
}

/// Sends the content once. Dropping this ends the request in order, so that the peer keeps the bytes sent.
pub(super) async fn write(
    peer: &Peer,
    retry: &Retry,
    content: &mut Content<'_>,
    permit: &Arc<OwnedSemaphorePermit>,
) -> Result<Put, Failure> {
    let (link, attempt) = peer.open_long(retry).await?;
    let (messages, mut requests) = mpsc::channel(1);
    let (mut answered, mut answer) = oneshot::channel();
    let (connected, is_connected) = oneshot::channel();
    let mut connected = Some(connected);
    let permit = Arc::clone(permit);
    let parting = PARTING.min(peer.timeout);
    let request = peer.spawn(async move {
        let _permit = permit;
        let requests = stream::poll_fn(move |cx| {
            let _ = connected.take().map(|connected| connected.send(()));
            requests.poll_recv(cx)
        });
        let given_up = async {
            answered.closed().await;
            time::sleep(parting).await;
        };
        let answer = tokio::select! {
            answer = methods::stream::<WriteRequest>(link, requests, Limits::default()) => answer,
            () = given_up => return,
        };
        let _ = answered.send(answer);
    });
    let answer = tokio::select! {
        biased;
        answer = &mut answer => Some(answer),
        sent = send(peer, content, messages, is_connected) => match sent {
            Ok(patience) => time::timeout(patience, &mut answer).await.ok(),
            Err(error) => {
                let _ = time::timeout(parting, answer).await;
                return Err(Failure::Own(error));
            }
        },
    };
    request.abort();
    let outcome: Result<WriteResponse, Failure> = match answer {
        Some(Ok(answer)) => answer,
        Some(Err(_)) => {
            let why = format!("upload of {} was cut off", content.digest);
            return Err(Failure::Own(Error::Unavailable(why)));
        }
        None => Err(Failure::TimedOut(peer.timeout)),
    };
    attempt.ended(outcome.as_ref().err());
    content.judge(outcome?.committed_size)
}

/// Sends the messages as the peer accepts them, and reads the source only once the peer is reached. Returns
/// the time to wait for the answer from then on.
async fn send(
    peer: &Peer,
    content: &mut Content<'_>,
    messages: mpsc::Sender<Bytes>,
    is_connected: oneshot::Receiver<()>,
) -> Result<Duration> {
    if time::timeout(peer.timeout, is_connected).await.is_err() {
        return Ok(Duration::ZERO);
    }
    while !content.finished {
        match time::timeout(peer.timeout, messages.reserve()).await {
            Ok(Ok(slot)) => slot.send(grpc::framed(&content.next().await?)),
            // The peer needs no more of it. Its answer has the reason.
            Ok(Err(_)) => return Ok(peer.timeout),
            Err(_) => return Ok(Duration::ZERO),
        }
    }
    Ok(peer.deadline(content.digest.size()))
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction;

    use super::*;

    #[tokio::test]
    async fn compressed_content_that_ends_too_early_is_named_and_not_finished() {
        let digest = DigestFunction::Sha256.digest(b"content");
        let source = stream::iter([Ok(Bytes::from_static(b"cont"))]).boxed();
        let compressing = FrameEncoder::new(digest.size()).unwrap();
        let name = "name".to_owned();
        let mut content = Content::new(source, &digest, name, 0, false, Some(compressing));
        let error = loop {
            match content.next().await {
                Ok(message) => assert!(!message.finish_write),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains(&digest.to_string()), "{error}");
    }
}
