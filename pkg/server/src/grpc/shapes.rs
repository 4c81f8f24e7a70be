//! What the requests hold that may come many times.

use gorego_storage::decoded::{ACTION_RESULT, DIGEST, Field, MAX_DECODED_RESULT, Shape};
use reapi::{
    bytestream::{QueryWriteStatusRequest, ReadRequest},
    v2::{
        self, BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest,
        GetActionResultRequest, GetCapabilitiesRequest, GetTreeRequest, UpdateActionResultRequest,
        batch_update_blobs_request,
    },
};
use tonic_health::pb::HealthCheckRequest;

use super::memory::Request;

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
impl Request for HealthCheckRequest {}
