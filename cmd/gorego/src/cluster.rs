//! The subcommands of `gorego cluster`.

pub(crate) mod certs;
