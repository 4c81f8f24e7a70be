//! The leases of the inputs of queued actions.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use gorego_scheduler::Runner;
use gorego_storage::BlobStore;
use reapi::v2::ExecuteResponse;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::Job;

/// The renewals within the time of a lease.
const RENEWALS: u32 = 3;
/// The actions whose inputs are renewed at once: some may wait for a backing cache.
const AT_ONCE: usize = 8;
/// The blobs renewed in one call to the store.
const BATCH: usize = 10_000;

/// Renews the leases of the inputs of all actions that have not ended, until `stop` is cancelled. Inputs that are
/// missing nevertheless are reported when their action runs.
pub(crate) async fn renew(
    runner: Runner<Job, ExecuteResponse>,
    blobs: Arc<dyn BlobStore>,
    lease: Duration,
    stop: CancellationToken,
) {
    if lease.is_zero() {
        return;
    }
    let renew = async {
        loop {
            sleep(lease / RENEWALS).await;
            let jobs = stream::iter(runner.jobs());
            jobs.for_each_concurrent(AT_ONCE, |job| renew_inputs(job, &*blobs))
                .await;
        }
    };
    stop.run_until_cancelled(renew).await;
}

async fn renew_inputs(job: Arc<Job>, blobs: &dyn BlobStore) {
    for batch in job.inputs.all_blobs().await.chunks(BATCH) {
        if let Err(error) = blobs.find_missing(batch).await {
            let action = job.key.action;
            debug!(%action, %error, "the leases of inputs were not renewed");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use async_trait::async_trait;
    use gorego_scheduler::{ActionKey, OperationId, Request};
    use gorego_storage::{Blob, Digest, DigestFunction, InstanceName, MemoryStore, Put, Result};
    use reapi::v2::{Command, Directory, FileNode};

    use super::*;
    use crate::{Inputs, Origin, PackedCommand};

    /// A store that counts the renewals of each blob.
    #[derive(Debug, Default)]
    struct CountingStore {
        inner: MemoryStore,
        renewals: AtomicUsize,
    }

    #[async_trait]
    impl BlobStore for CountingStore {
        async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
            self.renewals.fetch_add(digests.len(), Relaxed);
            self.inner.find_missing(digests).await
        }

        async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
            self.inner.get(digest, offset).await
        }

        async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
            self.inner.put(digest, blob).await
        }
    }

    fn request(blobs: &[Digest]) -> Request<Job> {
        let digest = DigestFunction::Sha256.digest(b"action");
        let files = blobs.iter().map(|blob| FileNode {
            digest: Some(blob.to_proto()),
            ..FileNode::default()
        });
        let root = Directory {
            files: files.collect(),
            ..Directory::default()
        };
        let inputs = Inputs {
            root: digest,
            directories: [Arc::new((digest, root))].into_iter().collect(),
            entries: 0,
            bytes: 0,
        };
        let key = Arc::new(ActionKey {
            instance: InstanceName::default(),
            action: digest,
        });
        let job = Job {
            key: Arc::clone(&key),
            command: PackedCommand::from(&Command::default()),
            inputs: Arc::new(inputs),
            timeout: Duration::ZERO,
            do_not_cache: false,
            inline_stdout: false,
            inline_stderr: false,
            inline_output_files: Vec::new(),
            queued: std::time::SystemTime::now(),
            entry: None,
            platform: "".into(),
            origin: Origin::current(),
            network: crate::Network::Usual,
            persistent: None,
            kind: gorego_scheduler::Kind::new("", "", ""),
            live: crate::Live::default(),
            counted: crate::Counted::default(),
        };
        Request {
            key,
            do_not_cache: false,
            build: String::new(),
            priority: 0,
            platform: "".into(),
            memory: 0,
            target: String::new(),
            mnemonic: String::new(),
            job: Arc::new(job),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_inputs_of_a_queued_action_are_renewed_within_each_lease() {
        let store = Arc::<CountingStore>::default();
        let runner = Runner::new(crate::testing::options().scheduler);
        let blobs = [1, 2].map(|number| DigestFunction::Sha256.digest(&[number]));
        let id = OperationId(1);
        let _watch = runner.submit(id, &request(&blobs)).unwrap();
        let stop = CancellationToken::new();
        let lease = Duration::from_secs(30);
        let renewal = renew(runner.clone(), Arc::clone(&store) as _, lease, stop.clone());
        let checks = async {
            sleep(lease * 9 / 10).await;
            assert_eq!(store.renewals.load(Relaxed), 2 * blobs.len());
            sleep(lease).await;
            let renewed = store.renewals.load(Relaxed);
            assert_eq!(renewed, 5 * blobs.len());
            assert!(runner.cancel(id));
            sleep(lease).await;
            assert_eq!(store.renewals.load(Relaxed), renewed);
            stop.cancel();
        };
        tokio::join!(renewal, checks);
    }
}
