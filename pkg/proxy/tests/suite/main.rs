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
mod outage;
mod outbox;
mod prefetch;
mod pushing;
mod read_only;
mod reading;
mod replay;
mod replay_damage;
mod replay_order;
mod replay_refused;
mod trees;
mod unkept;
mod writing;
