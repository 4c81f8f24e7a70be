//! Bounds on the memory that clients can make the process hold.
//!
//! A [`Budget`] is a number of bytes, or of other things, that calls share. A call that finds it used
//! up waits in a queue that serves connections in turn. A [`Pace`] ends calls of a connection that moves
//! too few bytes while others wait for its permits. Both find the connection through the [`Call`] of the
//! current task.

mod budget;
mod call;
mod descriptors;
mod log;
mod pace;

pub use budget::{Budget, Full, Permit, UNCOUNTED};
pub use call::{Call, Client};
pub use descriptors::is_out_of_descriptors;
pub use log::{LogLimit, TRACE};
pub use pace::{MIN_PACE, Pace};
