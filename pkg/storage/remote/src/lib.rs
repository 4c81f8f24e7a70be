//! A store behind another server that speaks the REAPI.

mod batches;
mod breaker;
mod canary;
mod capabilities;
mod compression;
mod connect;
mod download;
mod failure;
mod foreign;
mod grpc;
mod methods;
mod missing;
mod options;
mod peek;
mod peer;
mod pool;
mod results;
mod retry;
mod service;
mod store;
mod upload;

pub use capabilities::RemoteCapabilities;
pub use connect::channel;
pub use options::{
    BreakerOptions, CallHeaders, RemoteAddress, RemoteError, RemoteHeaders, RemoteOptions,
};
pub use store::RemoteStore;
