//! The end of a node's part in the cluster: draining and leaving.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Cluster, FAREWELL, Order, Task, Told};
use crate::link::Events;

/// The interval between two counts of the unfinished actions of other nodes.
const POLL: Duration = Duration::from_millis(50);

impl Cluster {
    /// Notifies other nodes that this one takes no more work.
    pub async fn drain(&self) {
        // This fails if the task has ended.
        let _ = self.orders.send(Order::Drain(true)).await;
    }

    /// Notifies other nodes that this one takes work again.
    pub async fn resume(&self) {
        let _ = self.orders.send(Order::Drain(false)).await;
    }

    /// Delivers the ends of actions of others, notifies the other nodes that this one leaves, and ends its tasks. Takes
    /// a few seconds at most.
    pub async fn leave(&self) {
        let (left, leaving) = oneshot::channel();
        if self.orders.send(Order::Leave(left)).await.is_ok() {
            let _ = leaving.await;
        }
        self.tasks.close();
        let _ = timeout(FAREWELL, self.tasks.wait()).await;
    }

    /// Returns the number of unfinished actions of other nodes: those that run here, and those whose end the other node
    /// has not received. It may still read their outputs from this node. Nodes that are gone do not count.
    pub async fn unfinished_foreign(&self) -> usize {
        let (count, counted) = oneshot::channel();
        // This fails if the task has ended.
        let _ = self.orders.send(Order::CountForeign(count)).await;
        counted.await.unwrap_or_default()
    }

    /// Waits until this node has no unfinished action of another node.
    pub async fn finish_foreign(&self) {
        while self.unfinished_foreign().await > 0 {
            sleep(POLL).await;
        }
    }
}

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Task<J, O> {
    /// Announces to other nodes that this one takes no more work, or that it takes work again.
    pub(super) fn drain(&mut self, draining: bool) {
        let mut record = self.membership.me().clone();
        record.draining = draining;
        let now = self.now();
        match self.membership.update(record, now) {
            Ok(()) => self.parts.links.set_record(self.membership.me().to_proto()),
            Err(why) => {
                tracing::warn!(%why, draining, "failed to announce the drain, or its end, to other nodes");
            }
        }
    }

    /// Delivers the ends of the actions of other nodes, and notifies the other nodes that this one leaves.
    pub(super) async fn leave(
        mut self,
        events: &mut Events,
        tells: &mut mpsc::UnboundedReceiver<Told<J, O>>,
        left: oneshot::Sender<()>,
    ) {
        let end = Instant::now() + FAREWELL;
        let is_time = || Instant::now() < end;
        while is_time() && (self.handover.unfinished_foreign() > 0 || self.parts.runs_for_others())
        {
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.on_link(event),
                Some(told) = tells.recv() => self.on_told(told),
                () = sleep_until(end) => break,
            }
            self.carry_out();
        }
        let now = self.now();
        self.membership.leave(now);
        self.carry_out();
        let links = Arc::clone(&self.parts.links);
        let closing = links.shutdown("the node stops");
        tokio::pin!(closing);
        loop {
            tokio::select! {
                () = &mut closing => break,
                Some(_) = events.recv() => {}
            }
        }
        // This fails if the caller does not wait.
        let _ = left.send(());
    }
}
