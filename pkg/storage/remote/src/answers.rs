//! Answers as they come over the wire, made fit for tonic.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http_body::Frame;
use tonic::{
    Status,
    body::Body,
    codegen::{
        Service,
        http::{HeaderMap, Request, Response},
    },
    transport::Channel,
};

use super::{
    foreign::{self, Foreign},
    pieces::{self, Pieces},
};

/// A channel whose answers cannot make tonic panic or decode anything but gRPC. It tells answers
/// that were cut off from complete ones.
#[derive(Clone)]
pub(super) struct Answers {
    pub(super) channel: Channel,
    pub(super) foreign: Arc<Foreign>,
}

impl Service<Request<Body>> for Answers {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.channel.poll_ready(cx).map_err(transport)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let foreign = Arc::clone(&self.foreign);
        let is_download = request.uri().path() == pieces::PATH;
        let answer = self.channel.call(request);
        async move {
            let answer = answer.await.map_err(transport)?;
            if foreign::is_foreign(&answer) {
                return Err(foreign.translate(answer).await);
            }
            let answer = fit(answer);
            Ok(if is_download {
                answer.map(Pieces::of)
            } else {
                answer
            })
        }
        .boxed()
    }
}

fn transport(error: tonic::transport::Error) -> Status {
    Status::from_error(error.into())
}

fn fit(mut answer: Response<Body>) -> Response<Body> {
    let headers = answer.headers_mut();
    without_details(headers);
    // A status in the headers stands for the whole.
    if headers.contains_key(Status::GRPC_STATUS) {
        return answer;
    }
    answer.map(|inner| {
        Body::new(Whole {
            inner,
            ended: false,
        })
    })
}

/// Nobody here asks for details, and tonic panics on those that are not in Base64.
fn without_details(headers: &mut HeaderMap) {
    headers.remove(Status::GRPC_STATUS_DETAILS);
}

/// A body that fails when it ends without trailers: hyper takes a stream that was reset without an
/// error, as balancers do, for one that came to its end.
struct Whole {
    inner: Body,
    ended: bool,
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let frame = frame.map(|frame| {
            frame.map(|mut frame| {
                if let Some(trailers) = frame.trailers_mut() {
                    without_details(trailers);
                    self.ended = true;
                }
                frame
            })
        });
        Poll::Ready(match frame {
            None if !self.ended => {
                self.ended = true;
                Some(Err(Status::unavailable("the answer was cut off")))
            }
            other => other,
        })
    }
}
