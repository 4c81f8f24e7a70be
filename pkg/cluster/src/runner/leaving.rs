//! The end of a node's part in the cluster: draining and leaving.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until},
};

use super::{Cluster, FAREWELL, Order, Task, Told};
use crate::link::Events;

/// The interval in which the ends that were not received are counted.
const POLL: Duration = Duration::from_millis(50);

impl Cluster {
    /// Returns the number of actions of other nodes that run here, or whose ends these nodes have yet to receive: they
    /// may still read outputs from this node. Nodes that are gone do not count.
    pub async fn unreceived(&self) -> usize {
        let (count, counted) = oneshot::channel();
        // This fails if the task has ended.
        let _ = self.orders.send(Order::Count(count)).await;
        counted.await.unwrap_or_default()
    }

    /// Waits until no action of another node is [left](Self::unreceived).
    pub async fn delivered(&self) {
        while self.unreceived().await > 0 {
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
        while is_time() && (self.handover.unreceived() > 0 || self.parts.runs_for_others()) {
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
