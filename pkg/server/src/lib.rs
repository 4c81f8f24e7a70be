//! The gRPC services over the stores: what a client may ask, how much of it, and for how long.
//!
//! [`serve`] answers on a bound listener until it is told to stop. Every method runs on the small
//! gRPC layer in [`grpc`], which bounds messages, memory and time in one place each.

mod action_cache;
mod bytestream;
mod capabilities;
mod cas;
mod compression;
mod connection;
mod deadline;
mod digests;
mod error;
mod greeting;
mod grpc;
mod health;
mod idle;
mod inferred;
mod io;
mod memory;
mod options;
mod reflection;
mod requests;
mod router;
mod serve;
mod status;
mod watchdog;
mod windows;

pub use error::Error;
pub use memory::Memory;
pub use options::{Limits, Options, Services};
pub use serve::serve;
