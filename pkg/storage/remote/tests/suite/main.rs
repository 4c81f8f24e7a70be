//! The tests of the store behind another server, against peers that misbehave on request.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod batches;
mod calls;
mod connections;
mod downloads;
mod limits;
mod outages;
mod pages;
mod peer;
mod uploads;
mod wire;
mod zstd;
