//! The blobs and results of other nodes.
//!
//! [`Peers`] are the stores of the other nodes, which serve their local tiers only. Without a backing cache, [`Owners`]
//! is the second tier: the digest of each blob and each result determines the nodes that store it. With a backing
//! cache, [`Near`] reads from other nodes the blobs that they have.
//!
//! A blob or result that was acknowledged while `replicas` nodes were reachable is lost only once all its owners are lost,
//! and no lookup copied it meanwhile. One that was acknowledged while fewer were reachable is lost with these. An owner
//! may evict a blob whose lease (`local_cache.lease`) has ended. A lost blob is a miss, and clients build it again. Blobs do not move
//! when members change. A lookup finds a blob at a former owner that is among the first nodes in the new order.
//! Otherwise it copies the blob from the local tier of the node that looks it up, if that has the blob.

mod hedge;
mod hits;
mod latest;
mod near;
mod owners;
mod peers;
mod reads;
mod rendezvous;
#[cfg(test)]
mod tests;

pub use latest::LatestResults;
pub use near::{Near, NearOptions};
pub use owners::Owners;
pub use peers::{Connect, Member, PeerStores, Peers};
