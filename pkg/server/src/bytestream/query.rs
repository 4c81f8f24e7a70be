//! `QueryWriteStatus`: how far an upload has come.

use gorego_storage::{BlobStoreExt as _, WriteName};
use reapi::bytestream::{QueryWriteStatusRequest, QueryWriteStatusResponse};
use tonic::Status;

use super::ByteStreams;
use crate::status::{from_store, invalid_field};

impl ByteStreams {
    /// How many bytes, uncompressed, are here of an upload; all of them once the blob is here. An
    /// upload never heard of has none: some clients take an error for a reason to give up.
    pub(crate) async fn query(
        &self,
        request: QueryWriteStatusRequest,
    ) -> Result<QueryWriteStatusResponse, Status> {
        let name = WriteName::parse(&request.resource_name)
            .map_err(|why| invalid_field("resource_name", why))?;
        let complete = self
            .blobs
            .contains(&name.digest)
            .await
            .map_err(from_store)?;
        let committed = if complete {
            name.digest.size()
        } else {
            self.uploads
                .committed(&name.digest, &name.upload)
                .await
                .map_err(from_store)?
        };
        Ok(QueryWriteStatusResponse {
            committed_size: i64::try_from(committed).unwrap_or(i64::MAX),
            complete,
        })
    }
}
