//! The links that are up, and the choice between two links to one node.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use gorego_scheduler::Generation;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    HANDSHAKE, PING,
    hello::{DUPLICATE, SAME_NAME},
    outbox::Outbox,
};

/// A link to a peer.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: Generation,
    /// The address in its record.
    pub(crate) address: String,
    /// True if this node opened the connection.
    pub(crate) dialed: bool,
    pub(crate) outbox: Arc<Outbox>,
    /// The start of the link.
    pub(crate) since: Instant,
    /// The time of the last received frame.
    pub(crate) received: Mutex<Instant>,
    /// The time of the last frame, in either direction, other than gossip and pings.
    pub(crate) worked: Mutex<Instant>,
    /// True once the owner of the links has received the start of this one.
    pub(crate) announced: AtomicBool,
    /// Cancelled once the end of the link is reported.
    pub(crate) down: CancellationToken,
}

impl Link {
    pub(crate) fn new(
        peer: Generation,
        address: String,
        dialed: bool,
        outbox: Arc<Outbox>,
    ) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            peer,
            address,
            dialed,
            outbox,
            since: now,
            received: Mutex::new(now),
            worked: Mutex::new(now),
            announced: AtomicBool::new(false),
            down: CancellationToken::new(),
        })
    }

    /// Returns whether the peer sent something within one and a half ping periods.
    fn is_alive(&self) -> bool {
        self.outbox.is_open() && self.received.lock().elapsed() < PING * 3 / 2
    }

    /// Returns whether `new` replaces this link to the same run of the peer.
    fn yields_to(&self, new: &Self, me: &Generation) -> bool {
        // Both sides come to the same choice if they opened a connection at the same time.
        let lower_opened = new.dialed == (me.node() < new.peer.node());
        let at_once = self.dialed != new.dialed && self.since.elapsed() < HANDSHAKE;
        !self.is_alive() || (at_once && lower_opened)
    }
}

/// A connection that is being opened.
#[derive(Debug)]
struct Dial {
    id: u64,
    node: Option<String>,
    address: String,
    done: CancellationToken,
}

/// All links of a node.
#[derive(Debug, Default)]
pub(crate) struct Table {
    links: HashMap<String, Arc<Link>>,
    dials: Vec<Dial>,
    next_dial: u64,
    shut: bool,
}

impl Table {
    /// Adds a link, unless there is a better one to its peer. Returns the link that it replaces.
    pub(crate) fn adopt(
        &mut self,
        link: &Arc<Link>,
        me: &Generation,
        most: usize,
    ) -> Result<Option<Arc<Link>>, Status> {
        if self.shut {
            return Err(Status::unavailable("the node is shutting down"));
        }
        let old = self.links.get(link.peer.node());
        if let Some(old) = old {
            if old.peer.number() > link.peer.number() {
                let why = format!("a newer run of the node is connected: {}", old.peer);
                return Err(Status::new(SAME_NAME, why));
            }
            // A run that began anew elsewhere gets the name once the former one does not answer.
            let is_elsewhere = old.peer != link.peer && old.address != link.address;
            if is_elsewhere && old.is_alive() {
                let why = format!(
                    "another node has this name and is connected: {} at {}",
                    old.peer, old.address
                );
                return Err(Status::new(SAME_NAME, why));
            }
            if old.peer == link.peer && !old.yields_to(link, me) {
                return Err(Status::new(DUPLICATE, "the node is connected already"));
            }
        } else if self.links.len() >= most {
            let why = format!("the cluster has more than {most} nodes (cluster.max_nodes)");
            return Err(Status::resource_exhausted(why));
        }
        let name = link.peer.node().to_owned();
        Ok(self.links.insert(name, Arc::clone(link)))
    }

    /// Removes a link that has ended.
    pub(crate) fn remove(&mut self, link: &Arc<Link>) {
        let name = link.peer.node();
        if self.links.get(name).is_some_and(|it| Arc::ptr_eq(it, link)) {
            self.links.remove(name);
        }
    }

    /// Returns the link to a run of a node.
    pub(crate) fn link(&self, peer: &Generation) -> Option<&Arc<Link>> {
        self.links.get(peer.node()).filter(|it| it.peer == *peer)
    }

    /// Returns the link to a run of a node, if its start was received.
    pub(crate) fn announced(&self, peer: &Generation) -> Option<&Arc<Link>> {
        self.link(peer)
            .filter(|link| link.announced.load(Ordering::Acquire))
    }

    /// Returns the link to a node or to an address, if it is up.
    pub(crate) fn up(&self, node: Option<&str>, address: Option<&str>) -> Option<&Arc<Link>> {
        let link = match node {
            Some(node) => self.links.get(node),
            None => self.links.values().find(|it| Some(&*it.address) == address),
        };
        link.filter(|link| link.is_alive())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.links.values()
    }

    /// Refuses links from now on.
    pub(crate) const fn shut(&mut self) {
        self.shut = true;
    }

    /// Returns the end of a dial to a node or an address that is in progress.
    pub(crate) fn dialing(&self, node: Option<&str>, address: &str) -> Option<CancellationToken> {
        let same = |dial: &&Dial| {
            dial.address == address || (node.is_some() && dial.node.as_deref() == node)
        };
        self.dials.iter().find(same).map(|dial| dial.done.clone())
    }

    /// Begins a dial, which ends with [`Self::dialed`]. Returns its number.
    pub(crate) fn dials(&mut self, node: Option<&str>, address: &str) -> u64 {
        let id = self.next_dial;
        self.next_dial += 1;
        self.dials.push(Dial {
            id,
            node: node.map(str::to_owned),
            address: address.to_owned(),
            done: CancellationToken::new(),
        });
        id
    }

    pub(crate) fn dialed(&mut self, id: u64) {
        for dial in self.dials.extract_if(.., |dial| dial.id == id) {
            dial.done.cancel();
        }
    }

    pub(crate) const fn dials_in_progress(&self) -> usize {
        self.dials.len()
    }
}
