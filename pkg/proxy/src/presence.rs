//! Presence of blobs in the two tiers. Blobs that only the local tier has are uploaded on a lookup.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_storage::{Blob, BlobStore, Digest, Error, Put, Result};
use gorego_storage_local::LocalStore;

use crate::{backing::BackingBlobs, options::OnOutage, recent::Recent, uploads::Uploads};

/// The longest time for which a client relies on a reported blob: the length of a build.
const BUILD: Duration = Duration::from_hours(3);

/// Lookups of blobs in both tiers.
pub(crate) struct Presence {
    local: Arc<LocalStore>,
    backing: Arc<BackingBlobs>,
    uploads: Arc<Uploads>,
    on_outage: OnOutage,
    /// Not empty while clients may rely on blobs that were reported though only the local tier had them.
    reported: Recent<()>,
}

impl Presence {
    pub(crate) fn new(
        local: Arc<LocalStore>,
        backing: Arc<BackingBlobs>,
        uploads: Arc<Uploads>,
        on_outage: OnOutage,
    ) -> Self {
        Self {
            local,
            backing,
            uploads,
            on_outage,
            reported: Recent::new(BUILD, 1),
        }
    }

    /// Returns the blobs that a client has to upload: those that the backing cache lacks, after the upload of
    /// those that the local tier has. In an outage, the blobs of the local tier count as present.
    pub(crate) async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let not_local = self.local.find_missing(digests).await?;
        match self.upload_lacking(digests, not_local.clone()).await {
            Err(error) if self.on_outage.degrades(&error) => {
                self.reported.insert(());
                Ok(not_local)
            }
            found => found.map(|(missing, _)| missing),
        }
    }

    /// Returns the blobs that neither tier has, without uploads.
    pub(crate) async fn find_missing_read_only(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let not_local = self.local.find_missing(digests).await?;
        let unknown = self.backing.unknown(&not_local);
        match self.backing.find_missing(&unknown).await {
            Err(error) if self.on_outage.degrades(&error) => Ok(not_local),
            missing => missing,
        }
    }

    /// Whether clients may rely on blobs that only the local tier had when they were reported.
    pub(crate) fn has_reported(&self) -> bool {
        self.reported.contains(&())
    }

    /// Uploads the blobs that the backing cache lacks, except for `not_local`. Returns those that it lacks
    /// after that, and the error of an upload that may succeed later.
    async fn upload_lacking(
        &self,
        digests: &[Digest],
        not_local: Vec<Digest>,
    ) -> Result<(Vec<Digest>, Option<Error>)> {
        let mut lacking = self
            .backing
            .find_missing(&self.backing.unknown(digests))
            .await?;
        let not_local: HashSet<Digest> = not_local.into_iter().collect();
        let local = lacking.iter().filter(|digest| !not_local.contains(digest));
        let (mut uploaded, mut temporary) = (HashSet::new(), None);
        for (digest, put) in self.uploads.upload_all(local.copied().collect()).await {
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

    /// Returns the blobs that neither tier has, and those that only the backing cache has. The backing cache is
    /// not asked about blobs of the local tier, which are served while it is down.
    pub(crate) async fn find_unreadable(
        &self,
        digests: &[Digest],
    ) -> Result<(Vec<Digest>, Vec<Digest>)> {
        let mut not_local = self.local.find_missing(digests).await?;
        // An earlier answer does not help while the backing cache may be down.
        let unknown = match self.on_outage {
            OnOutage::Fail => self.backing.unknown(&not_local),
            OnOutage::Degrade => not_local.clone(),
        };
        let missing = match self.backing.find_missing(&unknown).await {
            Err(error) if self.on_outage.degrades(&error) => return Ok((not_local, Vec::new())),
            missing => missing?,
        };
        let lacking: HashSet<&Digest> = missing.iter().collect();
        not_local.retain(|digest| !lacking.contains(digest));
        Ok((missing, not_local))
    }
}

/// A store for the outputs of a result on its way to the backing cache: a lookup uploads them.
pub(crate) struct UploadingBlobs(pub(crate) Arc<Presence>);

#[async_trait]
impl BlobStore for UploadingBlobs {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let not_local = self.0.local.find_missing(digests).await?;
        let (missing, temporary) = self.0.upload_lacking(digests, not_local).await?;
        temporary.map_or(Ok(missing), Err)
    }

    /// Returns errors of an outage as such, not as misses.
    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let local = match self.0.local.get(digest, offset).await {
            Ok(blob) => return Ok(blob),
            Err(error) => error,
        };
        match self.0.backing.store.get(digest, offset).await {
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

impl fmt::Debug for UploadingBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UploadingBlobs")
            .field(&self.0.local)
            .finish()
    }
}
