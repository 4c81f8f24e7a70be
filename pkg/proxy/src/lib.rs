//! Two tiers as one store: a local one, which answers what it can, in front of an authoritative one,
//! which is read through and written through.

mod actions;
mod existence;
mod fetch;
mod flow;
mod journal;
mod memory;
mod missing;
mod outputs;
mod prefetch;
mod push;
mod recent;
mod replay;
mod source;
mod store;
mod write;
mod writes;

pub use actions::ProxyActions;
pub use journal::{Depth, Journal};
pub use memory::Memory;
pub use store::{Backing, OnOutage, Options, ProxyStore};
