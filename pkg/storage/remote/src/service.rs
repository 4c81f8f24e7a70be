//! Calls of services of the peer that are no stores.

use std::sync::Arc;

use tonic::{metadata::MetadataMap, transport::Channel};

use super::{RemoteError, RemoteStore, connect};

impl RemoteStore {
    /// Returns a connection for clients of other services. It connects on the first call.
    pub fn channel(&self) -> Result<Channel, RemoteError> {
        let options = super::RemoteOptions {
            connections: 1,
            ..self.peer.options.clone()
        };
        let mut channels = connect::channels(&options, &Arc::default())?;
        channels.pop().ok_or(RemoteError::NoRuntime)
    }

    /// Returns the headers that requests over it need.
    pub fn metadata(&self) -> MetadataMap {
        MetadataMap::from_headers(connect::headers(&self.peer.options, None))
    }
}
