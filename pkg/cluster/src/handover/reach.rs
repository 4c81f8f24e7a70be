//! The peers that take this node's actions: those that are not draining and can be reached.

use gorego_scheduler::Generation;

use super::{Handover, Host};

/// A node that may take actions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: Generation,
    /// The actions that it runs at once.
    pub slots: u32,
    /// The memory for actions, in bytes.
    pub memory: u64,
    /// Set if the node takes no more.
    pub draining: bool,
}

impl Member {
    /// Returns whether the node takes actions.
    pub(super) fn takes(&self) -> bool {
        self.slots > 0 && !self.draining
    }
}

impl Handover {
    /// Records that a link with a node is up.
    pub(super) fn reached(&mut self, node: &Generation, host: &mut impl Host) {
        if self.unreachable.remove(node) {
            self.set_takers(host);
        }
    }

    /// Records that the link with a node broke, or was not opened. Actions are no longer left to the node.
    pub(super) fn not_reached(&mut self, node: &Generation, host: &mut impl Host) {
        if self.members.contains_key(node) && self.unreachable.insert(node.clone()) {
            self.set_takers(host);
        }
    }

    /// Passes the members that take actions to the host.
    pub(super) fn set_takers(&mut self, host: &mut impl Host) {
        let Self {
            members,
            unreachable,
            ..
        } = self;
        unreachable.retain(|node| members.contains_key(node));
        let takes = |member: &&Member| member.takes() && !unreachable.contains(&member.node);
        let takers: Vec<_> = members.values().filter(takes).collect();
        host.set_takers(&takers);
    }
}
