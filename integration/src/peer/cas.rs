//! `ContentAddressableStorage`.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use reapi::{
    rpc,
    v2::{
        BatchReadBlobsRequest, BatchReadBlobsResponse, BatchUpdateBlobsRequest,
        BatchUpdateBlobsResponse, Digest, Directory, FindMissingBlobsRequest,
        FindMissingBlobsResponse, GetTreeRequest, GetTreeResponse,
        batch_read_blobs_response::Response as BlobRead,
        batch_update_blobs_request::Request as BlobUpdate,
        batch_update_blobs_response::Response as BlobUpdated, compressor,
        content_addressable_storage_server::ContentAddressableStorage, digest_function,
    },
};
use tonic::{Code, Request, Response, Status};

use super::{
    Method,
    blob::{Key, compress, decompress, required},
    state::{PeerState, Service, Shared},
};

const ZSTD: i32 = compressor::Value::Zstd as i32;

#[tonic::async_trait]
impl ContentAddressableStorage for Service {
    async fn find_missing_blobs(
        &self,
        request: Request<FindMissingBlobsRequest>,
    ) -> Result<Response<FindMissingBlobsResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let call = self.begin(Method::FindMissingBlobs, &headers, |call| {
            call.instance.clone_from(&request.instance_name);
            call.digests = request.blob_digests.len();
        });
        let call = call.await?;
        if let Err(refusal) = self.function(request.digest_function) {
            return call.end(Err(refusal));
        }
        let missing_blob_digests = self.inspect(|state| {
            let missing = |digest: &Digest| state.blob(digest).is_none();
            request.blob_digests.into_iter().filter(missing).collect()
        });
        call.end(Ok(Response::new(FindMissingBlobsResponse {
            missing_blob_digests,
        })))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<BatchUpdateBlobsRequest>,
    ) -> Result<Response<BatchUpdateBlobsResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let sizes = request.requests.iter().map(|blob| blob.data.len());
        let size: usize = sizes.sum();
        let call = self.begin(Method::BatchUpdateBlobs, &headers, |call| {
            call.instance.clone_from(&request.instance_name);
            call.digests = request.requests.len();
            call.received = u64::try_from(size).expect("a size in memory");
        });
        let call = call.await?;
        let allowed = self.limit(size);
        let allowed = allowed.and_then(|()| self.function(request.digest_function));
        let function = match allowed {
            Ok(function) => function,
            Err(refusal) => return call.end(Err(refusal)),
        };
        let update = |blob: BlobUpdate| BlobUpdated {
            digest: blob.digest.clone(),
            status: Some(status(self.update(function, blob))),
        };
        let responses = request.requests.into_iter().map(update).collect();
        call.end(Ok(Response::new(BatchUpdateBlobsResponse { responses })))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<BatchReadBlobsRequest>,
    ) -> Result<Response<BatchReadBlobsResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let call = self.begin(Method::BatchReadBlobs, &headers, |call| {
            call.instance.clone_from(&request.instance_name);
            call.digests = request.digests.len();
        });
        let call = call.await?;
        let sizes = request.digests.iter().map(|digest| digest.size_bytes);
        let size = usize::try_from(sizes.sum::<i64>()).unwrap_or(usize::MAX);
        let allowed = self.limit(size);
        if let Err(refusal) = allowed.and_then(|()| self.function(request.digest_function)) {
            return call.end(Err(refusal));
        }
        let zstd = self.compresses() && request.acceptable_compressors.contains(&ZSTD);
        let read = |digest: Digest| self.read_blob(digest, zstd);
        let mut responses: Vec<_> = request.digests.into_iter().map(read).collect();
        if let (Some(fault), Some(first)) = (call.fault, responses.first_mut()) {
            first.data = fault.spoil(std::mem::take(&mut first.data));
        }
        call.sent(responses.iter().map(|blob| blob.data.len()).sum());
        call.end(Ok(Response::new(BatchReadBlobsResponse { responses })))
    }

    type GetTreeStream = tokio_stream::Once<Result<GetTreeResponse, Status>>;

    async fn get_tree(
        &self,
        request: Request<GetTreeRequest>,
    ) -> Result<Response<Self::GetTreeStream>, Status> {
        let (headers, _, request) = request.into_parts();
        let call = self.begin(Method::GetTree, &headers, |call| {
            call.instance.clone_from(&request.instance_name);
            call.digests = 1;
        });
        let call = call.await?;
        let directories =
            required(request.root_digest).and_then(|root| self.inspect(|state| tree(state, root)));
        call.end(directories.map(|directories| {
            Response::new(tokio_stream::once(Ok(GetTreeResponse {
                directories,
                next_page_token: String::new(),
            })))
        }))
    }
}

