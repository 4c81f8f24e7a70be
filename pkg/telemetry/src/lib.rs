//! Observation of a server: calls, their context, and metrics and a page served over HTTP.
//!
//! [`Sources`] gives access to the values, and each request for them reads them anew. [`Metered`] stores count
//! what passes through them.

pub mod builds;
mod call;
mod calls;
mod durations;
mod execution;
pub mod logs;
mod metrics;
mod requests;
pub mod spans;
mod stores;
pub mod traces;
mod user_info;
pub mod web;

pub use call::{Call, METADATA};
pub use calls::{Calls, OngoingCall};
pub use execution::{ActionOutcome, AttemptCounts, MeteredWorker};
pub use metrics::{
    ClusterReport, Execution, ExecutionReport, Metrics, PendingWrites, Sources, StartTimes,
};
pub use stores::{BackingCalls, Counts, Metered};
