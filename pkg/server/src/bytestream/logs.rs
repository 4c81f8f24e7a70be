//! The logs of running actions.

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use gorego_execution::{Executor, GuestLog, Log, LogName, LogReader};
use gorego_grpc::{Body, Framed, Messages};
use gorego_limits::Permit;
use prost::Message as _;
use reapi::gorego::cluster::{LogPiece, ReadLogRequest};
use tokio::time::timeout;
use tonic::Status;

use super::frame;
use crate::{routes, services::Reapi, status::from_failure};

/// The path of the method by which a node reads the logs of its actions at another one. Clients cannot call it.
pub const READ_LOG: &str = "/gorego.cluster.Mesh/ReadLog";
/// The largest request of that method, in bytes.
const MAX_REQUEST: u64 = 4096;
/// The time that another node has to begin its answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The time without a piece after which a reader checks whether the command still runs.
const SILENCE: Duration = Duration::from_secs(1);

/// The pieces of a log.
type Pieces = BoxStream<'static, Result<Bytes, Status>>;

impl Reapi {
    /// Returns the log from `offset` on, at most `limit` bytes of it if `limit` is not 0. Follows the log until the
    /// command ends.
    pub(super) async fn read_log(
        &self,
        name: &LogName,
        offset: u64,
        limit: u64,
    ) -> Result<Body, Status> {
        let log = self.executor()?.log(name, offset).await;
        let pieces = match log.map_err(|failure| from_failure(&failure))? {
            Log::Here(reader) => pieces(reader).boxed(),
            Log::Elsewhere(log) => self.read_elsewhere(log).await?,
        };
        let limit = if limit == 0 { u64::MAX } else { limit };
        let messages = stream::try_unfold((pieces, limit), next_piece);
        Ok(Body::messages(messages.boxed(), Permit::default()))
    }

    /// Returns the log of a command that another node runs. It also ends with that node, and with the attempt.
    async fn read_elsewhere(&self, log: GuestLog) -> Result<Pieces, Status> {
        let (name, node) = (&log.name, &log.node);
        let missing = |why: &str| {
            Status::not_found(format!(
                "no log {name}: node {node} runs the action, and does not return it: {why}"
            ))
        };
        let takers = self.options.takers.as_ref();
        let to = takers.and_then(|takers| {
            let mut nodes = takers.nodes().into_iter();
            nodes.find(|to| to.node() == node).zip(Some(takers))
        });
        let (to, takers) = to.ok_or_else(|| missing("it is gone"))?;
        let request = log.request.encode_to_vec().into();
        let answer = timeout(ANSWER, takers.call(&to, READ_LOG, request)).await;
        let answer = answer.map_err(|_| missing("it does not answer"))?;
        let messages = answer.map_err(|status| missing(status.message()))?;
        let executor = self.options.executor.clone();
        let rest = stream::try_unfold((messages, log, executor), next_elsewhere);
        Ok(rest.boxed())
    }
}

/// Answers [`READ_LOG`]: the log of a command that `executor` runs for another node.
pub async fn read_guest_log(executor: &Executor, requests: Messages) -> Result<Body, Status> {
    let (encoded, _permit) = requests.only(MAX_REQUEST).await?;
    let request = ReadLogRequest::decode(encoded);
    let request = request.map_err(|why| Status::invalid_argument(why.to_string()))?;
    let reader = executor.guest_log(&request);
    let reader = reader.map_err(|failure| from_failure(&failure))?;
    let messages = pieces(reader).map_ok(|data| Framed::encode(&LogPiece { data }));
    Ok(Body::messages(messages.boxed(), Permit::default()))
}

fn pieces(reader: LogReader) -> impl Stream<Item = Result<Bytes, Status>> {
    stream::try_unfold(reader, |mut reader| async {
        let piece = reader.next(u64::MAX).await.map_err(|error| {
            tracing::error!("failed to read the log of a running action: {error}");
            Status::internal("reading the log failed")
        })?;
        Ok(piece.map(|piece| (piece, reader)))
    })
}

/// The messages of another node, the log that they belong to, and the executor that owns the action.
type Elsewhere = (routes::Messages, GuestLog, Option<Arc<Executor>>);

async fn next_elsewhere(
    (mut messages, log, executor): Elsewhere,
) -> Result<Option<(Bytes, Elsewhere)>, Status> {
    let mut has_ended = false;
    loop {
        let message = match timeout(SILENCE, messages.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                // The command ended with its node, and may run again elsewhere.
                let (name, node) = (&log.name, &log.node);
                tracing::debug!(%name, node, %error, "a log of another node ended early");
                return Ok(None);
            }
            Err(_) => {
                let executor = executor.as_deref();
                let is_current = executor.is_some_and(|executor| executor.is_current(&log));
                // The end of the log may arrive later than that of the action.
                if !is_current && mem::replace(&mut has_ended, true) {
                    return Ok(None);
                }
                continue;
            }
        };
        let piece = LogPiece::decode(message);
        let piece = piece.map_err(|why| Status::internal(format!("node {}: {why}", log.node)))?;
        return Ok(Some((piece.data, (messages, log, executor))));
    }
}

/// The pieces of a log, and the number of bytes that are still to be returned.
type Rest = (Pieces, u64);

async fn next_piece((mut pieces, left): Rest) -> Result<Option<(Framed, Rest)>, Status> {
    if left == 0 {
        return Ok(None);
    }
    let piece = pieces.try_next().await?;
    Ok(piece.map(|mut piece| {
        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left.saturating_sub(piece.len() as u64);
        (frame(piece), (pieces, left))
    }))
}
