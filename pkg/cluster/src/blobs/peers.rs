//! The other live nodes, and the clients of their stores.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use gorego_limits::{Call, LogLimit};
use gorego_scheduler::Generation;
use gorego_storage::{ActionCache, BlobStore, Digest};
use parking_lot::{Mutex, RwLock};
use tokio::time::timeout;

use super::rendezvous;

/// The time that a node has to answer a lookup. Its processors may all be busy. After that, the node counts as without
/// the blob. A node that did not answer the last lookup has less time.
const LOOKUP: Duration = Duration::from_secs(1);
const LOOKUP_AGAIN: Duration = Duration::from_millis(200);

/// The most corrupt blobs of other nodes that are remembered.
const MAX_CORRUPT: usize = 1000;

/// Another live node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// The node.
    pub node: Generation,
    /// Its address: host and port.
    pub address: String,
}

/// The stores of a node, which are its local tier. Its blobs are verified like the blobs of a backing cache.
#[derive(Clone, Debug)]
pub struct PeerStores {
    /// The blobs.
    pub blobs: Arc<dyn BlobStore>,
    /// The action results, complete or not.
    pub actions: Arc<dyn ActionCache>,
}

/// A function that creates the client of a node, without a connection yet.
pub type Connect = Box<dyn Fn(&Member) -> Result<PeerStores, String> + Send + Sync>;

/// The other live nodes. A client of one is created when it is needed, and dropped with the node.
pub struct Peers {
    own: u64,
    own_name: String,
    connect: Connect,
    nodes: RwLock<Arc<Nodes>>,
    /// The corrupt blobs that nodes returned. They are not read from these nodes again.
    corrupt: Mutex<HashSet<(u64, Digest)>>,
}

/// The live nodes at one time, this one included, by name.
pub(super) struct Nodes {
    seeds: Vec<u64>,
    /// `None` for this node.
    peers: Vec<Option<Arc<Peer>>>,
    /// The outages of the nodes that were lost, and one more for each of them.
    lost: u64,
}

/// Another live node, and its client.
pub(super) struct Peer {
    pub(super) member: Member,
    seed: u64,
    stores: OnceLock<Option<PeerStores>>,
    /// Set if the last lookup was not answered in time.
    silent: AtomicBool,
}

impl Peers {
    /// Creates the peers of the node `own`, none yet.
    pub fn new(own: &str, connect: Connect) -> Self {
        let own_name = own.to_owned();
        let own = rendezvous::seed(own);
        let nodes = Nodes {
            seeds: vec![own],
            peers: vec![None],
            lost: 0,
        };
        Self {
            own,
            own_name,
            connect,
            nodes: RwLock::new(Arc::new(nodes)),
            corrupt: Mutex::default(),
        }
    }

    /// Replaces the live nodes, and ignores this node among them. Nodes that stay keep their clients.
    pub fn set(&self, members: impl IntoIterator<Item = Member>) {
        let mut nodes = self.nodes.write();
        let former = nodes.peers.iter().flatten();
        let mut former: HashMap<&Member, &Arc<Peer>> =
            former.map(|peer| (&peer.member, peer)).collect();
        let mut all = vec![(self.own_name.clone(), None)];
        for member in members {
            let name = member.node.node();
            if name == self.own_name {
                continue;
            }
            let peer = match former.remove(&member) {
                Some(peer) => Arc::clone(peer),
                None => Arc::new(Peer {
                    seed: rendezvous::seed(name),
                    stores: OnceLock::new(),
                    silent: AtomicBool::new(false),
                    member: member.clone(),
                }),
            };
            all.push((name.to_owned(), Some(peer)));
        }
        // A blob that was present at a node that is lost may be missing now.
        let lost = former.values().map(|peer| peer.outages() + 1).sum::<u64>();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all.dedup_by(|(one, _), (other, _)| one == other);
        let peers: Vec<_> = all.into_iter().map(|(_, peer)| peer).collect();
        let seeds = peers.iter();
        let seeds = seeds.map(|peer| peer.as_ref().map_or(self.own, |peer| peer.seed));
        let changed = Nodes {
            seeds: seeds.collect(),
            lost: nodes.lost + lost,
            peers,
        };
        *nodes = Arc::new(changed);
    }

    pub(super) fn nodes(&self) -> Arc<Nodes> {
        Arc::clone(&self.nodes.read())
    }

    /// Returns the number of times that blobs of a node may have been lost.
    pub(super) fn outages(&self) -> u64 {
        let nodes = self.nodes();
        let peers = nodes.peers.iter().flatten();
        nodes.lost + peers.map(|peer| peer.outages()).sum::<u64>()
    }

