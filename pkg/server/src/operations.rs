//! `google.longrunning.Operations`: the operations of `Execution` by name.

use std::time::Duration;

use gorego_execution::{Executor, OperationPage};
use gorego_grpc::Body;
use gorego_storage::InstanceName;
use reapi::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, WaitOperationRequest,
};
use tonic::Status;

use crate::{
    digests,
    services::Reapi,
    status::{from_failure, invalid_field},
};

/// The operations on a page for a client that does not say how many.
const PAGE: usize = 100;
/// The end of the name of all operations of an instance.
const OPERATIONS: &str = "operations";
/// Separates the name of another node from its own token in a token.
const AT: char = ':';

impl Reapi {
    /// `GetOperation`: the current state.
    pub(crate) async fn get_operation(&self, request: GetOperationRequest) -> Result<Body, Status> {
        let operation = self.executor()?.get(&request.name);
        let operation = operation.map_err(|failure| from_failure(&failure))?;
        Body::reply(self.transport(), &operation).await
    }

    /// `ListOperations`: the queued and running operations of all nodes, of one instance or of all.
    pub(crate) async fn list_operations(
        &self,
        request: ListOperationsRequest,
    ) -> Result<Body, Status> {
        let executor = self.executor()?;
        if !request.filter.is_empty() {
            let why =
                "not supported, accepted is none: the queued and running operations are listed";
            return Err(invalid_field("filter", why));
        }
        let most = match usize::try_from(request.page_size) {
            Ok(0) => PAGE,
            Ok(most) => most,
            Err(_) => {
                return Err(invalid_field(
                    "page_size",
                    "negative; 0 lets the server decide",
                ));
            }
        };
        let place = Place::parse(&request.page_token)
            .ok_or_else(|| invalid_field("page_token", "not a token of this server"))?;
        let instance = parent(&request.name)?;
        let response = self.page(executor, &request, instance.as_ref(), most, place);
        Body::reply(self.transport(), &response.await?).await
    }

    /// Returns the page of a list that begins at `place`. The operations of this node precede those of other nodes.
    async fn page(
        &self,
        executor: &Executor,
        request: &ListOperationsRequest,
        instance: Option<&InstanceName>,
        most: usize,
        place: Place<'_>,
    ) -> Result<ListOperationsResponse, Status> {
        let (here, mut page) = match place {
            Place::Here(from) => {
                let OperationPage { operations, next } = executor.list(instance, from, most).await;
                let next_page_token = next.map(|next| next.to_string()).unwrap_or_default();
                let page = ListOperationsResponse {
                    operations,
                    next_page_token,
                };
                ("", page)
            }
            Place::Node { node, token } => (node, self.page_of(node, token, request).await?),
        };
        page.next_page_token = match page.next_page_token.as_str() {
            "" => self.node_after(here).map(|node| format!("{node}{AT}")),
            token if here.is_empty() => Some(token.to_owned()),
            token => Some(format!("{here}{AT}{token}")),
        }
        .unwrap_or_default();
        Ok(page)
    }

    /// `CancelOperation`. Others that wait for the same action are not affected.
    pub(crate) async fn cancel_operation(
        &self,
        request: CancelOperationRequest,
    ) -> Result<Body, Status> {
        let cancelled = self.executor()?.cancel(&request.name);
        cancelled.map_err(|failure| from_failure(&failure))?;
        Body::reply(self.transport(), &()).await
    }

    /// `DeleteOperation`: drops a completed operation.
    pub(crate) async fn delete_operation(
        &self,
        request: DeleteOperationRequest,
    ) -> Result<Body, Status> {
        let forgotten = self.executor()?.forget(&request.name);
        forgotten.map_err(|failure| from_failure(&failure))?;
        Body::reply(self.transport(), &()).await
    }

    /// `WaitOperation`: the state after the completion, or after the time-out.
    pub(crate) async fn wait_operation(
        &self,
        request: WaitOperationRequest,
    ) -> Result<Body, Status> {
        let limit = request.timeout.map(Duration::try_from).transpose();
        let limit = limit.map_err(|_| invalid_field("timeout", "negative; 0 does not wait"))?;
        let watcher = self.executor()?.wait(&request.name);
        let mut watcher = watcher.map_err(|failure| from_failure(&failure))?;
        let operation = watcher.completed(limit).await;
        let operation = operation.map_err(|failure| from_failure(&failure))?;
        Body::reply(self.transport(), &operation).await
    }
}

/// The beginning of a page of a list.
enum Place<'a> {
    /// A position in the list of this node.
    Here(usize),
    /// A page of another node, with the token that the node gave for it.
    Node { node: &'a str, token: &'a str },
}

impl<'a> Place<'a> {
    fn parse(token: &'a str) -> Option<Self> {
        match token.rsplit_once(AT) {
            Some((node, token)) => Some(Self::Node { node, token }),
            None if token.is_empty() => Some(Self::Here(0)),
            None => token.parse().ok().map(Self::Here),
        }
    }
}

/// Parses `[{instance}/]operations`; `None` for the empty name, which stands for all instances.
fn parent(name: &str) -> Result<Option<InstanceName>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    let instance = name.strip_suffix(OPERATIONS);
    let instance = instance.filter(|instance| instance.is_empty() || instance.ends_with('/'));
    let Some(instance) = instance else {
        let why = "accepted is [<instance>/]operations, or nothing for all instances";
        return Err(invalid_field("name", why));
    };
    digests::instance(instance.strip_suffix('/').unwrap_or(instance)).map(Some)
}
