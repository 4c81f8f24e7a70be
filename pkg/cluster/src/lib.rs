//! A cluster: nodes that find each other and share actions and blobs, without a scheduler process.
//!
//! [`record`] holds the facts that nodes know of each other. [`membership`] spreads them, [`discovery`] finds the first
//! addresses, and [`link`] connects two nodes. [`handover`] decides which action goes to which node, and [`blobs`]
//! where a blob is. `membership` and `handover` are state machines without I/O, tasks or clocks; [`runner`] drives
//! both.

pub mod blobs;
pub mod calls;
pub mod choice;
pub mod discovery;
pub mod handover;
pub mod link;
pub mod membership;
pub mod record;
pub mod runner;
#[cfg(any(test, feature = "simulation"))]
pub mod testing;
