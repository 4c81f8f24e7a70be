//! Two tiers as one store: a local one in front of the backing cache, which is read through and written through.

mod backing;
mod batches;
mod drain;
mod fetch;
mod flow;
mod links;
mod memory;
mod options;
mod outbox;
mod outputs;
mod prefetch;
mod presence;
mod reads;
mod recent;
mod results;
mod shared;
mod store;
mod tee;
mod tiers;
mod uploads;
mod writes;

pub use memory::Memory;
pub use options::{Backing, OnOutage, Options};
pub use outbox::{Outbox, queue::Depth};
pub use results::ProxyActions;
pub use store::ProxyStore;
