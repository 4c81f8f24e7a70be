//! The services over TCP, against clients of every kind.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod action_cache;
mod byte_stream_compressed;
mod byte_stream_read;
mod byte_stream_resume;
mod byte_stream_write;
mod capabilities;
mod cas_batches;
mod cas_missing;
mod cas_tree;
mod common;
mod dripping;
mod execution;
mod malformed;
mod misconfigured;
mod panics;
mod remote;
mod rude;
mod shutdown;
mod slow_backing;
mod stalls;
mod tls;
mod unavailable;
mod unfolding;
mod unnamed;
