//! Logs, and metrics served over HTTP for Prometheus.
//!
//! This crate counts nothing: [`Sources`] gives access to the values, and each request reads them anew.

pub mod logs;
mod metrics;
mod serve;
pub mod spans;
pub mod traces;

pub use metrics::{Metrics, PendingWrites, Sources};
pub use serve::{PATH, serve};
