//! What neither tier has; and what only the local one has goes up.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use gorego_storage::{BlobStore as _, CHUNK_SIZE, Digest, Error, Result};

use tokio::time::Instant;

use crate::store::{OnOutage, Tiers};

/// How much is read into memory at once to be pushed up, in bytes.
const BATCH: u64 = 2 << 20;
/// How many batches or large blobs go up at once.
const AT_ONCE: usize = 8;
/// How long a client goes on with what it was told is present, at most.
const BUILD: Duration = Duration::from_hours(3);

impl Tiers {
    /// The blobs that a client has to upload: those that the backing cache lacks. What it lacks and
    /// the local store has is pushed up first.
    pub(crate) async fn find_missing(self: &Arc<Self>, digests: &[Digest]) -> Result<Vec<Digest>> {
        // Also for the lease.
        let not_local = self.local.find_missing(digests).await?;
        if self.options.read_only {
            // What is here stays here, whether the backing cache has it or not.
            let unknown = self.existence.unknown(&not_local);
            return match self.missing_in_backing(unknown).await {
                Err(error) if self.degrades(&error) => Ok(not_local),
                missing => missing,
            };
        }
        match self.find_missing_above(digests, not_local.clone()).await {
            // What is here will get there, together with the results that name it.
            Err(error) if self.degrades(&error) => {
                self.promise();
                Ok(not_local)
            }
            found => found.map(|(missing, _)| missing),
        }
    }

    fn promise(&self) {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = Some(Instant::now());
    }

    /// Whether clients may rely on what was only here when they asked, and is not told to wait.
    pub(crate) fn has_promised(&self) -> bool {
        let promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        promised.is_some_and(|at| at.elapsed() < BUILD)
    }

    /// The same, knowing which of them are not here, and whatever is done during an outage. Also why some
    /// of what is missing did not get there, if that may pass.
    pub(crate) async fn find_missing_above(
        self: &Arc<Self>,
        digests: &[Digest],
        not_local: Vec<Digest>,
    ) -> Result<(Vec<Digest>, Option<Error>)> {
        let unknown = self.existence.unknown(digests);
        if unknown.is_empty() {
            return Ok((unknown, None));
        }
        let lacking = self.missing_in_backing(unknown).await?;
        if lacking.is_empty() {
            return Ok((lacking, None));
        }
        let not_local: HashSet<Digest> = not_local.into_iter().collect();
        let local = lacking.iter().filter(|digest| !not_local.contains(digest));
        let pushed = self.push_up(local.copied().collect()).await;
        let (mut there, mut passing) = (HashSet::new(), None);
        for (digest, pushed) in pushed {
            match pushed {
                Ok(()) => drop(there.insert(digest)),
                Err(error) => {
                    tracing::debug!(%digest, %error, "could not push up");
                    passing = passing.or(Some(error).filter(Error::may_pass));
                }
            }
        }
        let missing = lacking.into_iter().filter(|digest| !there.contains(digest));
        Ok((missing.collect(), passing))
    }

    /// Returns the blobs that neither tier has, and those that only the backing cache has. It is not asked
    /// about those that the local tier has, so that these are of use while it is down.
    pub(crate) async fn find_unreadable(
        &self,
        digests: &[Digest],
    ) -> Result<(Vec<Digest>, Vec<Digest>)> {
        let mut not_local = self.local.find_missing(digests).await?;
        // While it may be down, an earlier answer of the backing cache is of no use.
        let unknown = match self.options.on_outage {
            OnOutage::Fail => self.existence.unknown(&not_local),
            OnOutage::Degrade => not_local.clone(),
        };
        let missing = match self.missing_in_backing(unknown).await {
            Err(error) if self.degrades(&error) => return Ok((not_local, Vec::new())),
            missing => missing?,
        };
        let lacking: HashSet<&Digest> = missing.iter().collect();
        not_local.retain(|digest| !lacking.contains(digest));
        Ok((missing, not_local))
    }

    /// Those of `digests` that the backing cache lacks; it is believed that it has the others.
    async fn missing_in_backing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        if digests.is_empty() {
            return Ok(digests);
        }
        let epoch = self.existence.epoch();
        let missing = self.backing.find_missing(&digests).await?;
        let lacking: HashSet<&Digest> = missing.iter().collect();
        let there = digests.iter().filter(|digest| !lacking.contains(digest));
        self.existence.insert(epoch, there);
        Ok(missing)
    }

    /// Puts blobs of the local store into the backing cache. Those that do not get there the client has
    /// to upload, as if they had never been here.
    pub(crate) async fn push_up(
        self: &Arc<Self>,
        digests: Vec<Digest>,
    ) -> Vec<(Digest, Result<()>)> {
        let alike = by_function(digests).into_iter();
        let pushes = alike.flat_map(batches).map(|batch| {
            let tiers = Arc::clone(self);
            async move {
                match batch.as_slice() {
                    [large] if large.size() > CHUNK_SIZE as u64 => {
                        vec![(*large, tiers.push_one(large).await)]
                    }
                    _ => tiers.push_small(batch).await,
                }
            }
        });
        let pushed = stream::iter(pushes).buffer_unordered(AT_ONCE);
        let pushed = pushed.flat_map(stream::iter);
        pushed
            .map(|(digest, pushed)| (digest, pushed.map(drop)))
            .collect()
            .await
    }
}

/// Those that have the same digest function together: a peer may not offer them all.
pub(crate) fn by_function(digests: Vec<Digest>) -> Vec<Vec<Digest>> {
    let mut groups: Vec<Vec<Digest>> = Vec::new();
    for digest in digests {
        let is_alike = |group: &&mut Vec<Digest>| {
            let first = group.first();
            first.is_some_and(|first| first.function() == digest.function())
        };
        match groups.iter_mut().find(is_alike) {
            Some(group) => group.push(digest),
            None => groups.push(vec![digest]),
        }
    }
    groups
}

/// Small blobs together, as many as may be in memory at once; each large one by itself.
pub(crate) fn batches(digests: Vec<Digest>) -> Vec<Vec<Digest>> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for digest in digests {
        if digest.size() > CHUNK_SIZE as u64 {
            batches.push(vec![digest]);
            continue;
        }
        if bytes + digest.size() > BATCH {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += digest.size();
        batch.push(digest);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}
