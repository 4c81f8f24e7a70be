//! Observation of a server: calls, their context, and metrics served over HTTP for Prometheus.
//!
//! [`Sources`] gives access to the values, and each request for them reads them anew.

mod call;
mod calls;
pub mod logs;
mod metrics;
mod requests;
mod serve;
pub mod spans;
pub mod traces;

pub use call::{Call, METADATA};
pub use calls::{Calls, OngoingCall};
pub use metrics::{Metrics, PendingWrites, Sources};
pub use serve::{PATH, serve};
