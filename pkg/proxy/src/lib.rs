//! Two tiers as one store: a local one, which answers what it can, in front of an authoritative one,
//! which is read through and written through.

mod actions;
mod existence;
mod fetch;
mod flow;
mod memory;
mod missing;
mod outbox;
mod outputs;
mod prefetch;
mod push;
mod recent;
mod source;
mod store;
mod write;
mod writes;

pub use actions::ProxyActions;
pub use memory::Memory;
pub use outbox::{Depth, Outbox};
pub use store::{Backing, OnOutage, Options, ProxyStore};
