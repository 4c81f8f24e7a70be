//! The operations of clients.

use std::time::Duration;

use gorego_scheduler::{End, Generation, OperationId, Request, Time};

use super::World;
use crate::testing;

/// An operation of a client.
#[derive(Clone, Debug)]
pub(crate) struct Submitted {
    pub(crate) node: Generation,
    pub(crate) action: u32,
    pub(crate) at: Time,
    pub(crate) wait: Option<Duration>,
    pub(crate) end: Option<End<u32>>,
    /// Set if the owner crashed before the end.
    pub(crate) is_lost: bool,
    /// Set if the client cancelled it before the end.
    #[cfg(test)]
    pub(crate) is_cancelled: bool,
}

impl Submitted {
    /// Returns whether the operation ended with the result of its action.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(&self.end, Some(End::Outcome(value)) if **value == self.action)
    }
}

impl World {
    pub(crate) fn submit(&mut self, node: usize, action: u32, memory: u64) {
        self.next += 1;
        let id = OperationId(self.next.into());
        let request = Request {
            do_not_cache: false,
            build: format!("build {}", action % 3),
            platform: "linux".into(),
            memory,
            ..testing::request(action)
        };
        let at = self.now;
        let owner = &mut self.nodes[node];
        owner.scheduler.submit(id, &request, at).unwrap();
        let submitted = Submitted {
            node: owner.generation.clone(),
            action,
            at,
            wait: None,
            end: None,
            is_lost: false,
            #[cfg(test)]
            is_cancelled: false,
        };
        self.operations.insert(id, submitted);
        self.pump(node);
    }
}
