//! The bytes of a connection, between the socket and the HTTP/2 layer.

mod coalesce;
mod preface;
mod resets;

pub(crate) use coalesce::Coalesced;
pub(crate) use preface::{NoPreface, Prefaced, Protocol};
pub(crate) use resets::ResetGuard;
