//! Two tiers as one store: a local one, which answers what it can, in front of an authoritative one,
//! which is read through and written through.

mod actions;
mod existence;
mod fetch;
mod flow;
mod missing;
mod reading;
mod recent;
mod source;
mod store;
mod write;

pub use actions::ProxyActions;
pub use store::{Options, ProxyStore};
