//! The harness of tests that cross a process boundary: starts and kills real servers, runs real build
//! clients in a separate root directory, and has a REAPI client for control over each message.
//!
//! It knows the server only as a program with arguments and an address. Its helpers panic instead of
//! returning errors, since every error is a failed test.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test support: the message of the panic is the test's report"
)]

pub mod backing;
pub mod bazel;
pub mod binary;
pub mod browser;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod content;
pub mod dns;
pub mod executor;
pub mod install;
pub mod link;
pub mod lock;
pub mod metrics;
pub mod package;
pub mod peer;
mod port;
pub mod process;
pub mod project;
pub mod readme;
pub mod root;
pub mod sandbox;
pub mod selfhost;
pub mod server;
pub mod shell;
pub mod terminal;
pub mod toxiproxy;
pub mod tree;
pub mod web;
pub mod workspace;
