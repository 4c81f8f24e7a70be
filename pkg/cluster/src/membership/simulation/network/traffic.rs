//! The events of the processes, and the packets between them.

#![allow(clippy::indexing_slicing)] // Callers number the processes that they started.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gorego_scheduler::Generation;

use super::{Event, Network, Process, hash};
use crate::membership::{Departure, Effect, Loss, MemberState, Membership};
use crate::record::Record;

/// The period of discovery while a node is alone, and afterwards.
const DISCOVERY_ALONE: Duration = Duration::from_secs(10);
const DISCOVERY: Duration = Duration::from_secs(30);
/// The nodes that all others discover first.
const SEEDS: usize = 3;

impl Network {
    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Wake(index) => {
                let process = &self.processes[index];
                if process.wake == self.now && !process.stopped {
                    self.act(index, Membership::tick);
                }
            }
            Event::Discover(index) => self.discover(index),
            Event::Packet {
                from,
                to,
                node,
                packet,
            } => {
                if self.processes[to].record.node == node && self.processes[to].membership.is_some()
                {
                    self.deliver(&from, to, &packet);
                }
            }
            Event::Greet { from, to } => {
                if !self.processes[to].stopped {
                    self.act(to, |membership, now| membership.greet(&from, now));
                }
            }
            Event::Lost { at, peer, loss } => {
                self.act(at, |membership, now| {
                    membership.connection_lost(&peer, loss, now);
                });
            }
        }
    }

    pub(super) fn deliver(&mut self, from: &Record, to: usize, packet: &Bytes) {
        if self.processes[to].stopped {
            self.processes[to]
                .inbox
                .push((from.clone(), packet.clone()));
            return;
        }
        let result = self.act(to, |membership, now| membership.receive(from, packet, now));
        self.refused.extend(result.and_then(Result::err));
    }

    /// Opens links to the nodes that all others discover first, unless they are known. A node that is alone seeks others.
    fn discover(&mut self, index: usize) {
        let Some(membership) = &self.processes[index].membership else {
            return;
        };
        let alive = |(record, state): (Arc<Record>, MemberState)| {
            (state != MemberState::Down).then(|| record.address.clone())
        };
        let known: BTreeSet<_> = membership.members().into_iter().filter_map(alive).collect();
        let period = if known.is_empty() {
            DISCOVERY_ALONE
        } else {
            DISCOVERY
        };
        for seed in 0..SEEDS.min(self.processes.len()) {
            let it = &self.processes[seed];
            let reachable =
                it.membership.is_some() && !(self.cut)(index, seed) && !(self.cut)(seed, index);
            if seed == index || !reachable || known.contains(&it.record.address) {
                continue;
            }
            self.introduce(index, seed);
        }
        let linked = self.links.range((index, 0)..=(index, usize::MAX));
        let linked: Vec<_> = linked
            .map(|(_, peer)| Arc::new(self.processes[*peer].record.clone()))
            .collect();
        self.act(index, |membership, now| {
            membership.seek_if_alone(&linked, now);
        });
        self.after(period, Event::Discover(index));
    }

    pub(super) fn carry_out(&mut self, index: usize) {
        let process = &mut self.processes[index];
        let Some(membership) = &mut process.membership else {
            return;
        };
        let effects = membership.take_effects();
        let offset = process.started;
        let wake = (membership.deadline() + offset)
            .saturating_sub(process.step)
            .max(self.now);
        if wake != process.wake || wake == self.now {
            process.wake = wake;
            let delay = wake.saturating_sub(self.now);
            self.after(delay, Event::Wake(index));
        }
        for effect in effects {
            match effect {
                Effect::Send {
                    to,
                    address,
                    packet,
                } => self.send(index, to, &address, packet),
                news => self.report(index, news),
            }
        }
    }

    fn send(&mut self, from: usize, node: Generation, address: &str, packet: Bytes) {
        self.sent += packet.len() as u64;
        if let Some(log) = &mut self.log {
            log.push(packet.clone());
        }
        let Some(&to) = self.addresses.get(address) else {
            return;
        };
        if (self.cut)(from, to) {
            self.cut_link(from, to);
            return;
        }
        if self.random.f64() < self.loss {
            return;
        }
        let latency = self.latency();
        if self.processes[to].membership.is_none() {
            if self.processes[to].refuses {
                let loss = Loss::Refused;
                self.after(
                    latency,
                    Event::Lost {
                        at: from,
                        peer: node,
                        loss,
                    },
                );
            }
            return;
        }
        self.links.insert((from, to));
        self.links.insert((to, from));
        let from = self.processes[from].record.clone();
        self.after(
            latency,
            Event::Packet {
                from,
                to,
                node,
                packet,
            },
        );
    }

    fn report(&mut self, index: usize, news: Effect) {
        match &news {
            Effect::Up(record) => {
                let process = &mut self.processes[index];
                if process.up.insert(record.node.clone()) {
                    process.sum = process.sum.wrapping_add(hash(&record.node));
                }
            }
            Effect::Down { node, why } => {
                let process = &mut self.processes[index];
                if process.up.remove(node) {
                    process.sum = process.sum.wrapping_sub(hash(node));
                }
                let live = |it: &Process| it.membership.is_some() && it.record.node == *node;
                if *why != Departure::Withdrawn && self.processes.iter().any(live) {
                    self.false_downs += 1;
                }
            }
            _ => {}
        }
        self.news.push((index, news));
    }
}
