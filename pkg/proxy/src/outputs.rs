//! Lookups of the outputs of action results in one store.

use std::{collections::HashSet, sync::Arc};

use gorego_limits::Budget;
use gorego_storage::{BlobStore, Digest, Outputs, Result, find_outputs};
use reapi::v2::ActionResult;

/// Reports whether `blobs` has all outputs of the result. Trees are read within `memory`.
pub(crate) async fn is_complete(
    action: &Digest,
    result: &ActionResult,
    blobs: Arc<dyn BlobStore>,
    memory: &Budget,
) -> Result<bool> {
    let find = async {
        let outputs = Outputs::of(action, result, Arc::clone(&blobs), memory.clone())?;
        find_outputs(outputs, &*blobs).await
    };
    match find.await {
        Err(error) if error.is_miss() => Ok(false),
        found => found.map(|()| true),
    }
}

/// Returns the outputs of the result that `blobs` has, as far as it has their trees, too. They get a lease.
pub(crate) async fn stored_outputs(
    action: &Digest,
    result: &ActionResult,
    blobs: Arc<dyn BlobStore>,
    memory: &Budget,
) -> Result<Vec<Digest>> {
    let mut stored = Vec::new();
    let mut outputs = match Outputs::of(action, result, Arc::clone(&blobs), memory.clone()) {
        Err(error) if error.is_miss() => return Ok(stored),
        outputs => outputs?,
    };
    loop {
        let digests = match outputs.next().await {
            // The other trees may be present.
            Err(error) if error.is_miss() => continue,
            digests => digests?,
        };
        let Some(digests) = digests else { break };
        let missing: HashSet<Digest> = blobs.find_missing(&digests).await?.into_iter().collect();
        let is_stored = |digest: &Digest| !missing.contains(digest);
        stored.extend(digests.into_iter().filter(is_stored));
    }
    stored.sort_unstable();
    stored.dedup();
    Ok(stored)
}
