//! Calls about operations that other nodes of the cluster own.

use std::fmt;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use gorego_execution::LogName;
use gorego_grpc::{Body, Framed, HEADER_LEN, put_header};
use gorego_limits::Permit;
use gorego_scheduler::{Generation, OperationName};
use prost::Message;
use reapi::{
    bytestream::ReadRequest,
    longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, WaitOperationRequest,
    },
    v2::WaitExecutionRequest,
};
use tonic::Status;

use crate::services::Reapi;

/// The answer of another node: its messages, encoded. Each holds its memory until it is dropped.
pub type Messages = BoxStream<'static, Result<Bytes, Status>>;

/// The route to the other nodes of a cluster.
#[async_trait]
pub trait Routes: fmt::Debug + Send + Sync {
    /// Returns the other nodes that are up, in the order of their names.
    fn nodes(&self) -> Vec<Generation>;

    /// Makes a call at another node with one message, encoded in `request`. Fails with `NOT_FOUND` if this run of the
    /// node is not up, and with `UNAVAILABLE` if it cannot be reached for ten seconds.
    async fn call(&self, node: &Generation, path: &str, request: Bytes)
    -> Result<Messages, Status>;
}

/// A request about an operation.
pub(crate) trait Named: Message {
    /// Returns the name of the operation or of its log.
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($request:ty: $field:ident),*) => {$(
        impl Named for $request {
            fn name(&self) -> &str {
                &self.$field
            }
        }
    )*};
}

named!(
    CancelOperationRequest: name,
    DeleteOperationRequest: name,
    GetOperationRequest: name,
    ReadRequest: resource_name,
    WaitExecutionRequest: name,
    WaitOperationRequest: name
);

/// Returns the node that owns the operation of this name, or of the log of this name.
fn owner(name: &str) -> Option<Generation> {
    let operation = OperationName::parse(name).map(|name| name.generation);
    let log = || LogName::parse(name).map(|name| name.generation);
    operation.ok().or_else(log)
}

impl Reapi {
    /// Answers a call about an operation by `here`, unless another node of the cluster owns it.
    pub(crate) async fn routed<Q: Named, F>(
        &self,
        path: &str,
        request: Q,
        here: impl FnOnce(Q) -> F,
    ) -> Result<Body, Status>
    where
        F: Future<Output = Result<Body, Status>>,
    {
        let elsewhere = self.options.routes.as_ref().and_then(|routes| {
            let owner = owner(request.name())?;
            let executor = self.options.executor.as_ref();
            let is_own = executor.is_some_and(|executor| *executor.generation() == owner);
            (!is_own).then_some((routes, owner))
        });
        let Some((routes, owner)) = elsewhere else {
            return here(request).await;
        };
        let encoded = request.encode_to_vec().into();
        let messages = routes.call(&owner, path, encoded).await?;
        Ok(passed_on(messages))
    }

    /// Returns the name of the first other node whose name is greater than `name`.
    pub(crate) fn node_after(&self, name: &str) -> Option<String> {
        let nodes = self.options.routes.as_ref()?.nodes();
        let after = nodes.iter().map(Generation::node).find(|node| *node > name);
        after.map(str::to_owned)
    }

    /// Returns a page of the operations of another node. The page of a node that is gone, or does not answer, is empty.
    pub(crate) async fn page_of(
        &self,
        node: &str,
        token: &str,
        request: &ListOperationsRequest,
    ) -> Result<ListOperationsResponse, Status> {
        let request = ListOperationsRequest {
            page_token: token.to_owned(),
            ..request.clone()
        };
        let routes = self.options.routes.as_ref();
        let nodes = routes.map(|routes| routes.nodes()).unwrap_or_default();
        let to = nodes.iter().find(|to| to.node() == node);
        let Some((routes, to)) = routes.zip(to) else {
            return Ok(ListOperationsResponse::default());
        };
        let path = "/google.longrunning.Operations/ListOperations";
        let request = request.encode_to_vec().into();
        let answer = async {
            let mut messages = routes.call(to, path, request).await?;
            let message = messages.next().await;
            message.unwrap_or_else(|| Err(Status::unavailable("no answer")))
        };
        match answer.await {
            Ok(message) => ListOperationsResponse::decode(message)
                .map_err(|why| Status::internal(format!("node {node}: {why}"))),
            Err(error) => {
                tracing::debug!(node, %error, "failed to list the operations of a node");
                Ok(ListOperationsResponse::default())
            }
        }
    }
}

/// Returns the messages of another node as a response.
fn passed_on(messages: Messages) -> Body {
    Body::messages(messages.map_ok(framed).boxed(), Permit::default())
}

/// Frames an encoded message.
fn framed(payload: Bytes) -> Framed {
    let mut head = BytesMut::with_capacity(HEADER_LEN);
    put_header(&mut head, payload.len());
    let head = head.freeze();
    Framed { head, payload }
}
