//! Observation of a server: calls, their context, and metrics served over HTTP for Prometheus.
//!
//! [`Sources`] gives access to the values, and each request for them reads them anew.

pub mod builds;
mod call;
mod calls;
mod metrics;
mod requests;
mod serve;

pub use call::{Call, METADATA};
pub use calls::{Calls, OngoingCall};
pub use metrics::{Metrics, PendingWrites, Sources};
pub use serve::{PATH, serve};
