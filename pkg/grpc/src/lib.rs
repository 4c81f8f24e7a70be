//! A gRPC server over HTTP/2: connections, TLS, framing, memory, deadlines, health and reflection.
//!
//! Its only own services are health and reflection: [`serve`] hands all other calls to a [`Service`], which reads the
//! [`Messages`] of a request and returns the [`Body`] of its response.
//!
//! tonic's server takes 1.1 to 1.6 times the CPU for the same stores (`pkg/server/examples/behind_tonic.rs` is that
//! server, for the load generator): it copies each message once more than the HTTP/2 stack does. It also reserves
//! memory for any length that a client announces, and answers decode errors and size limits with `INTERNAL` and
//! `OUT_OF_RANGE`, while the REAPI requires `INVALID_ARGUMENT`. tonic's status, health and reflection are used.

mod connection;
mod frames;
mod greeting;
mod head;
mod health;
mod idle;
mod listen;
mod messages;
mod observer;
mod options;
mod placement;
mod reflection;
mod response;
mod router;
mod serve;
mod status;
mod watchdog;
mod windows;
mod wire;

pub use listen::{Listen, Socket};
pub use messages::{Limit, Messages, decode, decode_within, is_large, run};
pub use observer::{CallHead, ObservedCall, Observer};
pub use options::{Error, Limits, Memory, Options, Peers};
pub use placement::CallRuntime;
pub use response::{Body, COPIED, Framed, put_header};
pub use router::{Peer, Service};
pub use serve::serve;
pub use status::{full, malformed, unavailable};

/// The length in bytes of the header of a message on the wire: a compression flag and the length of the message.
pub const HEADER_LEN: usize = 5;
