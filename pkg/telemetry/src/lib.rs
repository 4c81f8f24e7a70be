//! Metrics, served over HTTP for Prometheus.
//!
//! [`Sources`] gives access to the values, and each request reads them anew. [`Metered`] stores count what passes
//! through them.

mod histogram;
mod metrics;
mod serve;
mod stores;

pub use metrics::{Metrics, PendingWrites, Sources};
pub use serve::{PATH, serve};
pub use stores::{BackingCalls, Counts, Metered};
