//! The bytes of a connection, between the socket and the HTTP/2 layer.

mod calls;
mod coalesce;
mod preface;

pub(crate) use calls::CallGuard;
pub(crate) use coalesce::Coalesced;
pub(crate) use preface::{NoPreface, Prefaced, Protocol};
