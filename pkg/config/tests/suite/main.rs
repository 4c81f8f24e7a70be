//! The configuration as users write and read it.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

mod documents;
mod problems;
mod rendering;
mod sources;
mod specification;
mod support;
