//! Writes to the owners.

use std::{collections::BTreeMap, sync::Arc, vec};

use futures::future;
use gorego_limits::LogLimit;
use gorego_scheduler::Generation;
use gorego_storage::{Digest, Error, Put, Result};

use crate::blobs::peers::{Peer, PeerStores, Peers};

/// The nodes that are tried in place of owners that fail.
const SUBSTITUTES: usize = 3;

/// A write that some nodes still have to get.
struct Write {
    index: usize,
    digest: Digest,
    /// The nodes to try, in order; `None` for this node, which has it.
    rest: vec::IntoIter<Option<Arc<Peer>>>,
    /// The number of copies that are missing.
    missing: usize,
}

impl Write {
    /// Records the outcome at a node.
    fn record(&mut self, sent: Result<Put>, result: &mut Result<Put>) {
        match sent {
            Ok(put) => {
                self.missing = self.missing.saturating_sub(1);
                if put == Put::Stored && result.is_ok() {
                    *result = Ok(put);
                }
            }
            Err(error) if is_of_content(&error) => {
                self.missing = 0;
                *result = Err(error);
            }
            Err(_) => {}
        }
    }
}

/// Sends each write to `replicas` nodes, this one included. A node that fails is replaced by the next one. `send` sends
/// the writes with the given indexes to a node. A write fails only if its own content is at fault.
pub(super) async fn spread<F>(
    peers: &Peers,
    digests: &[Digest],
    replicas: usize,
    send: impl Fn(PeerStores, Vec<usize>) -> F,
) -> Vec<Result<Put>>
where
    F: Future<Output = Vec<Result<Put>>>,
{
    let (nodes, most) = (peers.nodes(), replicas.saturating_add(SUBSTITUTES));
    let mut results = vec![Ok(Put::Existed); digests.len()];
    let writes = digests.iter().enumerate();
    let writes = writes.filter(|(_, digest)| !digest.is_empty_blob());
    let mut writes: Vec<Write> = writes
        .map(|(index, digest)| Write {
            index,
            digest: *digest,
            rest: nodes.first(digest, most).into_iter(),
            missing: replicas,
        })
        .collect();
    let mut failed = None;
    loop {
        let batches = batches(&mut writes);
        if batches.is_empty() {
            if let Some(node) = failed {
                warn_of_few_copies(&node, &writes);
            }
            return results;
        }
        let sends = batches.into_values().map(|(peer, batch)| {
            let indexes = batch.iter().filter_map(|at| Some(writes.get(*at)?.index));
            let stores = peers.stores(&peer).cloned();
            let sent = stores.map(|stores| send(stores, indexes.collect()));
            async move {
                let sent = match sent {
                    Some(sent) => sent.await,
                    None => Vec::new(),
                };
                (peer, batch, sent)
            }
        });
        for (peer, batch, sent) in future::join_all(sends).await {
            let mut sent = sent.into_iter();
            for at in batch {
                let Some(write) = writes.get_mut(at) else {
                    continue;
                };
                let unusable = || Error::Unavailable("its address is unusable".to_owned());
                let sent = sent.next().unwrap_or_else(|| Err(unusable()));
                if let Err(error) = &sent {
                    let (node, digest) = (&peer.member.node, write.digest);
                    failed = Some(node.clone());
                    tracing::debug!(%node, %digest, %error, "failed to write to a node");
                }
                if let Some(result) = results.get_mut(write.index) {
                    write.record(sent, result);
                }
            }
        }
    }
}

/// Assigns the writes to the next nodes. The batches contain indexes into `writes`.
fn batches(writes: &mut [Write]) -> BTreeMap<u64, (Arc<Peer>, Vec<usize>)> {
    let mut batches = BTreeMap::<u64, (Arc<Peer>, Vec<usize>)>::new();
    for (at, write) in writes.iter_mut().enumerate() {
        let mut assigned = 0;
        while assigned < write.missing
            && let Some(next) = write.rest.next()
        {
            match next {
                Some(peer) => {
                    assigned += 1;
                    let batch = batches.entry(peer.id());
                    batch.or_insert_with(|| (peer, Vec::new())).1.push(at);
                }
                None => write.missing -= 1,
            }
        }
    }
    batches
}

/// Returns whether the content cannot be read, or does not match its digest, so that no node can store it.
const fn is_of_content(error: &Error) -> bool {
    matches!(
        error,
        Error::Mismatch { .. } | Error::Source(_) | Error::Io { .. }
    )
}

/// Logs a warning if writes have fewer copies than they should because nodes failed, such as `node`.
fn warn_of_few_copies(node: &Generation, writes: &[Write]) {
    static LOGS: LogLimit = LogLimit::new();
    let mut fewer = writes.iter().filter(|write| write.missing > 0);
    if let Some(write) = fewer.next()
        && LOGS.is_due()
    {
        tracing::warn!(
            %node,
            digest = %write.digest,
            writes = 1 + fewer.count(),
            "writes have fewer copies than cluster.replicas, since a node failed: see the log of that node"
        );
    }
}
