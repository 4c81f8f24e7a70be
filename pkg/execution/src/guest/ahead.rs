//! The inputs of actions that another node may grant to this one.

use std::sync::Arc;

use gorego_limits::Call;
use gorego_storage::{Digest, Error};
use reapi::gorego::cluster::Prefetch;

use super::wire::read_digest;
use crate::{Executor, Failure, admit::admit_again};

/// The inputs fetched at once.
const BATCH: usize = 32;

impl Executor {
    /// Stores the action that the node `entry` names, its command and its inputs in the local tier, without reserving
    /// room for them. Inputs that this node does not accept are not fetched.
    pub async fn fetch_ahead(&self, entry: &str, prefetch: &Prefetch) -> Result<(), Failure> {
        let action = read_digest(&prefetch.function, &prefetch.hash, prefetch.size);
        let action = action.map_err(Failure::Internal)?;
        let call = Call::current().near_to(Arc::from(entry));
        call.scope(self.fetch_inputs(&action)).await
    }

    async fn fetch_inputs(&self, action: &Digest) -> Result<(), Failure> {
        let (options, blobs, resident) = self.parts();
        let job = admit_again(options, blobs, resident, action, None).await?;
        for batch in job.inputs.blobs().chunks(BATCH) {
            let fetched = blobs.fetch_batch(batch).await.into_iter();
            let fetched: Result<Vec<Digest>, Error> = fetched.collect();
            fetched.map_err(Failure::from_store)?;
        }
        Ok(())
    }
}
