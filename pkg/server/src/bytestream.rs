//! `google.bytestream.ByteStream`: reading and writing blobs of any size.

mod parts;
mod query;
mod read;
mod upload;
mod write;

use std::sync::Arc;

use gorego_storage::{BlobStore, Uploads};

use crate::{Limits, Memory, compression::Workspaces};

/// The service over a blob store.
#[derive(Debug)]
pub(crate) struct ByteStreams {
    blobs: Arc<dyn BlobStore>,
    uploads: Arc<dyn Uploads>,
    workspaces: Workspaces,
    limits: Limits,
    memory: Memory,
}

impl ByteStreams {
    pub(crate) fn new(
        blobs: Arc<dyn BlobStore>,
        uploads: Arc<dyn Uploads>,
        limits: Limits,
        memory: Memory,
    ) -> Self {
        Self {
            blobs,
            uploads,
            workspaces: Workspaces::new(memory.workspaces.clone()),
            limits,
            memory,
        }
    }
}
