//! The REAPI services over the stores: what a client may ask, and how much of it.
//!
//! [`serve`] answers on a bound listener until it is told to stop. `pkg/grpc` carries the calls.

mod action_cache;
mod bytestream;
mod capabilities;
mod cas;
mod compression;
mod digests;
mod inferred;
mod memory;
mod options;
mod services;
mod status;

pub use memory::Memory;
pub use options::{Limits, Options, Services};
pub use services::serve;
