//! The REAPI services over the stores, and the limits on what clients may ask of them.
//!
//! [`serve`] serves on a bound listener until it is cancelled. `pkg/grpc` carries the calls.

mod action_cache;
mod bytestream;
mod capabilities;
mod cas;
mod compression;
mod digests;
mod execution;
mod extension;
mod inferred;
mod operations;
mod options;
mod routes;
mod services;
mod status;

pub use bytestream::{READ_LOG, read_guest_log};
pub use extension::Extension;
pub use options::{Limits, Memory, Options, Stores};
pub use routes::{Messages, Routes};
pub use services::serve;
