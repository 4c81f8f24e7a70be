//! Fetches from the backing cache: one of each blob at a time, which belongs to nobody who reads it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{StreamExt as _, future};
use gorego_limits::{Budget, Permit};
use gorego_storage::{Blob, BlobStore, CHUNK_SIZE, Chunks, Digest, Error, Result};
use gorego_storage_local::Received;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{flow::Flow, memory::UNWRITTEN, store::Tiers};

/// The fetches under way.
#[derive(Debug)]
pub(crate) struct Fetches {
    flows: Mutex<HashMap<Digest, Arc<Flow>>>,
    /// For what readers get of them.
    pieces: Budget,
}

/// A fetch to wait for.
pub(crate) enum Joined {
    /// Which is under way.
    Running(Arc<Flow>),
    /// Which the caller has to start.
    New(Arc<Flow>),
}

impl Fetches {
    pub(crate) fn new(pieces: Budget) -> Self {
        Self {
            flows: Mutex::default(),
            pieces,
        }
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Flow>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fetch of this blob, or a new one where there is none that `use_it` can use.
    pub(crate) fn join<T>(
        &self,
        digest: &Digest,
        use_it: impl Fn(&Arc<Flow>) -> Option<T>,
    ) -> Option<(Joined, T)> {
        let mut flows = self.flows();
        if let Some(flow) = flows.get(digest)
            && let Some(used) = use_it(flow)
        {
            return Some((Joined::Running(Arc::clone(flow)), used));
        }
        let flow = Arc::new(Flow::new(*digest, self.pieces.clone()));
        let used = use_it(&flow)?;
        flows.insert(*digest, Arc::clone(&flow));
        Some((Joined::New(flow), used))
    }

    fn end(&self, flow: &Arc<Flow>) {
        let mut flows = self.flows();
        if flows
            .get(flow.digest())
            .is_some_and(|other| Arc::ptr_eq(other, flow))
        {
            flows.remove(flow.digest());
        }
    }
}

/// What failed here does not concern the readers.
fn not_kept(digest: &Digest, error: &Error) {
    tracing::debug!(%digest, %error, "what was fetched is not kept");
}

/// Ends a fetch also when its task is cut off.
struct Ending {
    tiers: Arc<Tiers>,
    flow: Arc<Flow>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.tiers.fetches.end(&self.flow);
        let cut_off = Error::Unavailable(format!("fetching {} was cut off", self.flow.digest()));
        self.flow.finish(Err(cut_off));
    }
}

/// A chunk in pieces of which none keeps a larger one in memory, as slices would.
fn pieces(mut chunk: Bytes) -> impl Iterator<Item = Bytes> {
    let whole = chunk.len() <= CHUNK_SIZE;
    std::iter::from_fn(move || {
        if chunk.is_empty() {
            None
        } else if whole {
            Some(std::mem::take(&mut chunk))
        } else {
            let piece = chunk.split_to(chunk.len().min(CHUNK_SIZE));
            Some(Bytes::copy_from_slice(&piece))
        }
    })
}

impl Tiers {
    /// Starts the fetch of one blob.
    pub(crate) fn start(self: &Arc<Self>, flow: Arc<Flow>) {
        let ending = Ending {
            tiers: Arc::clone(self),
            flow,
        };
        self.spawn(async move {
            let (tiers, flow) = (&ending.tiers, &ending.flow);
            let mut reserved = Vec::new();
            let outcome = tiers.fetch(flow, &mut reserved).await;
            if let Err(error) = &outcome {
                tiers.note_fetch(flow.digest(), error);
            }
            // Whoever comes from now on finds it in the local store, or tries again.
            tiers.fetches.end(flow);
            flow.finish(outcome);
            // What is in memory counts until it is gone from there.
            flow.emptied().await;
        });
    }

