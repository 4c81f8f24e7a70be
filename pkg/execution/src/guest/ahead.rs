//! The inputs of actions that another node may grant to this one.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use gorego_limits::Call;
use gorego_storage::{Digest, Error, InstanceName};
use reapi::gorego::cluster::Prefetch;

use super::{GuestAction, wire::read_digest};
use crate::{Executor, Failure};

/// The inputs fetched at once.
const BATCH: usize = 32;

impl Executor {
    /// Stores the action that the node `entry` names, its command and its inputs in the local tier, without reserving
    /// room for them. Inputs that this node does not accept are not fetched.
    pub async fn fetch_ahead(&self, entry: &str, prefetch: &Prefetch) -> Result<(), Failure> {
        let action = read_digest(&prefetch.function, &prefetch.hash, prefetch.size);
        let action = action.map_err(Failure::Internal)?;
        let guest = GuestAction {
            entry: entry.into(),
            instance: InstanceName::default(),
            action,
            timeout: Duration::ZERO,
            queued: SystemTime::now(),
            inline_stdout: false,
            inline_stderr: false,
            inline_output_files: Vec::new(),
            metadata: None,
        };
        let call = Call::current().near_to(Arc::clone(&guest.entry));
        call.scope(self.fetch_inputs(guest)).await
    }

    async fn fetch_inputs(&self, guest: GuestAction) -> Result<(), Failure> {
        let job = self.read_guest(guest).await?;
        let (_, blobs, _) = self.parts();
        for batch in job.inputs.all_blobs().await.chunks(BATCH) {
            let fetched = blobs.fetch_batch(batch).await.into_iter();
            let fetched: Result<Vec<Digest>, Error> = fetched.collect();
            fetched.map_err(Failure::from_store)?;
        }
        Ok(())
    }
}
