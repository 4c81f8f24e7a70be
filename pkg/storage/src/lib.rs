//! Where build results are kept: digests, the store traits, and the stores.

mod blob;
mod completeness;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod decoded;
mod digest;
mod error;
mod eviction;
mod futile;
mod index;
mod local;
mod memory;
mod remote;
mod resource_name;
mod store;
mod tree;

pub use blob::{Blob, BlobFile, BlobStream, CHUNK_SIZE, Chunks, InUse, Resume, UploadId, Verified};
pub use completeness::{CompletenessChecking, named_blobs};
pub use digest::{Digest, DigestError, DigestFunction, Hasher, to_hex};
pub use error::{Error, Result, SourceError, is_out_of_descriptors};
pub use eviction::{Candidate, EntryId, Evictable, Removed, Usage};
pub use futile::{Futile, Resource};
pub use local::{
    Complete, Counters, Growth, LocalOptions, LocalStore, OpenError, Received, SyncMode,
};
pub use memory::MemoryStore;
pub use remote::{
    BreakerOptions, BreakerState, Chain, LoopError, RemoteAddress, RemoteCapabilities, RemoteError,
    RemoteHeaders, RemoteOptions, RemoteStore,
};
pub use resource_name::{
    Compressor, InstanceName, InstanceNameError, NameProblem, ReadName, ResourceNameError,
    WriteName,
};
pub use store::{ActionCache, BlobStore, BlobStoreExt, Put, Uploads};
pub use tree::{MAX_DIRECTORY_BYTES, TreeError, TreeWalk};