impl Shared {
    /// Whether zstd is supported.
    pub(super) fn compresses(&self) -> bool {
        self.offer.compressors.contains(&compressor::Value::Zstd)
    }

    /// Returns the digest function of a request, or an error if it is not supported.
    pub(super) fn function(&self, named: i32) -> Result<digest_function::Value, Status> {
        let function = match digest_function::Value::try_from(named) {
            Ok(digest_function::Value::Unknown) => Some(digest_function::Value::Sha256),
            named => named.ok(),
        };
        function
            .filter(|function| self.offer.functions.contains(function))
            .ok_or_else(|| {
                let offered = &self.offer.functions;
                Status::invalid_argument(format!("digest function {named} is none of {offered:?}"))
            })
    }

    fn limit(&self, size: usize) -> Result<(), Status> {
        let limit = self.offer.batch_limit;
        if limit == 0 || size <= limit {
            return Ok(());
        }
        Err(Status::invalid_argument(format!(
            "the batch has {size} bytes of content, and {limit} are allowed"
        )))
    }

    fn update(&self, function: digest_function::Value, blob: BlobUpdate) -> Result<(), Status> {
        let key = required(blob.digest)?;
        let content = match blob.compressor {
            0 => blob.data,
            ZSTD if self.compresses() => decompress(&blob.data, key.size)?,
            other => return Err(Status::invalid_argument(format!("compressor {other}"))),
        };
        key.check(function, &content)?;
        self.change(|state| state.blobs.insert(key, content));
        Ok(())
    }

    fn read_blob(&self, digest: Digest, zstd: bool) -> BlobRead {
        let content = self.inspect(|state| state.blob(&digest));
        let missing = || Status::not_found(format!("{} is missing", digest.hash));
        let content = content.ok_or_else(missing);
        let data = match &content {
            Ok(content) if zstd => compress(content),
            Ok(content) => content.clone(),
            Err(_) => Bytes::new(),
        };
        BlobRead {
            compressor: if zstd { ZSTD } else { 0 },
            data,
            status: Some(status(content.map(drop))),
            digest: Some(digest),
        }
    }
}

fn status(result: Result<(), Status>) -> rpc::Status {
    let (code, message) = match result {
        Ok(()) => (Code::Ok, String::new()),
        Err(status) => (status.code(), status.message().to_owned()),
    };
    rpc::Status {
        code: code.into(),
        message,
        details: Vec::new(),
    }
}

/// Returns the directories below `root`, each once. Missing ones are left out; a missing root is an error.
fn tree(state: &PeerState, root: Key) -> Result<Vec<Directory>, Status> {
    if state.content(&root).is_none() {
        return Err(Status::not_found(format!("{} is missing", root.hash)));
    }
    let (mut known, mut open) = (HashSet::from([root.clone()]), VecDeque::from([root]));
    let mut directories = Vec::new();
    while let Some(key) = open.pop_front() {
        let Some(content) = state.content(&key) else {
            continue;
        };
        let directory = Directory::decode(content)
            .map_err(|_| Status::invalid_argument(format!("{} is no Directory", key.hash)))?;
        for digest in directory
            .directories
            .iter()
            .filter_map(|d| d.digest.as_ref())
        {
            if known.insert(Key::of(digest)) {
                open.push_back(Key::of(digest));
            }
        }
        directories.push(directory);
    }
    Ok(directories)
}
