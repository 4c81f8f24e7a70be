//! The operations of clients.

use super::*;

/// An operation of a client.
#[derive(Clone, Debug)]
pub(in crate::handover::tests) struct Submitted {
    pub(in crate::handover::tests) node: Generation,
    pub(in crate::handover::tests) action: u32,
    pub(in crate::handover::tests) at: Time,
    pub(in crate::handover::tests) wait: Option<Duration>,
    pub(in crate::handover::tests) ends: u32,
    pub(in crate::handover::tests) is_lost: bool,
}

impl World {
    pub(in crate::handover::tests) fn submit(&mut self, node: usize, action: u32, memory: u64) {
        self.next += 1;
        let id = OperationId(self.next.into());
        let request = Request {
            key: ActionKey {
                instance: InstanceName::default(),
                action: DigestFunction::Sha256.digest(&action.to_le_bytes()),
            },
            do_not_cache: false,
            build: format!("build {}", action % 3),
            priority: 0,
            platform: "linux".into(),
            memory,
            target: String::new(),
            mnemonic: String::new(),
            job: Arc::new(action),
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

    pub(in crate::handover::tests) fn cancel(&mut self, at: usize) {
        let operations: Vec<_> = self.operations.iter().collect();
        let (id, submitted) = operations[at % operations.len()];
        let (id, node) = (*id, index(&submitted.node));
        let is_owner = self.nodes[node].generation == submitted.node;
        if is_owner && self.nodes[node].is_alive {
            self.nodes[node].scheduler.cancel(id, self.now);
            self.pump(node);
        }
    }

    /// Returns whether every operation has ended whose node lived.
    pub(in crate::handover::tests) fn is_done(&self) -> bool {
        let mut operations = self.operations.values();
        operations.all(|operation| operation.ends > 0 || operation.is_lost)
    }
}
