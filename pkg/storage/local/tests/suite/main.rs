//! Tests of the local store through its public interface.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod common;
mod conformance;
mod eviction;
mod faults;
mod files;
mod foreign;
mod links;
mod outputs;
mod peek;
mod pins;
mod report;
mod restart;
mod twins;
