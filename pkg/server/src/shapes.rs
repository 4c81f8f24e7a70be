//! What the requests hold that may come many times.

use gorego_storage::decoded::{ACTION_RESULT, DIGEST, Field, MAX_DECODED_RESULT, Shape, Unfit};
use reapi::{
    bytestream::{QueryWriteStatusRequest, ReadRequest},
    v2::{
        self, BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest,
        GetActionResultRequest, GetCapabilitiesRequest, GetTreeRequest, UpdateActionResultRequest,
        batch_update_blobs_request,
    },
};
use tonic::Status;

/// A request whose fields may take more memory than the message did on the wire.
pub(crate) trait Request {
    /// Its fields.
    const SHAPE: Shape = Shape::FLAT;
    /// What it may take once it is decoded, in bytes.
    const MAX_DECODED: usize = MAX_DECODED;
}

/// A full batch of some 130,000 blobs.
const MAX_DECODED: usize = 32 * 1024 * 1024;

/// Returns the most memory that the fields of a request take once it is decoded, in bytes.
pub(crate) fn measure<Q: Request>(encoded: &[u8]) -> Result<usize, Status> {
    let bytes = Q::SHAPE.decoded_bytes(encoded, Q::MAX_DECODED);
    bytes.map_err(|why| match why {
        Unfit::Malformed(why) => Status::invalid_argument(format!("malformed message: {why}")),
        Unfit::TooLarge(_) => Status::resource_exhausted(format!("the message: {why}")),
    })
}

impl Request for FindMissingBlobsRequest {
    const SHAPE: Shape = Shape(&[Field::messages::<v2::Digest>(2, DIGEST)]);
}

impl Request for BatchUpdateBlobsRequest {
    const SHAPE: Shape = Shape(&[Field::messages::<batch_update_blobs_request::Request>(
        2,
        Shape(&[Field::message(1, DIGEST), Field::blob(2)]),
    )]);
}

impl Request for BatchReadBlobsRequest {
    const SHAPE: Shape = Shape(&[Field::messages::<v2::Digest>(2, DIGEST), Field::numbers(3)]);
}

impl Request for GetActionResultRequest {
    const SHAPE: Shape = Shape(&[Field::strings(5)]);
}

impl Request for UpdateActionResultRequest {
    const SHAPE: Shape = Shape(&[Field::message(2, DIGEST), Field::message(3, ACTION_RESULT)]);
    /// So that whatever is stored may be read again.
    const MAX_DECODED: usize = MAX_DECODED_RESULT;
}

impl Request for GetTreeRequest {}
impl Request for GetCapabilitiesRequest {}
impl Request for ReadRequest {}
impl Request for QueryWriteStatusRequest {}
