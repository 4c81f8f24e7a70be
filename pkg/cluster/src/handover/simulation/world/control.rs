//! Faults and waits that only tests of the hand-over use.

use std::time::Duration;

use super::{Node, World, index};

impl World {
    /// Handles the events of a time span.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= until
        {
            self.now = entry.key().0;
            let event = entry.remove();
            self.handle(event);
        }
        self.now = until;
    }

    /// Cancels one of the operations.
    pub(crate) fn cancel(&mut self, at: usize) {
        let at = at % self.operations.len();
        let (id, submitted) = self.operations.iter_mut().nth(at).unwrap();
        let (id, node) = (*id, index(&submitted.node));
        let is_owner = self.nodes[node].generation == submitted.node;
        if is_owner && self.nodes[node].is_alive {
            #[cfg(test)]
            {
                submitted.is_cancelled |= submitted.end.is_none();
            }
            self.nodes[node].scheduler.cancel(id, self.now);
            self.pump(node);
        }
    }

    /// Returns whether every operation has ended whose node lived.
    pub(crate) fn is_done(&self) -> bool {
        let mut operations = self.operations.values();
        operations.all(|operation| operation.end.is_some() || operation.is_lost)
    }

    /// Stops the process of a node for a while. Its links stay.
    pub(crate) fn pause(&mut self, node: usize, time: Duration) {
        // Another time would change the order of the events that wait.
        if self.nodes[node].paused <= self.now {
            self.nodes[node].paused = self.now + time;
        }
    }

    /// Returns whether the process of a node handles events.
    pub(crate) fn is_awake(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        node.is_alive && node.paused <= self.now
    }

    /// Starts the process of a node again, if it was killed.
    pub(crate) fn restart(&mut self, node: usize) {
        if !self.nodes[node].is_alive {
            let number = self.nodes[node].generation.number() + 1;
            self.nodes[node] = Node::new(node, number, self.nodes[node].slots);
            self.update_members();
        }
    }
}