    /// Returns the first `most` nodes in the order of a digest from which it can be read, but not `near`.
    pub(super) fn ranked(
        &self,
        nodes: &Nodes,
        digest: &Digest,
        most: usize,
        near: Option<&Arc<Peer>>,
    ) -> Vec<Arc<Peer>> {
        let ranked = nodes.first(digest, most).into_iter().flatten();
        let is_near = |peer: &Arc<Peer>| near.is_some_and(|near| Arc::ptr_eq(near, peer));
        ranked
            .filter(|peer| !is_near(peer) && !self.is_corrupt(peer, digest))
            .collect()
    }

    /// Returns the stores of a node; `None` if its address is unusable.
    pub(super) fn stores<'a>(&self, peer: &'a Peer) -> Option<&'a PeerStores> {
        let connect = || {
            let connected = (self.connect)(&peer.member);
            connected
                .inspect_err(|why| {
                    let Member { node, address } = &peer.member;
                    tracing::warn!(%node, address, why, "the blobs of a node are out of reach: set a usable cluster.advertise_addr there");
                })
                .ok()
        };
        peer.stores.get_or_init(connect).as_ref()
    }

    /// Returns the blobs that a node reports as present, of those given. The node leases them.
    pub(super) async fn present_at(&self, peer: &Peer, digests: Vec<Digest>) -> HashSet<Digest> {
        let Some(stores) = self.stores(peer) else {
            return HashSet::new();
        };
        let why = match peer.answer(stores.blobs.find_missing(&digests)).await {
            Some(Ok(missing)) => {
                let missing: HashSet<Digest> = missing.into_iter().collect();
                let present = |digest: &Digest| !missing.contains(digest);
                return digests.into_iter().filter(present).collect();
            }
            Some(Err(error)) => error.to_string(),
            None => "it does not answer".to_owned(),
        };
        let node = &peer.member.node;
        tracing::debug!(%node, why, "failed to look up blobs at a node");
        HashSet::new()
    }

    /// Records a corrupt blob of a node.
    pub(super) fn add_corrupt(&self, peer: &Peer, digest: &Digest) {
        static LOGS: LogLimit = LogLimit::new();
        if LOGS.is_due() {
            let node = &peer.member.node;
            tracing::warn!(%node, %digest, "a node returned a corrupt blob; another copy is used if there is one: check the disk of that node");
        }
        let mut corrupt = self.corrupt.lock();
        if corrupt.len() >= MAX_CORRUPT {
            corrupt.clear();
        }
        corrupt.insert((peer.seed, digest.only()));
    }

    pub(super) fn is_corrupt(&self, peer: &Peer, digest: &Digest) -> bool {
        let corrupt = self.corrupt.lock();
        !corrupt.is_empty() && corrupt.contains(&(peer.seed, *digest))
    }
}

impl Nodes {
    /// Returns the first `most` nodes in the order of a digest; `None` for this node.
    pub(super) fn first(&self, digest: &Digest, most: usize) -> Vec<Option<Arc<Peer>>> {
        let first = rendezvous::first(&self.seeds, digest, most).into_iter();
        let peers = first.filter_map(|index| self.peers.get(index));
        peers.cloned().collect()
    }

    /// Returns the node that the current call is near to.
    pub(super) fn near(&self) -> Option<Arc<Peer>> {
        let name = Call::near()?;
        let mut peers = self.peers.iter().flatten();
        peers
            .find(|peer| peer.member.node.node() == &*name)
            .cloned()
    }
}

impl Peer {
    /// Orders and identifies nodes within a call.
    pub(super) const fn id(&self) -> u64 {
        self.seed
    }

    /// Waits for the answer to a lookup; `None` if it takes too long.
    pub(super) async fn answer<T>(&self, lookup: impl Future<Output = T>) -> Option<T> {
        let time = if self.silent.load(Relaxed) {
            LOOKUP_AGAIN
        } else {
            LOOKUP
        };
        let answer = timeout(time, lookup).await.ok();
        self.silent.store(answer.is_none(), Relaxed);
        answer
    }

    fn outages(&self) -> u64 {
        let stores = self.stores.get().and_then(Option::as_ref);
        stores.map_or(0, |stores| stores.blobs.outages())
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes();
        let peers = nodes.peers.iter().flatten();
        f.debug_list()
            .entries(peers.map(|peer| &peer.member))
            .finish()
    }
}
