//! One call: its request's message is read, its handler runs, its response is made.

use std::time::Duration;

use bytes::Bytes;
use gorego_limits::Permit;
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;
use tracing::error;

use crate::{
    Body, Limit, Measure, Memory, Messages, RequestBody, Response, decode_within, refuse, reply,
};

/// A call that has arrived, up to its headers.
#[derive(Debug)]
pub struct Call {
    body: RequestBody,
    memory: Memory,
}

impl Call {
    /// A call whose request has this body.
    pub(crate) fn new(body: Incoming, idle_timeout: Duration, memory: Memory) -> Self {
        Self {
            body: RequestBody::new(body, idle_timeout),
            memory,
        }
    }

    /// A method with one request of at most `limit` bytes, and one response.
    pub async fn unary<Q, R>(
        self,
        limit: impl Into<Limit>,
        measure: Measure,
        handler: impl AsyncFnOnce(Q) -> Result<R, Status>,
    ) -> Response
    where
        Q: Message + Default + Send + 'static,
        R: Message,
    {
        let memory = self.memory.clone();
        self.answered(limit, measure, async |request| {
            reply(&memory, &handler(request).await?).await
        })
        .await
    }

    /// A method with one request, whose handler makes the response's body itself.
    pub async fn answered<Q>(
        self,
        limit: impl Into<Limit>,
        measure: Measure,
        handler: impl AsyncFnOnce(Q) -> Result<Body, Status>,
    ) -> Response
    where
        Q: Message + Default + Send + 'static,
    {
        let memory = self.memory.clone();
        self.encoded(limit, async |request, wire| {
            // Set aside for as long as the handler works on the request.
            let (request, _permits) = decode_within(&memory, request, wire, measure).await?;
            handler(request).await
        })
        .await
    }

    /// A method with one request, whose handler also decodes it, and drops the permit afterwards.
    pub async fn encoded(
        self,
        limit: impl Into<Limit>,
        handler: impl AsyncFnOnce(Bytes, Permit) -> Result<Body, Status>,
    ) -> Response {
        let answer = async {
            let (request, permit) = self.only_message(limit.into()).await?;
            handler(request, permit).await
        };
        response(answer.await)
    }

    /// A method with many requests and one response.
    pub async fn streamed<R: Message>(
        self,
        handler: impl AsyncFnOnce(Messages) -> Result<R, Status>,
    ) -> Response {
        let answer = async {
            let requests = self.memory.requests.clone();
            let message = handler(Messages::new(self.body, requests)).await?;
            reply(&self.memory, &message).await
        };
        response(answer.await)
    }

    /// The requests, for a method that this layer does not handle.
    pub(crate) fn into_messages(self) -> Messages {
        Messages::new(self.body, self.memory.requests)
    }

    async fn only_message(self, limit: Limit) -> Result<(Bytes, Permit), Status> {
        let mut messages = self.into_messages();
        let len = messages
            .next_len_within(limit)
            .await?
            .ok_or_else(|| Status::invalid_argument("the request has no message"))?;
        let permit = messages.reserve(len).await?;
        let message = messages.whole(len).await?;
        if messages.next_len().await?.is_some() {
            return Err(Status::invalid_argument(
                "a second message, this method takes one",
            ));
        }
        Ok((message, permit))
    }
}

/// Decodes a message from a client whose fields come once.
pub fn decode<M: Message + Default>(encoded: Bytes) -> Result<M, Status> {
    M::decode(encoded).map_err(|why| Status::invalid_argument(format!("malformed message: {why}")))
}

fn response(answer: Result<Body, Status>) -> Response {
    match answer {
        Ok(body) => body.into_response(),
        Err(status) => refuse(&status),
    }
}

/// What a client is told after a panic; the panic itself is in the log.
pub(crate) fn panicked() -> Status {
    error!("a handler panicked; its call is answered INTERNAL");
    Status::internal("this is a fault of the server; its log says more")
}
