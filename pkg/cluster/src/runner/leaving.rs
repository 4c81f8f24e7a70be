//! The end of a node's part in the cluster: draining and leaving.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{FAREWELL, Task, Told};
use crate::link::Events;

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
        while is_time() && (self.handover.has_ends() || self.parts.runs_for_others()) {
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
