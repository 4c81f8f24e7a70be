//! Tier 1: blobs and action results as files on a local disk, with an index in memory.
//!
//! The files are the truth. Whatever the index believes, a read that finds otherwise corrects it.

mod actions;
mod blobs;
mod claims;
mod collected;
mod core;
mod evict;
mod files;
mod folders;
mod full;
mod growth;
mod idle;
mod index;
mod instances;
mod layout;
mod outbox;
mod receive;
mod repair;
mod room;
mod scan;
mod scanned;
mod scrub;
mod staged;
mod state;
mod store;
mod upkeep;
mod upload;
mod verify;
mod watchers;

pub use core::Counters;
pub use files::SyncMode;
pub use growth::Growth;
pub use receive::{Complete, Received};
pub use store::{LocalOptions, LocalStore, OpenError};
