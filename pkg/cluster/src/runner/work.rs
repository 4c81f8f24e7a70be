//! The work of a node for actions of others, and for its own actions that others ran.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use gorego_scheduler::{ActionKey, AttemptId, Generation, Grant, Report};
use reapi::gorego::{
    ResourceUsage,
    cluster::{self as proto, Done},
};
use tokio::runtime::Handle;

use crate::record::Record;

/// The executor of a node as the cluster uses it: it converts jobs `J` and outcomes `O` to frames and back.
#[async_trait]
pub trait Work<J, O>: Send + Sync + 'static {
    /// Returns the runtime for this work. By default, it is the one that the [`Cluster`](super::Cluster) starts in.
    fn runtime(&self) -> Handle {
        Handle::current()
    }

    /// Returns whether a node meets the requirements of [`Request::platform`](gorego_scheduler::Request::platform), which
    /// depends on nothing but [`Record::platform`].
    fn fits(&self, node: &Record, platform: &str) -> bool;

    /// Describes an attempt to the node that got it. The claim and the attempt are set by the caller.
    fn describe(&self, grant: &Grant<J>) -> proto::Grant;

    /// Prepares an action of another node to run at this node. Returns a report if the action cannot run.
    async fn prepare(
        &self,
        entry: &Generation,
        grant: &proto::Grant,
    ) -> Result<Grant<J>, Report<O>>;

    /// Stores the inputs of an action of another node in the local tier, before the action is granted to this node. Its
    /// errors concern nobody. By default, it does nothing.
    async fn fetch_ahead(&self, _entry: &Generation, _prefetch: &proto::Prefetch) {}

    /// Returns the resources that the commands of these actions of other nodes use; `None` for those that do not run.
    async fn measure(&self, jobs: &[Arc<J>]) -> Vec<Option<ResourceUsage>>;

    /// Records the resources that the command of an attempt at another node uses; `None` if it does not run.
    fn record_usage(&self, job: &J, attempt: AttemptId, usage: Option<ResourceUsage>);

    /// Records that an action of another node starts in a slot that was claimed `since` ago.
    fn starts(&self, since: Duration);

    /// Encodes the end of an attempt for the node that owns it.
    async fn encode(&self, report: Report<O>) -> Done;

    /// Decodes the end of an attempt at `node`. Stores its result, if it may be stored.
    async fn decode(&self, node: &Generation, key: &ActionKey, job: &J, done: Done) -> Report<O>;

    /// Stores the result of an action that ran at this node and whose owner is gone, if it may be stored.
    async fn adopt(&self, job: &J, done: Done);
}
