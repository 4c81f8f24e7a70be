//! The model of a build cache: digests, resource names, the traits of stores, and completeness of action results.

mod arrival;
mod backoff;
mod blob;
pub mod blocking;
mod breaker;
mod chain;
mod completeness;
pub mod decoded;
mod digest;
mod ends;
mod error;
mod eviction;
mod growth;
mod links;
mod memory;
mod outputs;
mod report;
mod resource_name;
pub mod span;
mod store;
mod traffic;
mod tree;
mod usage;
mod verify;

pub use arrival::Arrival;
pub use backoff::{EvictionBackoff, Resource};
pub use blob::{
    Blob, BlobFile, BlobStream, CHUNK_SIZE, Chunks, InUse, Resume, SHARE, UploadId, read_at,
};
pub use breaker::BreakerState;
pub use chain::{Chain, LoopError};
pub use completeness::{CompletenessChecking, find_outputs};
pub use digest::{Digest, DigestError, DigestFunction, Hasher, shorten, to_hex};
pub use ends::compare_ends;
pub use error::{Error, Result};
pub use eviction::{Candidate, EntryId, Evictable, EvictionObserver};
pub use growth::Growth;
pub use links::{Adopt, LinkedAs, Links, PinError, Pins, create_input};
pub use memory::MemoryStore;
pub use outputs::{Outputs, named_blobs};
pub use report::{BackingReport, DiskReport, ScrubReport};
pub use resource_name::{
    Compressor, InstanceName, InstanceNameError, ReadName, ResourceNameError, WriteName,
};
pub use store::{
    ActionCache, ActionCacheExt, BlobStore, BlobStoreExt, CachedResult, Peek, Put, Uploads,
};
pub use traffic::{Lookups, Traffic};
pub use tree::{TreeError, TreeWalk};
pub use usage::{EvictionTotal, Usage};
pub use verify::{hash_file, verify};
