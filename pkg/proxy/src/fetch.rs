//! Fetches from the backing cache: at most one of each blob at a time, owned by the proxy.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use gorego_limits::Permit;
use gorego_storage::{Blob, BlobStore as _, CHUNK_SIZE, Digest, Error, Result};
use gorego_storage_local::Received;

use crate::{
    batches::is_small,
    flow::Flow,
    memory::UNWRITTEN,
    shared::Shared,
    tee::Tee,
    tiers::{Tiers, log_unstored},
};

/// The way of blobs from the backing cache into the local tier: the fetches in progress.
#[derive(Debug)]
pub(crate) struct Fetches {
    pub(crate) tiers: Tiers,
    running: Shared<Digest, Flow>,
}

/// A fetch in progress. Dropped before its end, it fails its readers.
struct Fetch(Arc<Flow>);

impl Drop for Fetch {
    fn drop(&mut self) {
        let cut_off = format!("fetch of {} was cut off", self.0.digest);
        self.0.finish(Err(Error::Unavailable(cut_off)));
    }
}

impl Fetches {
    pub(crate) fn new(tiers: Tiers) -> Self {
        let running = Shared::default();
        Self { tiers, running }
    }

    /// Joins the fetches of the blobs, and starts those that are not in progress, small blobs together.
    /// Returns the value of `join` for each.
    pub(crate) fn join_all<T>(
        self: &Arc<Self>,
        digests: &[Digest],
        join: impl Fn(&Arc<Flow>) -> Option<T>,
    ) -> Vec<Option<T>> {
        let (mut joined, mut small) = (Vec::with_capacity(digests.len()), Vec::new());
        // A slow reader keeps a fetch that has ended, whose file may be gone or corrupt by now.
        let join = |flow: &Arc<Flow>| (!flow.has_ended()).then(|| join(flow)).flatten();
        for digest in digests {
            let flow = || Flow::new(*digest, self.tiers.options.memory.pieces.clone());
            let (value, new) = self.running.join(digest, flow, &join).unzip();
            joined.push(value);
            match new.flatten().map(Fetch) {
                Some(fetch) if is_small(digest) => small.push(fetch),
                Some(fetch) => self.start_large(fetch),
                None => {}
            }
        }
        if !small.is_empty() {
            let fetches = Arc::clone(self);
            let fetch = async move { fetches.fetch_small(small).await };
            self.tiers.spawn(fetch);
        }
        joined
    }

    /// Fetches blobs into the local tier, and waits for the end. Does not count as a reader, since a blob that cannot be
    /// stored is of no use.
    pub(crate) async fn store_batch(self: &Arc<Self>, digests: &[Digest]) -> Vec<Result<()>> {
        let flows = self.join_all(digests, |flow| Some(Arc::clone(flow)));
        let ended = digests.iter().zip(flows).map(|(digest, flow)| async move {
            flow.ok_or(Error::NotFound(*digest))?.ended().await
        });
        future::join_all(ended).await
    }

    fn start_large(self: &Arc<Self>, fetch: Fetch) {
        let fetches = Arc::clone(self);
        self.tiers.spawn(async move {
            let mut permits = Vec::new();
            let fetched = fetches.fetch_large(&fetch.0, &mut permits).await;
            fetches.end(&fetch, fetched);
            // The content counts as long as it is in memory.
            fetch.0.emptied().await;
        });
    }

    /// Ends a fetch, and records a miss of the backing cache.
    fn end(&self, fetch: &Fetch, fetched: Result<()>) {
        let digest = &fetch.0.digest;
        match &fetched {
            Err(Error::NotFound(_)) => self.tiers.backing.forget(digest),
            Err(error @ Error::Mismatch { .. }) => {
                tracing::warn!(%digest, %error, "the backing cache returned a corrupt blob");
            }
            Err(error) => tracing::debug!(%digest, %error, "failed to fetch a blob"),
            Ok(()) => {}
        }
        fetch.0.finish(fetched);
    }

