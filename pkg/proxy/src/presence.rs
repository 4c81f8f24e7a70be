//! Presence of blobs in the two tiers. Blobs that only the local tier has are uploaded on a lookup.

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use gorego_storage::{Blob, BlobStore, Digest, Error, Put, Result, span::Tier};

use crate::uploads::Uploads;

/// The blobs that the local tier lacks, and those of them that the backing cache lacks, too.
#[derive(Debug, Default)]
pub(crate) struct FoundBlobs {
    pub(crate) not_local: Vec<Digest>,
    pub(crate) missing: Vec<Digest>,
}

impl Uploads {
    /// Returns the blobs that a client has to upload: those that the backing cache lacks, after the upload of
    /// those that the local tier has. In an outage, and with a read-only backing cache, the blobs of the local tier
    /// count as present.
    pub(crate) async fn find_missing(self: &Arc<Self>, digests: &[Digest]) -> Result<Vec<Digest>> {
        let not_local = self.tiers.local.find_missing(digests);
        let not_local = Tier::Local
            .traced("find_missing", digests, not_local)
            .await?;
        let missing = if self.tiers.options.read_only {
            self.tiers.backing.find_missing(&not_local).await
        } else {
            let lacking = self.upload_lacking(digests, not_local.clone()).await;
            lacking.map(|(missing, _)| missing)
        };
        match missing {
            Err(error) if self.tiers.degrades(&error) => {
                self.reported.insert(());
                Ok(not_local)
            }
            missing => missing,
        }
    }

    /// Uploads the blobs that the backing cache lacks and the local tier has. Returns the blobs that the backing cache
    /// still lacks, and the error of an upload that may succeed later.
    async fn upload_lacking(
        self: &Arc<Self>,
        digests: &[Digest],
        not_local: Vec<Digest>,
    ) -> Result<(Vec<Digest>, Option<Error>)> {
        let mut lacking = self.tiers.backing.find_missing(digests).await?;
        let not_local: HashSet<Digest> = not_local.into_iter().collect();
        let local = lacking.iter().filter(|digest| !not_local.contains(digest));
        let (mut uploaded, mut temporary) = (HashSet::new(), None);
        for (digest, put) in self.upload_all(local.copied().collect()).await {
            match put {
                Ok(_) => drop(uploaded.insert(digest)),
                Err(error) => {
                    tracing::debug!(%digest, %error, "failed to upload a blob of the local tier");
                    temporary = temporary.or(Some(error).filter(Error::may_pass));
                }
            }
        }
        lacking.retain(|digest| !uploaded.contains(digest));
        Ok((lacking, temporary))
    }

    /// Returns the blobs that only the backing cache has; fails if neither tier has one of `digests`.
    pub(crate) async fn find_remote(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let found = self.find_in_tiers(digests).await?;
        match found.missing.first() {
            Some(missing) => Err(Error::NotFound(*missing)),
            None => Ok(found.not_local),
        }
    }

    /// Looks blobs up in the local tier, and those that it lacks in the backing cache. Hits of the local tier survive an
    /// outage.
    pub(crate) async fn find_in_tiers(&self, digests: &[Digest]) -> Result<FoundBlobs> {
        let not_local = self.tiers.local.find_missing(digests);
        let not_local = Tier::Local
            .traced("find_missing", digests, not_local)
            .await?;
        let Some(first) = not_local.first() else {
            return Ok(FoundBlobs::default());
        };
        let backing = &self.tiers.backing;
        let missing = if self.tiers.may_degrade() {
            // An earlier answer does not help while the backing cache may be down.
            backing.find_missing_now(&not_local).await
        } else {
            backing.find_missing(&not_local).await
        };
        let missing =
            missing.map_err(|error| self.tiers.miss_or(Error::NotFound(*first), error))?;
        Ok(FoundBlobs { not_local, missing })
    }
}

/// A store for the outputs of a result on its way to the backing cache: a lookup uploads them.
#[derive(Debug)]
pub(crate) struct UploadingBlobs(pub(crate) Arc<Uploads>);

#[async_trait]
impl BlobStore for UploadingBlobs {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let not_local = self.0.tiers.local.find_missing(digests).await?;
        let (missing, temporary) = self.0.upload_lacking(digests, not_local).await?;
        temporary.map_or(Ok(missing), Err)
    }

    /// Returns errors of an outage as such, not as misses.
    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let local = match self.0.tiers.local.get(digest, offset).await {
            Ok(blob) => return Ok(blob),
            Err(error) => error,
        };
        match self.0.tiers.backing.store.get(digest, offset).await {
            Err(Error::NotFound(_)) if local.may_pass() => Err(local),
            found => found,
        }
    }

    async fn put(&self, digest: &Digest, _: Blob) -> Result<Put> {
        Err(Error::Unavailable(format!(
            "upload of {digest} without a client"
        )))
    }
}
