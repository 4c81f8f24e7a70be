//! Fetches from the backing cache: one of each blob at a time, which belongs to nobody who reads it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{StreamExt as _, future};
use gorego_storage::{BlobStore, Digest, Error, Received, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{flow::Flow, store::Tiers};

/// A permit stands for this many bytes of memory.
const UNIT: u64 = 16 * 1024;
/// What all fetches together may have in memory, in permits.
const MEMORY: usize = (128 << 20) / 16 / 1024;
/// What one of them has, in bytes, while what arrives can be written.
const WRITTEN: u64 = 1 << 20;
/// And what it should have, in bytes, when it cannot.
const UNWRITTEN: u64 = 16 << 20;

/// The fetches under way.
#[derive(Debug)]
pub(crate) struct Fetches {
    flows: Mutex<HashMap<Digest, Arc<Flow>>>,
    memory: Arc<Semaphore>,
}

/// A fetch to wait for.
pub(crate) enum Joined {
    /// Which is under way.
    Running(Arc<Flow>),
    /// Which the caller has to start.
    New(Arc<Flow>),
}

impl Default for Fetches {
    fn default() -> Self {
        Self {
            flows: Mutex::default(),
            memory: Arc::new(Semaphore::new(MEMORY)),
        }
    }
}

impl Fetches {
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
        let flow = Arc::new(Flow::new(*digest));
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

    async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        let reserved = Arc::clone(&self.memory).acquire_many_owned(permits(bytes));
        let closed = |_| Error::Unavailable("the proxy is shutting down".to_owned());
        reserved.await.map_err(closed)
    }
}

fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
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

impl Tiers {
    /// Starts the fetch of one blob.
    pub(crate) fn start(self: &Arc<Self>, flow: Arc<Flow>) {
        let ending = Ending {
            tiers: Arc::clone(self),
            flow,
        };
        self.spawn(async move {
            let outcome = ending.tiers.fetch(&ending.flow).await;
            if let Err(error) = &outcome {
                ending.tiers.note_fetch(ending.flow.digest(), error);
            }
            // Whoever comes from now on finds it in the local store, or tries again.
            ending.tiers.fetches.end(&ending.flow);
            ending.flow.finish(outcome);
        });
    }

    async fn fetch(&self, flow: &Arc<Flow>) -> Result<()> {
        let digest = *flow.digest();
        let _memory = self.fetches.reserve(digest.size().min(WRITTEN)).await?;
        // It may have come between the caller's look and this fetch.
        let blob = match self.local.get(&digest, 0).await {
            Ok(blob) => blob,
            Err(_) => self.backing.get(&digest, 0).await?,
        };
        let mut chunks = blob.into_chunks();
        let (sender, receiver) = mpsc::channel(1);
        let content = ReceiverStream::new(receiver).boxed();
        let write = self
            .local
            .receive(&digest, content, None, Some(flow.growth()));
        let pump = async {
            let mut writer = Some(sender);
            let mut more_memory = None;
            while let Some(chunk) = chunks.next().await {
                if let Err(error) = &chunk
                    && let Some(writer) = &writer
                {
                    let _ = writer.send(Err(error.clone())).await;
                }
                let chunk = chunk?;
                flow.push(chunk.clone()).await;
                if let Some(open) = &writer
                    && open.send(Ok(chunk)).await.is_err()
                {
                    writer = None;
                    more_memory = self.keep_in_memory(flow);
                }
                if writer.is_none() && digest.size() > UNWRITTEN {
                    flow.abandon()?;
                }
            }
            drop(writer);
            Ok(more_memory)
        };
        let (written, arrived) = future::join(write, pump).await;
        // The backing store verifies what it gives as a whole.
        let _memory = arrived?;
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

    /// The local store has no use for the rest, or no room.
    fn keep_in_memory(&self, flow: &Flow) -> Option<OwnedSemaphorePermit> {
        let most = flow.digest().size().min(UNWRITTEN);
        let more = Arc::clone(&self.fetches.memory)
            .try_acquire_many_owned(permits(most.saturating_sub(WRITTEN)))
            .ok();
        flow.to_memory(if more.is_some() { most } else { WRITTEN });
        more
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
        let total = digests.iter().map(Digest::size).sum::<u64>();
        let Ok(_memory) = self.fetches.reserve(total.min(UNWRITTEN)).await else {
            return;
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
        for (ending, content) in endings.into_iter().zip(fetched) {
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
