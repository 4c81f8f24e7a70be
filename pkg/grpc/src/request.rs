//! The bytes of a request, with a time-out on their arrival.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use gorego_limits::{Call, Pace};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use crate::status::too_slow;

/// A request's body. Ends with `DEADLINE_EXCEEDED` when its client sends nothing of it for the
/// whole time-out while it is being read, with `RESOURCE_EXHAUSTED` when others wait for what the
/// call holds and too little comes, and with `CANCELLED` when the client breaks it off.
#[derive(Debug)]
pub struct RequestBody<B = Incoming> {
    inner: B,
    idle_timeout: Duration,
    /// Made at the first wait: most requests arrive whole and never wait.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    pace: Pace,
}

impl<B> RequestBody<B> {
    /// The body of a request of the present call.
    pub fn new(inner: B, idle_timeout: Duration) -> Self {
        Self {
            inner,
            idle_timeout,
            timer: None,
            waiting: false,
            pace: Pace::new(Call::current()),
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let idle_timeout = self.idle_timeout;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(idle_timeout)));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(Instant::now() + idle_timeout);
        }
        timer.as_mut().poll(cx)
    }
}

impl<B> RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    /// The next bytes; `None` at the end. Trailers are passed over.
    pub async fn data(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await;
            match frame.transpose()?.map(Frame::into_data) {
                None => return Ok(None),
                Some(Ok(data)) if !data.is_empty() => return Ok(Some(data)),
                Some(_) => {}
            }
        }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut me.inner).poll_frame(cx) {
            me.waiting = false;
            let data = frame
                .as_ref()
                .and_then(|frame| frame.as_ref().ok()?.data_ref());
            let bytes = data.map_or(0, Bytes::len);
            me.pace.moved(bytes);
            return Poll::Ready(frame.map(|frame| {
                frame.map_err(|why| Status::cancelled(format!("request broken off: {why}")))
            }));
        }
        if me.pace.poll_too_slow(cx).is_ready() {
            return Poll::Ready(Some(Err(too_slow())));
        }
        ready!(me.poll_timer(cx));
        Poll::Ready(Some(Err(Status::deadline_exceeded(format!(
            "nothing of the request arrived for {:?}",
            me.idle_timeout
        )))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures::{StreamExt as _, stream};
    use http_body_util::StreamBody;
    use tonic::Code;

    use super::*;

    const IDLE: Duration = Duration::from_mins(1);

    fn body(
        pieces: impl futures::Stream<Item = io::Result<Bytes>> + Unpin,
    ) -> RequestBody<impl Body<Data = Bytes, Error = io::Error> + Unpin> {
        RequestBody::new(
            StreamBody::new(pieces.map(|piece| piece.map(Frame::data))),
            IDLE,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_stalls_ends_after_the_time_out() {
        let first = stream::iter([Ok(Bytes::from_static(b"x"))]);
        let mut body = body(first.chain(stream::pending()));
        assert_eq!(body.data().await.unwrap().unwrap(), "x");
        let start = Instant::now();
        let status = body.data().await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(start.elapsed(), IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_arrives_slowly_goes_on() {
        let slow = stream::iter(0..5).then(|_| async {
            tokio::time::sleep(IDLE * 9 / 10).await;
            Ok(Bytes::from_static(b"x"))
        });
        let mut body = body(Box::pin(slow));
        for _ in 0..5 {
            assert_eq!(body.data().await.unwrap().unwrap(), "x");
        }
        assert!(body.data().await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_server_does_not_read_is_not_the_clients() {
        let pieces = stream::iter([b"x", b"y"]).then(|piece| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(Bytes::from_static(piece))
        });
        let mut body = body(Box::pin(pieces));
        assert_eq!(body.data().await.unwrap().unwrap(), "x");
        tokio::time::sleep(IDLE * 2).await;
        assert_eq!(body.data().await.unwrap().unwrap(), "y");
    }

    #[tokio::test]
    async fn a_request_that_breaks_off_is_cancelled() {
        let mut body = body(stream::iter([Err(io::ErrorKind::ConnectionReset.into())]));
        assert_eq!(body.data().await.unwrap_err().code(), Code::Cancelled);
    }
}
