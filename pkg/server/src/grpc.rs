//! A small gRPC layer over HTTP/2, for unary and streaming methods.
//!
//! Why not tonic's server: it costs 1.1 to 1.6 times the CPU for the same stores
//! (`examples/behind_tonic.rs` is that server, for the load generator), since it copies each message
//! once more than the HTTP/2 stack does; it takes memory for whatever a client announces, however
//! many do; and its decode errors and size limits answer `INTERNAL` and `OUT_OF_RANGE` where the
//! client is to be told `INVALID_ARGUMENT`. tonic's status, health, reflection and clients are used.

mod call;
mod head;
mod memory;
mod message;
mod request;
mod response;

pub(crate) use call::{Call, decode, panicked};
pub(crate) use head::{refuse_foreign, timeout};
pub(crate) use memory::{elsewhere, is_large, reply, run};
pub(crate) use message::{Limit, Messages};
pub(crate) use request::RequestBody;
pub(crate) use response::{Body, COPIED, Framed, Response, put_header, refuse, too_late};

/// What precedes each message on the wire: a compression flag and the length.
pub(crate) const HEADER_LEN: usize = 5;
