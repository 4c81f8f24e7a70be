//! Tier 1: blobs and action results as files on a local disk, with an index in memory.
//!
//! The files are the truth: a read that finds a difference between a file and the index corrects the index.

mod actions;
mod adopt;
mod blobs;
mod disk;
mod evict;
mod files;
mod index;
mod inflight;
mod instances;
mod layout;
mod links;
mod options;
mod outbox;
mod peek;
mod pins;
mod receive;
mod repair;
mod report;
mod retries;
mod room;
mod scan;
mod scrub;
mod state;
mod store;
mod twins;
mod upkeep;
mod upload;
mod verify;
mod write;

pub use files::SyncMode;
pub use options::LocalOptions;
pub use receive::Received;
pub use report::Counters;
pub use store::{LocalStore, OpenError, OpenFailure};
pub use upload::CompleteUpload;
