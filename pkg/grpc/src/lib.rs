//! A gRPC server over HTTP/2: connections, TLS, framing, memory, deadlines, health and reflection.
//!
//! It knows no service of its own but health and reflection: [`serve`] hands each call to a
//! [`Service`], whose methods are read and answered through [`Call`].
//!
//! tonic's server takes 1.1 to 1.6 times the CPU for the same stores
//! (`pkg/server/examples/behind_tonic.rs` is that server, for the load generator): it copies each message
//! once more than the HTTP/2 stack does. It also reserves memory for whatever length a client announces,
//! and answers decode errors and size limits with `INTERNAL` and `OUT_OF_RANGE` where the REAPI asks
//! for `INVALID_ARGUMENT`. tonic's status, health and reflection are used.

mod call;
mod connection;
mod deadline;
mod decode;
mod error;
mod greeting;
mod head;
mod health;
mod idle;
mod io;
mod memory;
mod message;
mod options;
mod reflection;
mod request;
mod response;
mod router;
mod serve;
mod status;
mod watchdog;
mod windows;

pub use call::{Call, decode};
pub use decode::{Measure, decode_within, elsewhere, is_large, reply, run};
pub use error::Error;
pub use memory::Memory;
pub use message::{Limit, Messages};
pub use options::{Limits, Options};
pub use request::RequestBody;
pub use response::{Body, COPIED, Framed, Response, put_header, refuse};
pub use router::Service;
pub use serve::serve;
pub use status::{full, unavailable};

/// The bytes that precede each message on the wire: a compression flag and the length.
pub const HEADER_LEN: usize = 5;
