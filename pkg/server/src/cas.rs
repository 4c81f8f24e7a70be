//! `ContentAddressableStorage`: what is missing, batches of small blobs, and directory trees.

mod batch_read;
mod batch_update;
mod missing;
mod tree;
mod walks;

use std::sync::Arc;

use gorego_storage::BlobStore;

use self::walks::Walks;
use crate::{Limits, Memory};

/// The service over a blob store.
#[derive(Debug)]
pub(crate) struct Cas {
    blobs: Arc<dyn BlobStore>,
    limits: Limits,
    memory: Memory,
    walks: Arc<Walks>,
}

impl Cas {
    pub(crate) fn new(blobs: Arc<dyn BlobStore>, limits: Limits, memory: Memory) -> Self {
        Self {
            blobs,
            limits,
            walks: Arc::new(Walks::within(memory.walks)),
            memory,
        }
    }
}
