//! Bounds on what clients can make the process hold.
//!
//! A [`Budget`] is a number of bytes, or of anything else, that calls share. A call that finds it used
//! up waits in a queue that serves connections in turn. A [`Pace`] ends the calls of a connection that
//! holds what others wait for and moves too few bytes. Both know the connection from the [`Call`]
//! that the present task works for.

mod budget;
mod call;
mod descriptors;
mod log;
mod pace;

pub use budget::{Budget, Full, Permit, UNCOUNTED};
pub use call::{Call, Client};
pub use descriptors::is_out_of_descriptors;
pub use log::LogLimit;
pub use pace::{Pace, SLOWEST};
