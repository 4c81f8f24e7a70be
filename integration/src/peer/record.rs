//! What is known of a call.

use bytes::Bytes;
use prost::Message as _;
use reapi::v2::RequestMetadata;
use tonic::{Code, metadata::MetadataMap};

/// The header that says on whose behalf a call is made.
const REQUEST_METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

/// A method of the REAPI or of `ByteStream`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Method {
    /// `ContentAddressableStorage.FindMissingBlobs`.
    FindMissingBlobs,
    /// `ContentAddressableStorage.BatchUpdateBlobs`.
    BatchUpdateBlobs,
    /// `ContentAddressableStorage.BatchReadBlobs`.
    BatchReadBlobs,
    /// `ContentAddressableStorage.GetTree`.
    GetTree,
    /// `ByteStream.Read`.
    Read,
    /// `ByteStream.Write`.
    Write,
    /// `ByteStream.QueryWriteStatus`.
    QueryWriteStatus,
    /// `ActionCache.GetActionResult`.
    GetActionResult,
    /// `ActionCache.UpdateActionResult`.
    UpdateActionResult,
    /// `Capabilities.GetCapabilities`.
    GetCapabilities,
}

impl Method {
    /// Each of them.
    pub const ALL: [Self; 10] = [
        Self::FindMissingBlobs,
        Self::BatchUpdateBlobs,
        Self::BatchReadBlobs,
        Self::GetTree,
        Self::Read,
        Self::Write,
        Self::QueryWriteStatus,
        Self::GetActionResult,
        Self::UpdateActionResult,
        Self::GetCapabilities,
    ];
}

/// A call that came in.
#[derive(Clone, Debug)]
pub struct Call {
    /// Of the peer's own numbering.
    pub id: u64,
    /// What was called.
    pub method: Method,
    /// The instance name, also where it is part of a resource name.
    pub instance: String,
    /// The digests that the request names; for a stream, one.
    pub digests: usize,
    /// The resource name of a stream.
    pub resource: String,
    /// The offset that a `Read` asks for, or that a `Write` begins at.
    pub offset: i64,
    /// Content bytes sent, as they went over the wire.
    pub sent: u64,
    /// Content bytes received, as they came over the wire.
    pub received: u64,
    /// Its request headers.
    pub headers: MetadataMap,
    /// How it ended; `None` while it runs. A call that the caller gave up is `Cancelled`.
    pub ended: Option<Code>,
}

impl Call {
    pub(super) fn new(id: u64, method: Method, headers: &MetadataMap) -> Self {
        Self {
            id,
            method,
            instance: String::new(),
            digests: 0,
            resource: String::new(),
            offset: 0,
            sent: 0,
            received: 0,
            headers: headers.clone(),
            ended: None,
        }
    }

    /// A header in text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The `RequestMetadata` that came with it.
    pub fn metadata(&self) -> Option<RequestMetadata> {
        let header = self.headers.get_bin(REQUEST_METADATA)?;
        let bytes: Bytes = header.to_bytes().ok()?;
        RequestMetadata::decode(bytes).ok()
    }
}
