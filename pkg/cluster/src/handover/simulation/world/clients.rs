//! The operations of clients.

use std::time::Duration;

use gorego_scheduler::{Generation, OperationId, Request, Time};

use super::World;
use crate::testing;

/// An operation of a client.
#[derive(Clone, Debug)]
pub(crate) struct Submitted {
    pub(crate) node: Generation,
    pub(crate) action: u32,
    pub(crate) at: Time,
    pub(crate) wait: Option<Duration>,
    pub(crate) ends: u32,
    pub(crate) is_lost: bool,
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
            ends: 0,
            is_lost: false,
        };
        self.operations.insert(id, submitted);
        self.pump(node);
    }
}
