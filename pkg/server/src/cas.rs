//! `ContentAddressableStorage`: missing blobs, batches of small blobs, and directory trees.

mod batch_read;
mod batch_update;
mod missing;
pub(crate) mod tree;

use bytes::Bytes;
use gorego_limits::Permit;
use gorego_storage::{Digest, Error, Result as StoreResult};
use tonic::Status;

use crate::{services::Reapi, status::invalid_field};

impl Reapi {
    /// Reads several blobs for a response that has `more` other bytes. Reserves memory for the found blobs only after
    /// they were fetched.
    pub(crate) async fn read_batch(
        &self,
        digests: &[Digest],
        more: u64,
    ) -> Result<(Vec<StoreResult<Bytes>>, Permit), Status> {
        if digests.is_empty() {
            return Ok((Vec::new(), self.reserve_response(more).await?));
        }
        let blobs = &self.stores.blobs;
        let fetched = blobs.fetch_batch(digests).await;
        let found: Vec<Digest> = fetched.iter().flatten().copied().collect();
        let sizes = found.iter().map(Digest::size);
        let bytes = sizes.fold(more, u64::saturating_add);
        let permit = self.reserve_response(bytes).await?;
        let read = match found.as_slice() {
            [] => Vec::new(),
            found => blobs.get_batch(found).await,
        };
        let mut read = read.into_iter();
        let contents = fetched.into_iter().map(|fetched| {
            fetched.and_then(|digest| read.next().unwrap_or(Err(Error::NotFound(digest))))
        });
        Ok((contents.collect(), permit))
    }

    /// Refuses a batch with more than the advertised bytes of blobs.
    fn check_batch(&self, field: &str, sizes: impl Iterator<Item = u64>) -> Result<(), Status> {
        let max = self.options.limits.max_batch_bytes;
        let bytes = sizes.fold(0, u64::saturating_add);
        if bytes <= max {
            return Ok(());
        }
        let why = format!("{bytes} bytes of blobs, a batch takes at most {max}");
        Err(invalid_field(field, why))
    }
}
