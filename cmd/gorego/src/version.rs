//! Which gorego this is.

/// What git called the commit of a release that Bazel stamped, else the workspace's version.
pub(crate) const VERSION: &str = match option_env!("GOREGO_VERSION") {
    Some(stamped) => stamped,
    None => env!("CARGO_PKG_VERSION"),
};
