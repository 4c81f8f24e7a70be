//! Failures of links and nodes.

use std::time::Duration;

use gorego_scheduler::Generation;

use super::{Event, MEMORY, Node, World, index};
use crate::handover::{Down, Member};

impl World {
    /// Breaks the link between two nodes. Each notices it later.
    pub(crate) fn break_link(&mut self, a: usize, b: usize) {
        for (at, other) in [(a, b), (b, a)] {
            let other = self.nodes[other].generation.clone();
            if let Some(link) = self.nodes[at].links.get(&other).copied() {
                self.broken.insert(link);
                let after = Duration::from_millis(self.random.u64(0..600));
                self.after(after, Event::LinkDown(at, other, Some(link), Down::Broken));
            }
        }
    }

    /// Kills the process of a node.
    pub(crate) fn crash(&mut self, node: usize) {
        let dead = self.nodes[node].generation.clone();
        if !std::mem::replace(&mut self.nodes[node].is_alive, false) {
            return;
        }
        for other in 0..self.nodes.len() {
            if other != node {
                self.break_link(node, other);
            }
        }
        for submitted in self.operations.values_mut() {
            submitted.is_lost |= submitted.node == dead && submitted.end.is_none();
        }
    }

    pub(super) fn update_members(&mut self) {
        let member = |node: &Node| Member {
            node: node.generation.clone(),
            slots: u32::try_from(node.slots).unwrap(),
            memory: MEMORY,
            draining: false,
        };
        let members: Vec<_> = self.nodes.iter().map(member).collect();
        for node in 0..self.nodes.len() {
            let members = members.clone();
            self.with(node, |handover, now, host| {
                handover.members(members, now, host);
            });
        }
    }

    pub(super) fn connect(&mut self, at: usize, peer: Generation) {
        self.connects += 1;
        let pair = (at.min(index(&peer)), at.max(index(&peer)));
        if self.partitions.contains(&pair) {
            let down = Event::LinkDown(at, peer, None, Down::Broken);
            self.after(Duration::from_millis(500), down);
        } else if self.alive(&peer).is_some() {
            self.next += 1;
            let (own, link) = (self.nodes[at].generation.clone(), self.next);
            let ends = [(peer.clone(), own.clone()), (own, peer)];
            for (node, other) in ends {
                self.after(self.latency, Event::LinkUp(node, other, link));
            }
        } else {
            let down = Event::LinkDown(at, peer, None, Down::Refused);
            self.after(self.latency, down);
        }
    }
}
