//! Observation of a server: calls, their context, and metrics served over HTTP for Prometheus.
//!
//! [`Sources`] gives access to the values, and each request for them reads them anew. [`Metered`] stores count
//! what passes through them.

mod call;
mod calls;
mod metrics;
mod requests;
mod serve;
mod stores;

pub use call::{Call, METADATA};
pub use calls::{Calls, OngoingCall};
pub use metrics::{Allocation, Metrics, PendingWrites, Sources};
pub use serve::{PATH, serve};
pub use stores::{BackingCalls, Counts, Metered};
