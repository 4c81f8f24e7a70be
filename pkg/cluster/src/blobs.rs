//! The blobs and results of other nodes.
//!
//! [`Peers`] are the stores of the other nodes, which serve their local tiers only. Without a backing cache, [`Owners`]
//! is the second tier: each blob and each result is on some nodes, which its digest determines. With one, [`Near`] reads
//! from other nodes what the backing cache has, too.
//!
//! Losing a node loses no blob or result that was acknowledged while `replicas` nodes were reachable, unless all its
//! owners are lost at once. What was acknowledged while fewer were, such as by a node alone, is lost with these. An owner
//! may evict what no client used for the lease of its local tier. A lost blob is a miss, and clients build it again.
//! Blobs do not move when members change: a lookup finds them at former owners while these are among the first in the
//! new order, and else copies them from the local tier of the node that looks up, if that has them.

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
