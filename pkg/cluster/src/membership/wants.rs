//! The exchange of records that gossip missed.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use gorego_scheduler::Time;

use super::identity::{Identity, key};
use super::wire::{Envelope, MAX_RECORDS_LEN, MAX_WANTED};
use super::{Effect, Membership, Node, WANT_AFTER};

/// The most pieces of news of which a departure is passed on at once. More of them wait for the next gossip, so that a
/// partition causes no flood.
const MAX_URGENT: usize = 8;

impl Membership {
    /// Asks for the records that are due, of a few nodes.
    pub(super) fn ask_for_records(&mut self) {
        let now = self.now;
        if now < self.next_want {
            return;
        }
        let due = |node: &Node| node.want.is_some_and(|(at, _)| at <= now);
        let others: Vec<_> = self
            .nodes
            .values()
            .filter(|node| node.active)
            .map(|node| node.id.clone())
            .collect();
        let other = self.random.choice(&others).cloned();
        let mut wanted: BTreeMap<u64, (Identity, Vec<String>)> = BTreeMap::new();
        for node in self.nodes.values_mut().filter(|node| due(node)) {
            let attempts = node.want.map_or(0, |(_, attempts)| attempts);
            node.want = node
                .active
                .then(|| (now + WANT_AFTER, attempts.saturating_add(1)));
            // The node itself surely has its record, but asking a thousand nodes one by one would be slow.
            let asked = if attempts % 2 == 0 {
                self.sender.clone().or_else(|| other.clone())
            } else {
                None
            };
            let asked = asked.unwrap_or_else(|| node.id.clone());
            let (_, names) = wanted.entry(asked.key()).or_insert((asked, Vec::new()));
            if node.active && names.len() < MAX_WANTED {
                names.push(node.id.node.node().into());
            }
        }
        let wants = self.nodes.values().filter_map(|node| Some(node.want?.0));
        self.next_want = wants.min().unwrap_or(Time::MAX);
        for (asked, wanted) in wanted.into_values() {
            self.send(
                &asked,
                Envelope {
                    wanted,
                    ..Envelope::default()
                },
            );
        }
    }

    /// Sends the records that a node asked for.
    pub(super) fn send_records(&mut self, to: &Identity, names: &[String]) {
        let mut items = Vec::new();
        let records = self.records.0.lock();
        for name in names.iter().take(MAX_WANTED) {
            let key = key(name);
            let node = match self.nodes.get(&key) {
                Some(node) => &node.id.node,
                None if key == self.key() => &self.me.node,
                None => continue,
            };
            items.extend(records.item(node).cloned());
        }
        drop(records);
        let mut rest = items.as_slice();
        while !rest.is_empty() {
            let mut len = 0;
            let fits = rest.iter().take_while(|item| {
                len += item.len() + 4;
                len <= MAX_RECORDS_LEN
            });
            let (records, others) = rest.split_at(fits.count().max(1));
            rest = others;
            let records = records.to_vec();
            self.send(
                to,
                Envelope {
                    records,
                    ..Envelope::default()
                },
            );
        }
    }

    /// Adapts to the handled event, and reports the nodes that are up, or changed, now that their records arrived.
    pub(super) fn settle(&mut self) {
        self.adapt();
        if mem::take(&mut self.urgent) && self.foca.updates_backlog() <= MAX_URGENT {
            self.drive(|foca, runtime| foca.gossip(runtime));
        }
        let changed = self.records.0.lock().take_changed();
        for node in changed {
            let key = key(node.node());
            let Some(entry) = self.nodes.get_mut(&key) else {
                continue;
            };
            let records = self.records.0.lock();
            let (true, Some(record)) = (entry.id.node == node, records.get(&node)) else {
                continue;
            };
            if records.counter(&node) > 0 {
                entry.want = None;
            }
            if entry.up.as_ref() == Some(&node) {
                self.effects.push(Effect::Changed(Arc::clone(record)));
            } else if entry.active {
                entry.up = Some(node);
                self.effects.push(Effect::Up(Arc::clone(record)));
            }
        }
    }
}
