//! Records of calls.

use bytes::Bytes;
use prost::Message as _;
use reapi::v2::RequestMetadata;
use tonic::{Code, metadata::MetadataMap};

/// The header that names the tool and the build that make a call.
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
    /// All methods.
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

/// The record of a call.
#[derive(Clone, Debug)]
pub struct Call {
    /// The number of the call.
    pub id: u64,
    /// The method.
    pub method: Method,
    /// The instance name, also where it is part of a resource name.
    pub instance: String,
    /// The number of digests in the request; one for a stream.
    pub digests: usize,
    /// The resource name of a stream.
    pub resource: String,
    /// The first offset of a `Read` or `Write`.
    pub offset: i64,
    /// Content bytes sent, compressed ones as such.
    pub sent: u64,
    /// Content bytes received, compressed ones as such.
    pub received: u64,
    /// The request headers.
    pub headers: MetadataMap,
    /// The status of the call; `None` while it runs, `Cancelled` if the caller cancelled it.
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

    /// Returns a text header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the `RequestMetadata` of the call.
    pub fn metadata(&self) -> Option<RequestMetadata> {
        let header = self.headers.get_bin(REQUEST_METADATA)?;
        let bytes: Bytes = header.to_bytes().ok()?;
        RequestMetadata::decode(bytes).ok()
    }
}