    async fn fetch(&self, flow: &Flow, reserved: &mut Vec<Permit>) -> Result<()> {
        let digest = *flow.digest();
        reserved.push(
            self.options
                .memory
                .reserve(&digest)
                .await
                .map_err(Error::no_memory)?,
        );
        // It may have come between the caller's look and this fetch.
        let blob = match self.local.get(&digest, 0).await {
            Ok(blob) => blob,
            Err(_) => self.backing.get(&digest, 0).await?,
        };
        let (writer, content) = mpsc::channel(1);
        let write = self.write(flow, content);
        let pump = self.pump(flow, blob.into_chunks(), writer, reserved);
        let (written, arrived) = future::join(write, pump).await;
        // The backing store verifies what it gives as a whole.
        arrived?;
        let kept = match written {
            Ok(Received::Existed) => return Ok(()),
            Ok(Received::Complete(complete)) => complete.publish().await,
            Err(error) => Err(error),
        };
        match kept {
            Err(error @ Error::Mismatch { .. }) => Err(error),
            Err(error) => {
                not_kept(&digest, &error);
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Writes what arrives, for as long as there is room and no such blob here. Once there is, readers
    /// go on from that.
    async fn write(&self, flow: &Flow, content: mpsc::Receiver<Result<Bytes>>) -> Result<Received> {
        let content = ReceiverStream::new(content).boxed();
        let (digest, growth) = (flow.digest(), Some(flow.growth()));
        let written = self.local.receive(digest, content, None, growth).await;
        if let Ok(Received::Existed) = &written
            && let Ok(Blob::File(file)) = self.local.get(digest, 0).await
        {
            flow.found(&file);
        }
        written
    }

    /// Brings what arrives to the readers and to the writer.
    async fn pump(
        &self,
        flow: &Flow,
        mut chunks: Chunks,
        writer: mpsc::Sender<Result<Bytes>>,
        reserved: &mut Vec<Permit>,
    ) -> Result<()> {
        let mut writer = Some(writer);
        while let Some(chunk) = chunks.next().await {
            if let Err(error) = &chunk
                && let Some(writer) = &writer
            {
                let _ = writer.send(Err(error.clone())).await;
            }
            for piece in pieces(chunk?) {
                flow.push(piece.clone()).await;
                if let Some(open) = &writer
                    && open.send(Ok(piece)).await.is_err()
                {
                    writer = None;
                    reserved.extend(self.options.memory.keep(flow));
                }
                if writer.is_none() && flow.digest().size() > UNWRITTEN {
                    flow.abandon()?;
                }
            }
        }
        Ok(())
    }

    /// Fetches several small blobs at once.
    pub(crate) fn start_batch(self: &Arc<Self>, flows: Vec<Arc<Flow>>) {
        let endings: Vec<_> = flows
            .into_iter()
            .map(|flow| Ending {
                tiers: Arc::clone(self),
                flow,
            })
            .collect();
        let tiers = Arc::clone(self);
        self.spawn(async move { tiers.fetch_batch(endings).await });
    }

    async fn fetch_batch(&self, endings: Vec<Ending>) {
        let digests: Vec<Digest> = endings.iter().map(|e| *e.flow.digest()).collect();
        let _reserved = match self.options.memory.reserve_batch(&digests).await {
            Ok(reserved) => reserved,
            Err(full) => {
                let error = Error::no_memory(full);
                for ending in endings {
                    self.fetches.end(&ending.flow);
                    ending.flow.finish(Err(error.clone()));
                }
                return;
            }
        };
        let fetched = self.backing.get_batch(&digests).await;
        let whole = |(digest, content): (&Digest, &Result<Bytes>)| {
            content
                .as_ref()
                .ok()
                .map(|content| (*digest, content.clone()))
        };
        let kept: Vec<_> = digests.iter().zip(&fetched).filter_map(whole).collect();
        let names: Vec<Digest> = kept.iter().map(|(digest, _)| *digest).collect();
        let written = self.local.put_batch(kept).await;
        for (digest, written) in names.iter().zip(written) {
            if let Err(error) = written {
                not_kept(digest, &error);
            }
        }
        for (ending, content) in endings.iter().zip(fetched) {
            let flow = &ending.flow;
            let outcome = match content {
                Ok(content) => {
                    flow.push(content).await;
                    Ok(())
                }
                Err(error) => {
                    self.note_fetch(flow.digest(), &error);
                    Err(error)
                }
            };
            self.fetches.end(flow);
            flow.finish(outcome);
        }
        future::join_all(endings.iter().map(|ending| ending.flow.emptied())).await;
    }

    /// What a failed fetch tells about the backing cache.
    fn note_fetch(&self, digest: &Digest, error: &Error) {
        match error {
            Error::NotFound(_) => self.existence.remove(digest),
            Error::Mismatch { .. } => {
                tracing::warn!(%digest, %error, "the backing cache gives wrong content");
            }
            error => tracing::debug!(%digest, %error, "could not fetch"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_keeps_a_large_chunk_in_memory() {
        let chunk = Bytes::from(vec![7; 4 * CHUNK_SIZE + 1]);
        let all: Vec<_> = pieces(chunk.clone()).collect();
        assert_eq!(all.concat(), chunk);
        assert!(all.iter().all(|piece| piece.len() <= CHUNK_SIZE));
        drop(chunk);
        assert!(all.iter().all(Bytes::is_unique));
        let small = Bytes::from(vec![7; CHUNK_SIZE]);
        let same: Vec<_> = pieces(small.clone()).collect();
        assert_eq!(same[0].as_ptr(), small.as_ptr(), "not copied");
    }
}
