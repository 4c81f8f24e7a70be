//! A service in addition to those of the REAPI.

use std::fmt;

use async_trait::async_trait;
use gorego_grpc::{Body, Messages, Peer};
use tonic::Status;

/// A service in addition to those of the REAPI, on the same port.
#[async_trait]
pub trait Extension: fmt::Debug + Send + Sync {
    /// Returns whether the service has a method at `path`.
    fn serves(&self, path: &str) -> bool;

    /// Answers a call of the method at `path`.
    async fn call(&self, path: &str, peer: Peer, requests: Messages) -> Result<Body, Status>;
}
