//! A cluster: nodes that find each other and share actions and blobs, without a scheduler process.
//!
//! [`record`] is what nodes know of each other, [`membership`] how they learn it, [`discovery`] where they look first,
//! and [`link`] how two of them talk. [`handover`] decides which action goes to which node, and [`blobs`] where a blob
//! is. `membership` and `handover` are state machines without I/O, tasks or clocks; [`runner`] gives them both.

pub mod blobs;
pub mod calls;
pub mod choice;
pub mod discovery;
pub mod handover;
pub mod link;
pub mod membership;
pub mod record;
pub mod runner;
