//! The logs of running actions.

use futures::{StreamExt as _, stream};
use gorego_execution::{LogName, LogReader};
use gorego_grpc::Body;
use gorego_limits::Permit;
use tonic::Status;

use super::frame;
use crate::{services::Reapi, status::from_failure};

impl Reapi {
    /// Returns the log from `offset` on, at most `limit` bytes of it if `limit` is not 0. Follows the log until the
    /// command ends.
    pub(super) fn read_log(&self, name: &LogName, offset: u64, limit: u64) -> Result<Body, Status> {
        let reader = self.executor()?.log(name, offset);
        let reader = reader.map_err(|failure| from_failure(&failure))?;
        let limit = if limit == 0 { u64::MAX } else { limit };
        let messages = stream::try_unfold((reader, limit), next_piece);
        let messages = messages.boxed();
        Ok(Body::messages(messages, Permit::default()))
    }
}

/// The reader of a log, and the most bytes that are left to return.
type Rest = (LogReader, u64);

async fn next_piece(
    (mut reader, left): Rest,
) -> Result<Option<(gorego_grpc::Framed, Rest)>, Status> {
    if left == 0 {
        return Ok(None);
    }
    let piece = reader.next(left).await.map_err(|error| {
        tracing::error!("failed to read the log of a running action: {error}");
        Status::internal("reading the log failed")
    })?;
    Ok(piece.map(|piece| {
        let left = left.saturating_sub(piece.len() as u64);
        (frame(piece), (reader, left))
    }))
}
