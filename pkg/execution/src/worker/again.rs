//! The second run of an action, for verification.

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::SystemTime,
};

use gorego_scheduler::Kind;
use gorego_storage::Digest;
use reapi::v2::ActionResult;
use tokio_util::sync::CancellationToken;

use super::{NodeWorker, run::Run};
use crate::{
    abort::Abort, admit::admit_again, counts::VerificationCounts, inputs::Resident,
    verify::HashOnly,
};

impl NodeWorker {
    /// The verifications of this worker's actions.
    pub const fn verifications(&self) -> &VerificationCounts {
        &self.verifications
    }

    /// Reads an action and runs it once more, on a fresh tree. Returns its result, none of whose blobs is stored. Returns
    /// `None` if the action altered its inputs, or was killed because it exceeded its time, memory or disk space.
    pub(crate) async fn run_again(
        &self,
        action: &Digest,
        kind: &Kind,
        resident: &Arc<Resident>,
        stop: &CancellationToken,
    ) -> Result<Option<ActionResult>, Abort> {
        let blobs = &*self.stores.blobs;
        let read = admit_again(&self.options, blobs, resident, action, Some(kind.clone()));
        let job = &stop
            .run_until_cancelled(read)
            .await
            .ok_or(Abort::Stopped)??;
        let run = Run {
            worker: self,
            job,
            next: AtomicU32::default(),
            start: SystemTime::now(),
            alone: false,
            stop,
            begin: &|_| {},
        };
        let copies = self.altering.lock().contains(&job.key.action);
        let _pins = run.fetch().await?;
        let user = self.users.take()?.map(Arc::new);
        let staged = run.stage(copies, None, user).await?;
        let ended = run.launch(&staged).await;
        let is_altered = run.altered(&staged).await?;
        let ended = ended?;
        if is_altered || ended.timed_out || ended.excess.is_some() {
            return Ok(None);
        }
        let hashing = Arc::new(HashOnly(Arc::clone(&self.stores.links)));
        let finished = run.collect(staged, ended, hashing).await?;
        Ok(finished.response(job, false).result)
    }
}
