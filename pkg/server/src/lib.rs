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
mod grpc;
mod health;
mod idle;
mod io;
mod options;
mod reflection;
mod router;
mod seldom;
mod serve;
mod shared;
mod status;
mod tls;
mod watchdog;
mod wire;

pub use error::Error;
pub use options::{Limits, Options, Services};
pub use serve::serve;
pub use tls::{ClientAuth, Tls};
