//! Observation of a server: calls, their context, and metrics and a page served over HTTP.
//!
//! [`Sources`] gives access to the values, and each request for them reads them anew.

mod call;
mod calls;
mod metrics;
mod requests;
pub mod web;

pub use call::{Call, METADATA};
pub use calls::{Calls, OngoingCall};
pub use metrics::{Metrics, PendingWrites, Sources};