    async fn fetch_large(&self, flow: &Arc<Flow>, permits: &mut Vec<Permit>) -> Result<()> {
        let digest = flow.digest;
        let permit = self.tiers.options.memory.reserve_large(&digest).await;
        permits.push(permit.map_err(Error::no_memory)?);
        // Another caller may have stored it since the lookup.
        let blob = match self.tiers.local.get(&digest, 0).await {
            Ok(blob) => blob,
            Err(_) => self.tiers.backing.store.get(&digest, 0).await?,
        };
        let pieces = blob.into_chunks();
        let pieces = pieces.map_ok(|chunk| stream::iter(pieces_of(chunk).map(Ok)));
        let readers = Arc::clone(flow);
        let tee = Tee::new(pieces.try_flatten().then(move |piece: Result<Bytes>| {
            let readers = Arc::clone(&readers);
            async move {
                match &piece {
                    Ok(piece) => readers.push(piece.clone()).await,
                    Err(error) => readers.finish(Err(error.clone())),
                }
                piece
            }
        }));
        let (local, growth) = (&self.tiers.local, Some(flow.growth()));
        let stored = match local.receive(&digest, tee.local(), None, growth).await {
            Ok(Received::Complete(complete)) => complete.publish().await.map(drop),
            Err(error @ Error::Mismatch { .. }) => Err(error),
            received => {
                // Another writer may have stored it meanwhile.
                if let Ok(Blob::File(file)) = local.get(&digest, 0).await {
                    flow.switch_to_file(&file);
                }
                self.fetch_rest(flow, &tee, permits).await?;
                received.map(drop)
            }
        };
        // Other errors of the local tier do not concern the readers.
        if matches!(stored, Err(Error::Mismatch { .. })) {
            return stored;
        }
        log_unstored(&digest, &stored);
        Ok(())
    }

    /// Fetches the rest of a blob that is no longer written, at the pace of its readers.
    async fn fetch_rest(&self, flow: &Flow, tee: &Tee, permits: &mut Vec<Permit>) -> Result<()> {
        flow.failure()?;
        let (permit, most) = self.tiers.options.memory.reserve_unwritten(&flow.digest);
        permits.extend(permit);
        flow.to_memory(most);
        loop {
            if flow.digest.size() > UNWRITTEN {
                flow.abandon()?;
            }
            match tee.next().await {
                Some(piece) => drop(piece?),
                None => return Ok(()),
            }
        }
    }

    async fn fetch_small(&self, fetches: Vec<Fetch>) {
        let digests: Vec<Digest> = fetches.iter().map(|fetch| fetch.0.digest).collect();
        let permit = self.tiers.options.memory.reserve_small(&digests).await;
        let fetched = match &permit {
            Ok(_) => self.tiers.backing.store.get_batch(&digests).await,
            Err(full) => vec![Err(Error::no_memory(full.clone())); digests.len()],
        };
        let blobs = digests.iter().copied().zip(&fetched);
        let blobs = blobs.filter_map(|(digest, content)| Some((digest, content.clone().ok()?)));
        self.tiers.store_local(blobs.collect()).await;
        for (fetch, content) in fetches.iter().zip(fetched) {
            let fetched = match content {
                Ok(content) => {
                    fetch.0.push(content).await;
                    Ok(())
                }
                Err(error) => Err(error),
            };
            self.end(fetch, fetched);
        }
        future::join_all(fetches.iter().map(|fetch| fetch.0.emptied())).await;
    }
}

/// Splits a chunk into pieces that do not keep a larger one in memory, as slices would.
fn pieces_of(mut chunk: Bytes) -> impl Iterator<Item = Bytes> {
    let is_small = chunk.len() <= CHUNK_SIZE;
    std::iter::from_fn(move || {
        let piece = chunk.split_to(chunk.len().min(CHUNK_SIZE));
        let piece = if is_small {
            piece
        } else {
            Bytes::copy_from_slice(&piece)
        };
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_keep_their_chunk_in_memory() {
        let chunk = Bytes::from(vec![7; 4 * CHUNK_SIZE + 1]);
        let all: Vec<_> = pieces_of(chunk.clone()).collect();
        assert_eq!(all.concat(), chunk);
        assert!(all.iter().all(|piece| piece.len() <= CHUNK_SIZE));
        drop(chunk);
        assert!(all.iter().all(Bytes::is_unique));
        let small = Bytes::from(vec![7; CHUNK_SIZE]);
        let same: Vec<_> = pieces_of(small.clone()).collect();
        assert_eq!(same[0].as_ptr(), small.as_ptr(), "not copied");
    }
}
