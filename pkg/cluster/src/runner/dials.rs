//! Connections that are being opened, and the addresses at which other nodes may be.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use gorego_limits::LogLimit;
use gorego_scheduler::Generation;
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{Told, View, parts::Parts};
use crate::{
    discovery::{Discovery, Schedule},
    link::{DialError, MAX_HANDSHAKES},
    record::Record,
};

/// The most packets that wait for a link. Packets may be lost.
const MAX_PACKETS: usize = 4;
/// The most nodes for which packets wait.
const MAX_WAITING: usize = 64;
/// The time after which an address is visited again: a balancer or a DNS name may lead to another node then. It is longer
/// than an idle link lives.
const VISIT_AGAIN: Duration = Duration::from_mins(10);
/// The most addresses in [`Dials::visited`].
const MAX_VISITED: usize = 4096;
/// The most visits for one lookup, which leave room for links to members.
const MAX_VISITS: usize = MAX_HANDSHAKES / 2;

/// The interval in which it is checked whether the node is alone.
const CHECK: Duration = Duration::from_secs(10);

/// The connections that are being opened, and the packets that wait for them.
#[derive(Default)]
pub(super) struct Dials {
    nodes: HashSet<Generation>,
    packets: HashMap<Generation, VecDeque<Bytes>>,
    /// The node that discovery found at each address, and the time. The record of the node may have another address.
    visited: HashMap<String, (Generation, Instant)>,
}

impl Dials {
    /// Stores a packet until a link is up.
    pub(super) fn add_packet(&mut self, to: &Generation, packet: Bytes) {
        if self.packets.len() >= MAX_WAITING && !self.packets.contains_key(to) {
            return;
        }
        let packets = self.packets.entry(to.clone()).or_default();
        if packets.len() >= MAX_PACKETS {
            packets.pop_front();
        }
        packets.push_back(packet);
    }

    pub(super) fn take_packets(&mut self, to: &Generation) -> VecDeque<Bytes> {
        self.packets.remove(to).unwrap_or_default()
    }
}

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Parts<J, O> {
    /// Opens a link to a member.
    pub(super) fn dial(&mut self, node: &Generation) {
        let record = self.records.get(node).cloned();
        let address = record.as_ref().map(|record| record.address.clone());
        if let Some(address) = address {
            self.dial_at(node, &address);
        } else {
            // The node is no longer a member.
            let result = Err(DialError::Refused);
            let node = node.clone();
            // This fails if this node has left the cluster.
            let _ = self.told.send(Told::Dialed { node, result });
        }
    }

    /// Opens a link to a node at this address.
    pub(super) fn dial_at(&mut self, node: &Generation, address: &str) {
        if !self.dials.nodes.insert(node.clone()) {
            return;
        }
        let (links, told) = (Arc::clone(&self.links), self.told.clone());
        let (node, address) = (node.clone(), address.to_owned());
        self.tasks.spawn(async move {
            let dialed = AssertUnwindSafe(links.dial(&address, Some(node.node())));
            // Without a result, no other link would ever be opened to the node.
            let result = dialed.catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(%node, "opening a link to a node panicked: report the panic");
                Err(DialError::Rejected("the dial panicked".to_owned()))
            });
            let _ = told.send(Told::Dialed { node, result });
        });
    }

    pub(super) fn dialed(&mut self, node: &Generation) {
        self.dials.nodes.remove(node);
        if !self.links.has_link(node) {
            self.dials.packets.remove(node);
        }
    }

    /// Opens links to the nodes at `addresses`, whose names are not known yet. Skips the nodes in `alive`, which includes
    /// this one: visits of them would keep a link open between each two nodes. A node that is alone skips none, since the
    /// address at which it found itself may lead to others, too.
    pub(super) fn visit(&mut self, addresses: &[String], alive: &[&Record]) {
        let nodes: HashSet<_> = alive.iter().map(|record| &record.node).collect();
        let is_alone = nodes.len() == 1;
        let stays = |_: &String, (node, at): &mut (Generation, Instant)| {
            !is_alone && nodes.contains(node) && at.elapsed() < VISIT_AGAIN
        };
        self.dials.visited.retain(stays);
        let known: HashSet<_> = alive.iter().map(|record| &record.address).collect();
        let visited = &self.dials.visited;
        let new = |address: &&String| !known.contains(address) && !visited.contains_key(*address);
        // In random order, so that many addresses without a node do not keep this one from the others.
        for address in fastrand::choose_multiple(addresses.iter().filter(new), MAX_VISITS) {
            let (links, told) = (Arc::clone(&self.links), self.told.clone());
            let address = address.clone();
            self.tasks.spawn(async move {
                let result = links.dial(&address, None).await;
                // This fails if this node has left the cluster.
                let _ = told.send(Told::Visited { address, result });
            });
        }
    }

    /// Records the node that was found at an address, or logs why there is no link.
    pub(super) fn visited(
        &mut self,
        address: String,
        result: Result<Generation, DialError>,
        is_alone: bool,
    ) {
        let node = match result {
            Ok(node) => node,
            Err(DialError::Own) => self.links.me().clone(),
            Err(DialError::Duplicate) => return,
            Err(why) => return report(&address, &why, is_alone),
        };
        if self.dials.visited.len() < MAX_VISITED {
            self.dials.visited.insert(address, (node, Instant::now()));
        }
    }
}

/// Discovers other nodes until the task ends.
pub(super) async fn discover<J, O>(
    mut discovery: Discovery,
    told: mpsc::UnboundedSender<Told<J, O>>,
    view: Arc<Mutex<View>>,
) {
    let start = Instant::now();
    let mut schedule = Schedule::default();
    loop {
        let due = start + schedule.due(view.lock().is_alone());
        let soon = Instant::now() + CHECK;
        tokio::select! {
            () = sleep_until(due.min(soon)) => {}
            () = told.closed() => return,
        }
        if Instant::now() < due {
            continue;
        }
        let found = discovery.look().await;
        schedule.looked(start.elapsed());
        let found = found.iter().map(ToString::to_string).collect();
        // This fails if the task has ended.
        let _ = told.send(Told::Found(found));
    }
}

/// Logs why there is no link to the node at an address: at most once a minute if an operator has to act.
fn report(address: &str, why: &DialError, is_alone: bool) {
    static NAMES: LogLimit = LogLimit::new();
    static LIMITS: LogLimit = LogLimit::new();
    static REFUSALS: LogLimit = LogLimit::new();
    static ALONE: LogLimit = LogLimit::new();
    match why {
        DialError::SameName(_) if NAMES.is_due() => tracing::error!(
            address,
            %why,
            "another node already has the name of this one, so this node works alone: set another cluster.node_id here"
        ),
        DialError::Full(_) if LIMITS.is_due() => tracing::warn!(
            address,
            %why,
            "no link to a node, since the cluster has cluster.max_nodes nodes already: stop a node, or raise \
             cluster.max_nodes at all nodes"
        ),
        DialError::Tls(_) | DialError::Foreign(_) | DialError::Rejected(_) if REFUSALS.is_due() => {
            tracing::warn!(
                address,
                %why,
                "no link to a node; accepted: one of cluster.name whose certificate an authority in \
                 cluster.tls.ca_file issued"
            );
        }
        DialError::Refused | DialError::Unreachable(_) | DialError::Busy(_)
            if is_alone && ALONE.is_due() =>
        {
            tracing::warn!(
                address,
                %why,
                "no other node is reached, so this node works alone: see cluster.join_peers, and whether the network \
                 lets nodes reach cluster.bind_port of others"
            );
        }
        _ => tracing::debug!(address, %why, "no link to a node"),
    }
}
