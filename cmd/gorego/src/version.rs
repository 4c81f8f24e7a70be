//! The version of gorego.

/// The `git describe` of a release stamped by Bazel, else the version of the workspace.
pub(crate) const VERSION: &str = match option_env!("GOREGO_VERSION") {
    Some(stamped) => stamped,
    None => env!("CARGO_PKG_VERSION"),
};
