//! Routes of calls about operations to the nodes that own them.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_cluster::{
    blobs::Member,
    calls,
    runner::{Cluster, View},
};
use gorego_limits::Budget;
use gorego_scheduler::Generation;
use gorego_server::{Messages, Routes};
use gorego_storage_remote::{RemoteAddress, RemoteOptions, channel};
use gorego_tls::ClientTls;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::{Code, Status, transport::Channel};

/// The interval in which it is checked whether a node is still there.
const CHECK: Duration = Duration::from_millis(500);
/// The longest time for which a call waits until a node that cannot be reached is up again, or known to be gone: twice
/// the time in which a stopped node is found to be down.
const NEWS: Duration = Duration::from_secs(10);

/// A function that returns the TLS settings of connections to a node.
type Settings = Box<dyn Fn(&Member) -> Option<watch::Receiver<ClientTls>> + Send + Sync>;

/// The other nodes of the cluster, as owners of operations.
pub(super) struct ClusterRoutes {
    cluster: Arc<Cluster>,
    windows: Budget,
    /// The memory of messages on their way to clients.
    responses: Budget,
    tls: Settings,
    channels: Mutex<HashMap<Member, Channel>>,
}

impl ClusterRoutes {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        [windows, responses]: [Budget; 2],
        tls: impl Fn(&Member) -> Option<watch::Receiver<ClientTls>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            cluster,
            windows,
            responses,
            tls: Box::new(tls),
            channels: Mutex::default(),
        }
    }

    /// Returns the other nodes that are up.
    fn members(&self) -> Vec<Member> {
        let nodes = self.cluster.view().nodes.into_iter();
        let others = nodes.filter(|node| !["self", "down"].contains(&node.state));
        let others = others.map(|node| Member {
            node: node.record.node.clone(),
            address: node.record.address.clone(),
        });
        others.collect()
    }

    /// Returns the connection to a node. Closes connections to nodes that are gone.
    fn channel(&self, to: &Member, members: &[Member]) -> Result<Channel, Status> {
        let mut channels = self.channels.lock();
        channels.retain(|member, _| members.contains(member));
        if let Some(channel) = channels.get(to) {
            return Ok(channel.clone());
        }
        let options = RemoteOptions {
            tls: (self.tls)(to),
            windows: self.windows.clone(),
            ..RemoteOptions::new(RemoteAddress::Tcp(to.address.clone()))
        };
        let channel = channel(&options).map_err(|why| Status::unavailable(why.to_string()))?;
        channels.insert(to.clone(), channel.clone());
        Ok(channel)
    }
}

impl fmt::Debug for ClusterRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members()).finish()
    }
}

impl ClusterRoutes {
    /// Waits until a run of a node is no member any more.
    fn gone(&self, node: Generation) -> impl Future<Output = ()> + Send + use<> {
        let cluster = Arc::clone(&self.cluster);
        async move {
            let is_there = |view: &View| {
                let mut nodes = view.nodes.iter();
                nodes.any(|it| it.record.node == node && it.state != "down")
            };
            while is_there(&cluster.view()) {
                sleep(CHECK).await;
            }
        }
    }
}

/// Returns the messages of a node, which end with an error once it is gone.
fn until(
    messages: Messages,
    gone: impl Future<Output = ()> + Send + 'static,
    node: Generation,
) -> Messages {
    let state = (messages, Box::pin(gone), node);
    let next = stream::unfold(Some(state), |state| async {
        let (mut messages, mut gone, node) = state?;
        tokio::select! {
            biased;
            message = messages.next() => Some((message?, Some((messages, gone, node)))),
            () = &mut gone => Some((Err(went_down(&node)), None)),
        }
    });
    next.boxed()
}

fn went_down(node: &Generation) -> Status {
    Status::unavailable(format!(
        "node {} went down during the call: retry",
        node.node()
    ))
}

fn is_gone(node: &Generation) -> Status {
    Status::not_found(format!(
        "node {} is down or has started again, so its operations are lost: execute the action again",
        node.node()
    ))
}

#[async_trait]
impl Routes for ClusterRoutes {
    fn nodes(&self) -> Vec<Generation> {
        let members = self.members().into_iter();
        members.map(|member| member.node).collect()
    }

    async fn call(
        &self,
        node: &Generation,
        path: &str,
        request: Bytes,
    ) -> Result<Messages, Status> {
        let begin = Instant::now();
        loop {
            let answer = self.call_once(node, path, request.clone()).await;
            let is_unreachable = |status: &Status| status.code() == Code::Unavailable;
            // A client that tried again until the node is known to be gone could run out of retries.
            if answer.as_ref().err().is_some_and(is_unreachable) && begin.elapsed() < NEWS {
                sleep(CHECK).await;
            } else {
                return answer;
            }
        }
    }
}

impl ClusterRoutes {
    async fn call_once(
        &self,
        node: &Generation,
        path: &str,
        request: Bytes,
    ) -> Result<Messages, Status> {
        let members = self.members();
        let to = members.iter().find(|member| member.node == *node);
        let to = to.ok_or_else(|| is_gone(node))?;
        let channel = self.channel(to, &members)?;
        let gone = self.gone(node.clone());
        tokio::select! {
            messages = calls::call(channel, path, request, self.responses.clone()) => {
                Ok(until(messages?, self.gone(node.clone()), node.clone()))
            }
            () = gone => Err(is_gone(node)),
        }
    }
}
