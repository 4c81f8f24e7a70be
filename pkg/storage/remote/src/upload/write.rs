//! One attempt of an upload: its messages, and the wait for the answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use reapi::bytestream::{WriteRequest, WriteResponse};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tonic::Status;

use super::super::{
    compression::FrameEncoder,
    failure::Failure,
    grpc,
    methods::{self, Limits},
    peer::{Peer, StreamPermits},
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
    pub(super) digest: &'a Digest,
    /// The resource name, until the first message takes it.
    pub(super) name: String,
    /// The position in the blob at which the content starts, in bytes.
    pub(super) start: u64,
    pub(super) compressing: Option<FrameEncoder>,
    /// The number of bytes read from the source.
    pub(super) read: u64,
    /// The number of bytes sent, in the form in which they were sent.
    pub(super) sent: u64,
    /// Set once the source ended or is longer than the rest of the blob.
    pub(super) ended: bool,
    /// Set once the last message was sent.
    pub(super) finished: bool,
    /// The rest of a piece, in the form in which it is sent.
    pub(super) rest: Bytes,
}

impl Content<'_> {
    /// Whether the source can still be read from its beginning.
    pub(super) const fn is_untouched(&self) -> bool {
        self.read == 0 && !self.ended
    }

    pub(super) const fn has_wrong_size(&self) -> bool {
        self.ended && self.start + self.read != self.digest.size()
    }

    async fn next(&mut self) -> Result<WriteRequest> {
        // The name is sent alone, so that a peer that has the blob can answer early.
        while self.name.is_empty() && self.rest.is_empty() && !self.ended {
            let piece = self.source.next().await;
            self.take(piece.transpose()?)?;
        }
        Ok(self.message())
    }

    fn take(&mut self, piece: Option<Bytes>) -> Result<()> {
        let left = self.digest.size() - self.start - self.read;
        self.ended = piece.is_none();
        let mut piece = piece.unwrap_or_default();
        // One byte too many shows the peer that the content is too long.
        piece.truncate(usize::try_from(left.saturating_add(1)).unwrap_or(usize::MAX));
        self.read += piece.len() as u64;
        self.ended |= piece.len() as u64 > left;
        let Some(compressing) = &mut self.compressing else {
            self.rest = piece;
            return Ok(());
        };
        let (read, digest) = (self.read, self.digest);
        // A frame states its size, and cannot end early. The peer checks the size of other content.
        if self.ended && read != digest.size() {
            let why = format!("{read} bytes of {digest} arrived");
            return Err(Error::Unavailable(why));
        }
        self.rest = compressing.next(&piece, read == digest.size())?;
        Ok(())
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
        let is = |bytes: u64| i64::try_from(bytes) == Ok(committed);
        let is_uncounted = self.compressing.is_some() && committed == -1;
        let is_all_sent = self.compressing.is_some() && self.finished && is(self.sent);
        if !is(self.digest.size()) && !is_uncounted && !is_all_sent {
            // Retried like an interrupted upload.
            let why = format!("it reports {committed} bytes as stored");
            return Err(Status::unavailable(why).into());
        }
        let is_stored = self.finished && !is_uncounted;
        Ok(if is_stored { Put::Stored } else { Put::Existed })
    }
}

/// Sends the content once. Dropping this ends the request in order, so that the peer keeps the bytes sent.
pub(super) async fn write(
    peer: &Peer,
    retry: &Retry,
    content: &mut Content<'_>,
    permits: &Arc<StreamPermits>,
) -> Result<Put, Failure> {
    let (link, mut attempt) = peer.open(retry).await?;
    let (messages, mut requests) = mpsc::channel(1);
    let (mut answered, mut answer) = oneshot::channel();
    let permits = Arc::clone(permits);
    let timeout = peer.options.timeout;
    let parting = PARTING.min(timeout);
    let request = peer.spawn(async move {
        let _permits = permits;
        let requests = stream::poll_fn(move |cx| requests.poll_recv(cx));
        let given_up = async {
            answered.closed().await;
            time::sleep(parting).await;
        };
        let limits = Limits::decoded(usize::MAX);
        let answer = tokio::select! {
            answer = methods::stream::<WriteRequest>(link, requests, limits) => answer,
            () = given_up => return,
        };
        let _ = answered.send(answer);
    });
    let answer = tokio::select! {
        biased;
        answer = &mut answer => Some(answer),
        sent = send(peer, content, messages) => match sent {
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
        Some(Err(_)) => Err(Failure::NotMade("the upload was cut off".to_owned())),
        None => Err(Failure::TimedOut(timeout)),
    };
    attempt.record(outcome.as_ref().err());
    content.judge(outcome?.committed_size)
}

/// Sends the messages as the peer accepts them, and reads the source only once the first one was taken. Returns the
/// time to wait for the answer from then on.
async fn send(
    peer: &Peer,
    content: &mut Content<'_>,
    messages: mpsc::Sender<Bytes>,
) -> Result<Duration> {
    while !content.finished {
        match time::timeout(peer.options.timeout, messages.reserve()).await {
            Ok(Ok(slot)) => slot.send(grpc::framed(&content.next().await?)),
            // The peer needs no more of it. Its answer has the reason.
            Ok(Err(_)) => return Ok(peer.options.timeout),
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
        let mut content = Content {
            source,
            digest: &digest,
            name,
            start: 0,
            compressing: Some(compressing),
            read: 0,
            sent: 0,
            ended: false,
            finished: false,
            rest: Bytes::new(),
        };
        let error = loop {
            match content.next().await {
                Ok(message) => assert!(!message.finish_write),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains(&digest.to_string()), "{error}");
    }
}
