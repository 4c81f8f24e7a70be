//! The cluster.

pub(crate) mod certs;
