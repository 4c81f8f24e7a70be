//! A proxy and its two tiers, against a backing cache in memory.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod actions;
mod common;
mod conformance;
mod drain;
mod drain_damage;
mod drain_order;
mod drain_refused;
mod links;
mod outage;
mod outbox;
mod prefetch;
mod read_only;
mod reading;
mod trees;
mod unwritten;
mod uploads;
mod writing;
