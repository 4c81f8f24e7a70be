//! Stubs of the Remote Execution API v2.11 and the APIs that it uses, generated from the published protos:
//! messages, clients and servers; and the wire format of the messages.

pub mod metadata;
pub mod shapes;
pub mod wire;

#[allow(
    clippy::all,
    clippy::clone_on_ref_ptr,
    clippy::pedantic,
    dead_code,
    missing_docs,
    rustdoc::all,
    unreachable_pub
)]
mod stubs {
    include!(concat!(env!("OUT_DIR"), "/reapi.rs"));
}

#[allow(clippy::pedantic, missing_docs)]
mod descriptions {
    use crate::shapes::{Content, Field, Shape, Shaped};

    include!(concat!(env!("OUT_DIR"), "/descriptions.rs"));
}

pub use stubs::build::bazel::remote::asset::v1 as asset;
pub use stubs::build::bazel::remote::execution::v2;
pub use stubs::build::bazel::remote::logstream::v1 as logstream;
pub use stubs::build::bazel::semver;
pub use stubs::google::{bytestream, longrunning, rpc};
pub use stubs::gorego;

/// The serialized `FileDescriptorSet` of all protos, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reapi.binpb"));
