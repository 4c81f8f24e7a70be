//! The work of this node for actions of others, and for its own actions that others ran.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_cluster::{record::Record, runner::Work};
use gorego_execution::{
    Executor, GuestAction, Job, Publisher, accepts, decode_report, encode_report, failed_attempt,
    properties,
};
use gorego_scheduler::{ActionKey, AttemptId, Generation, Grant, Report};
use gorego_storage::BlobStore;
use gorego_telemetry::{Call, StartTimes, builds::Misses, traces::handed_over};
use prost::Message as _;
use reapi::{
    gorego::{
        ResourceUsage,
        cluster::{self as proto, Done},
    },
    v2::{ExecuteResponse, RequestMetadata},
};
use tokio::runtime::Handle;

use super::record::ANY;
use crate::tiers::Tiers;

/// The executor of this node, for its cluster.
pub(super) struct NodeWork {
    executor: Arc<Executor>,
    /// All tiers.
    blobs: Arc<dyn BlobStore>,
    /// The tier from which other nodes read.
    local: Arc<dyn BlobStore>,
    publisher: Publisher,
    /// The misses of this node's actions, if builds are recorded.
    misses: Option<Arc<Misses>>,
    runtime: Handle,
    starts: Arc<StartTimes>,
}

impl NodeWork {
    /// Creates the work of a node, for the current runtime.
    pub(super) fn new(executor: &Arc<Executor>, tiers: &Tiers, starts: Arc<StartTimes>) -> Self {
        let stores = tiers.executor.as_ref().map(|stores| &stores.worker);
        let (blobs, results) = stores.map_or_else(
            || {
                (
                    Arc::clone(&tiers.stores.blobs),
                    Arc::clone(&tiers.stores.actions),
                )
            },
            |stores| (Arc::clone(&stores.blobs), Arc::clone(&stores.results)),
        );
        let local = tiers.local.clone().map(|local| local as Arc<dyn BlobStore>);
        Self {
            executor: Arc::clone(executor),
            local: local.unwrap_or_else(|| Arc::clone(&blobs)),
            publisher: Publisher::new(Arc::clone(&blobs), results),
            misses: tiers
                .executor
                .as_ref()
                .and_then(|stores| stores.misses.clone()),
            blobs,
            runtime: Handle::current(),
            starts,
        }
    }
}

impl fmt::Debug for NodeWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeWork").finish_non_exhaustive()
    }
}

/// Returns whether a node has every property of a platform.
pub(super) fn fits(node: &Record, platform: &str) -> bool {
    properties(platform).all(|(name, value)| {
        // Without a name, it is no property: the action runs at its entry node only.
        if !name.is_empty() && node.offers(ANY, ANY) {
            return true;
        }
        let mut offered = node.values(name);
        offered.any(|offered| accepts(name, offered, value))
    })
}

#[async_trait]
impl Work<Job, ExecuteResponse> for NodeWork {
    fn runtime(&self) -> Handle {
        self.runtime.clone()
    }

    fn fits(&self, node: &Record, platform: &str) -> bool {
        fits(node, platform)
    }

    fn describe(&self, grant: &Grant<Job>) -> proto::Grant {
        let (metadata, traceparent) = grant.job.origin.run(|| {
            let call = Call::current();
            let sent = call.as_ref().and_then(|call| call.metadata().cloned());
            (sent.unwrap_or_default(), handed_over::traceparent())
        });
        let metadata = RequestMetadata {
            target_id: grant.target.to_string(),
            action_mnemonic: grant.mnemonic.to_string(),
            ..metadata
        };
        let waited = u64::try_from(grant.waited.as_millis());
        proto::Grant {
            memory: grant.memory,
            alone: grant.alone,
            run: grant.run.into(),
            metadata: metadata.encode_to_vec().into(),
            traceparent,
            waited_ms: waited.unwrap_or(u64::MAX),
            ..grant.job.to_grant()
        }
    }

    async fn prepare(
        &self,
        entry: &Generation,
        grant: &proto::Grant,
    ) -> Result<Grant<Job>, Report<ExecuteResponse>> {
        let guest = GuestAction::from_grant(entry.node(), grant);
        let guest = guest.map_err(|why| {
            let why = format!("a grant of node {} is malformed: {why}", entry.node());
            failed_attempt(gorego_execution::Failure::Internal(why))
        })?;
        let metadata = guest.metadata.clone().unwrap_or_default();
        let (instance, action) = (guest.instance.clone(), guest.action);
        let prepared = self.executor.guest(guest);
        let job = handed_over::prepare(&metadata, &grant.traceparent, prepared).await;
        let job = job.map_err(failed_attempt)?;
        if let Some(attempt) = &grant.attempt {
            let attempt = AttemptId::new(attempt.execution, attempt.number);
            self.executor.show_guest(entry, attempt, &job);
        }
        Ok(Grant {
            // The slot's own attempt replaces it.
            attempt: AttemptId::new(0, 0),
            key: ActionKey { instance, action },
            job,
            target: metadata.target_id.into(),
            mnemonic: metadata.action_mnemonic.into(),
            memory: grant.memory,
            alone: grant.alone,
            run: u16::try_from(grant.run).unwrap_or(u16::MAX),
            waited: Duration::from_millis(grant.waited_ms),
        })
    }

    async fn fetch_ahead(&self, entry: &Generation, prefetch: &proto::Prefetch) {
        if let Err(why) = self.executor.fetch_ahead(entry.node(), prefetch).await {
            tracing::debug!(node = %entry, %why, "the inputs of an action are not fetched ahead");
        }
    }

    async fn measure(&self, jobs: &[Arc<Job>]) -> Vec<Option<ResourceUsage>> {
        self.executor.measure(jobs).await
    }

    fn record_usage(&self, job: &Job, attempt: AttemptId, usage: Option<ResourceUsage>) {
        self.executor.record_usage(job, attempt, usage);
    }

    fn starts(&self, since: Duration) {
        self.starts.observe(since);
    }

    async fn encode(&self, report: Report<ExecuteResponse>) -> Done {
        encode_report(report, &*self.local).await
    }

    async fn decode(
        &self,
        node: &Generation,
        key: &ActionKey,
        job: &Job,
        done: Done,
    ) -> Report<ExecuteResponse> {
        let call = gorego_limits::Call::current().near_to(node.node().into());
        let report = call.scope(decode_report(done, &*self.blobs)).await;
        let published = Box::pin(async {
            let report = self.publisher.report(job, report, node.node()).await;
            if let Report::Done(outcome) = &report {
                self.executor.record_memory(job, &outcome.value);
            }
            report
        });
        match &self.misses {
            Some(misses) => misses.explain_foreign(key, published).await,
            None => published.await,
        }
    }

    async fn adopt(&self, job: &Job, done: Done) {
        let Report::Done(outcome) = decode_report(done, &*self.local).await else {
            return;
        };
        let node = self.executor.generation().node();
        if let Err(why) = self.publisher.publish(job, outcome.value, node).await {
            let action = job.key.action;
            tracing::debug!(%action, %why, "the result of an action without an owner is not stored");
        }
    }
}
