//! Reads of several small blobs.

use std::{collections::BTreeMap, sync::Arc, vec};

use bytes::Bytes;
use futures::future;
use gorego_storage::{Digest, Error, Result};
use tokio::time::Instant;

use super::{Backing, Places, failed};
use crate::blobs::{
    hedge::hedged,
    peers::{Nodes, Peer},
};

/// A blob of a batch.
struct Wanted {
    digest: Digest,
    /// The nodes to ask next, in order.
    rest: vec::IntoIter<Arc<Peer>>,
    found: Option<Bytes>,
    /// The answer of the backing cache, if it has none.
    refused: Option<Error>,
}

impl Places {
    /// Reads small blobs, each from the first place that has it. All are read from their first nodes at once, then the
    /// missing ones from their second nodes.
    pub(in crate::blobs) async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let (start, nodes) = (Instant::now(), self.peers.nodes());
        let near = nodes.near();
        let wanted = digests.iter().map(|digest| {
            let near = near.clone();
            let near = near.filter(|near| !self.peers.is_corrupt(near, digest));
            Wanted {
                digest: *digest,
                rest: Vec::from_iter(near).into_iter(),
                found: None,
                refused: None,
            }
        });
        let mut wanted: Vec<Wanted> = wanted.collect();
        self.read_from_nodes(start, &mut wanted).await;
        let mut is_ranked = self.most == 0;
        if let Some(backing) = &self.backing {
            let missing = wanted.iter().filter(|blob| blob.found.is_none()).count();
            if !is_ranked && missing > 0 && backing.is_behind(missing) {
                is_ranked = true;
                self.read_ranked(start, &nodes, &mut wanted).await;
            }
            backing.complete(&mut wanted).await;
        }
        if !is_ranked {
            self.read_ranked(start, &nodes, &mut wanted).await;
        }
        let answers = wanted.into_iter().map(|blob| {
            let missing = || blob.refused.unwrap_or(Error::NotFound(blob.digest));
            blob.found.ok_or_else(missing)
        });
        answers.collect()
    }

    /// Reads the blobs that are missing from the nodes in rendezvous order.
    async fn read_ranked(&self, start: Instant, nodes: &Nodes, wanted: &mut [Wanted]) {
        let near = nodes.near();
        for blob in wanted.iter_mut().filter(|blob| blob.found.is_none()) {
            let ranked = self
                .peers
                .ranked(nodes, &blob.digest, self.most, near.as_ref());
            blob.rest = ranked.into_iter();
        }
        let found = self.read_from_nodes(start, wanted).await;
        if let Some(backing) = &self.backing {
            backing.hits.add(found);
        }
    }

    /// Reads the blobs that are missing from their next nodes until none is left. Returns the number of blobs that nodes
    /// had.
    async fn read_from_nodes(&self, start: Instant, wanted: &mut [Wanted]) -> usize {
        let mut found = 0;
        loop {
            let mut batches = BTreeMap::<u64, (Arc<Peer>, Vec<&mut Wanted>)>::new();
            for blob in wanted.iter_mut().filter(|blob| blob.found.is_none()) {
                if let Some(peer) = blob.rest.next() {
                    let batch = batches.entry(peer.id());
                    batch.or_insert_with(|| (peer, Vec::new())).1.push(blob);
                }
            }
            if batches.is_empty() {
                return found;
            }
            let reads = batches.into_values();
            let reads = reads.map(|(peer, batch)| self.read_from(start, peer, batch));
            found += future::join_all(reads).await.into_iter().sum::<usize>();
        }
    }

    async fn read_from(
        &self,
        start: Instant,
        peer: Arc<Peer>,
        mut batch: Vec<&mut Wanted>,
    ) -> usize {
        let Some(stores) = self.peers.stores(&peer) else {
            return 0;
        };
        let digests: Vec<Digest> = batch.iter().map(|blob| blob.digest).collect();
        let node = || stores.blobs.get_batch(&digests);
        let asks = batch.iter().any(|blob| blob.refused.is_none());
        let (of_node, of_backing) = match self.backing.as_ref().filter(|_| asks) {
            Some(backing) => {
                let bytes = digests.iter().map(Digest::size);
                let bytes = bytes.fold(0, u64::saturating_add);
                let backing = || backing.blobs.get_batch(&digests);
                let is_whole = |answers: &Vec<Result<Bytes>>| answers.iter().all(Result::is_ok);
                hedged((start, bytes), node, backing, is_whole).await
            }
            None => (Some(node().await), None),
        };
        let mut found = 0;
        for (blob, answer) in batch.iter_mut().zip(of_node.into_iter().flatten()) {
            match answer {
                Ok(content) => {
                    blob.found = Some(content);
                    found += 1;
                }
                Err(error) => failed(&self.peers, &peer, &blob.digest, &error),
            }
        }
        for (blob, answer) in batch.iter_mut().zip(of_backing.into_iter().flatten()) {
            blob.answered(answer);
        }
        found
    }
}

impl Backing {
    /// Reads the blobs that the nodes lack, and that it was not asked for yet.
    async fn complete(&self, wanted: &mut [Wanted]) {
        let missing = wanted.iter_mut();
        let missing = missing.filter(|blob| blob.found.is_none() && blob.refused.is_none());
        let missing: Vec<&mut Wanted> = missing.collect();
        if missing.is_empty() {
            return;
        }
        let digests: Vec<Digest> = missing.iter().map(|blob| blob.digest).collect();
        for (blob, answer) in missing
            .into_iter()
            .zip(self.blobs.get_batch(&digests).await)
        {
            blob.answered(answer);
        }
    }
}

impl Wanted {
    /// Records the answer of the backing cache.
    fn answered(&mut self, answer: Result<Bytes>) {
        match answer {
            Ok(content) => drop(self.found.get_or_insert(content)),
            Err(error) => self.refused = Some(error),
        }
    }
}
