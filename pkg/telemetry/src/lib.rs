//! What can be observed from outside: metrics, for Prometheus to fetch.
//!
//! Nothing is counted here. [`Sources`] says where the values are, and they are read when
//! somebody asks, so that what is measured knows nothing of it.

mod metrics;
mod serve;

pub use metrics::{Metrics, Sources, Waiting};
pub use serve::{PATH, serve};
