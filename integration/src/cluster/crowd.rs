//! Actions that wait until a test lets them end.

use super::Node;
use crate::executor::{Gate, Messages, TestAction, succeeded};

/// Actions of one node that wait at a gate. Each prints a line of its own.
#[derive(Debug)]
pub struct Crowd(Vec<(String, Messages)>);

impl Crowd {
    /// Starts as many actions at a node as wait at the gate at once.
    pub async fn start(node: &Node, gate: &Gate, count: usize) -> Self {
        let mut actions = Vec::new();
        for number in 0..count {
            let line = format!("{} {number}\n", node.name);
            let script = format!("{}; echo {} | tee file", gate.pass(), line.trim_end());
            let action = TestAction::script(&script).output("file");
            actions.push((line, node.executor.start(&action).await));
        }
        Self(actions)
    }

    /// Waits until all actions have ended, and checks their outputs at a node.
    pub async fn finish(self, at: &Node) {
        for (line, mut messages) in self.0 {
            let result = succeeded(messages.response().await);
            assert_eq!(at.executor.stdout(&result).await, line);
            assert_eq!(at.executor.file(&result, "file").await, line);
        }
    }
}
