//! A store behind another server that speaks the REAPI.

mod answers;
mod batches;
mod body;
mod bounded;
mod breaker;
mod canary;
mod capabilities;
mod compression;
mod connect;
mod download;
mod failure;
mod foreign;
mod gate;
mod missing;
mod options;
mod packing;
mod peer;
mod pieces;
mod pool;
mod results;
mod store;
mod upload;

pub use capabilities::RemoteCapabilities;
pub use connect::RemoteHeaders;
pub use options::{BreakerOptions, RemoteAddress, RemoteError, RemoteOptions};
pub use store::RemoteStore;
