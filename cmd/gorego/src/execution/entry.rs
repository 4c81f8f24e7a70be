//! The executor of an entry point: a node of a cluster whose actions run on other nodes.

use std::sync::Arc;

use gorego_config::Config;
use gorego_execution::{Executor, PeerPlatforms};
use gorego_scheduler::Generation;
use tokio_util::task::TaskTracker;

use super::{DRAIN, Error, LocalExecutor, is_worker, options};
use crate::tiers::ExecutorStores;

impl LocalExecutor {
    /// Creates the executor of an entry point. Returns the reason why the node is one, as a line for the banner. Fails
    /// if the node is a worker.
    pub(super) fn entry(
        config: &Config,
        stores: ExecutorStores,
        metered: bool,
        (generation, platforms): (Generation, PeerPlatforms),
        why: String,
    ) -> Result<(Self, String), Error> {
        if is_worker(config) {
            return Err(Error::IdleWorker(why));
        }
        let mut options = options(config);
        options.peer_platforms = Some(platforms);
        let (blobs, lookups) = (stores.worker.blobs, stores.lookups);
        let memory = Arc::default();
        let executor = Executor::new(options, blobs, lookups, generation, None, memory);
        let executor = Self {
            executor: Arc::new(executor),
            worker: None,
            tasks: TaskTracker::new(),
            attempts: metered.then(Arc::default),
            level: None,
            drain: config.limits.drain_timeout.mul_f64(DRAIN),
            limits: Vec::new(),
        };
        let how = format!("executing actions on other nodes only: {why}");
        Ok((executor, how))
    }
}
