//! `ActionCache`: results of actions, with small outputs inlined on request.

use std::{collections::HashSet, fmt, sync::Arc};

use bytes::Bytes;
use gorego_grpc::{Body, Framed, decode, decode_within, full, is_large, reply, run};
use gorego_limits::Permit;
use gorego_storage::{ActionCache, BlobStore, CachedResult, Digest, DigestFunction};
use prost::Message as _;
use reapi::v2::{self, ActionResult, GetActionResultRequest, UpdateActionResultRequest};
use tonic::Status;

use crate::{
    Limits, Memory, digests,
    memory::{measure, read_within},
    status::{from_store, invalid_field},
};

/// The service over an action cache that returns only complete results.
#[derive(Debug)]
pub(crate) struct Actions {
    results: Arc<dyn ActionCache>,
    blobs: Arc<dyn BlobStore>,
    updates: bool,
    limits: Limits,
    memory: Memory,
}

impl Actions {
    pub(crate) fn new(
        results: Arc<dyn ActionCache>,
        blobs: Arc<dyn BlobStore>,
        updates: bool,
        limits: Limits,
        memory: Memory,
    ) -> Self {
        Self {
            results,
            blobs,
            updates,
            limits,
            memory,
        }
    }

    /// `GetActionResult`. Of what is to be inlined, as much as fits into a batch is.
    pub(crate) async fn get(&self, request: GetActionResultRequest) -> Result<Body, Status> {
        let instance = digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let action = digests::digest("action_digest", function, request.action_digest.as_ref())?;
        let found = self
            .results
            .get(instance.as_str(), &action, &self.memory.results)
            .await;
        // The permit is held until the result is encoded, not until the client has taken it.
        let CachedResult {
            mut result,
            permit: _permit,
        } = found.map_err(from_store)?;
        let own = result.encoded_len() as u64;
        // The outputs are of one function with the action, and found as that is.
        let function = action.other().is_none().then(|| action.function());
        let wanted = self.wanted(&mut result, &request, function);
        let permit = self.inline(wanted, own).await?;
        Ok(Body::message(Framed::encode(&result), permit))
    }

    /// The outputs to inline, with where their content goes.
    fn wanted<'a>(
        &self,
        result: &'a mut ActionResult,
        request: &GetActionResultRequest,
        function: Option<DigestFunction>,
    ) -> Vec<(&'a mut Bytes, Digest)> {
        let mut room = self
            .limits
            .max_batch_bytes
            .saturating_sub(result.encoded_len() as u64);
        let inline_files: HashSet<&str> = request
            .inline_output_files
            .iter()
            .map(String::as_str)
            .collect();
        let ActionResult {
            output_files,
            stdout_raw,
            stdout_digest,
            stderr_raw,
            stderr_digest,
            ..
        } = result;
        let streams = [
            (request.inline_stdout, stdout_raw, stdout_digest),
            (request.inline_stderr, stderr_raw, stderr_digest),
        ];
        let files = output_files.iter_mut().map(|file| {
            let asked = inline_files.contains(file.path.as_str());
            (asked, &mut file.contents, &mut file.digest)
        });
        streams
            .into_iter()
            .chain(files)
            .filter_map(|(asked, content, digest)| {
                let digest = Digest::from_field(function, digest.as_ref()).ok()?;
                let due = asked && content.is_empty() && digest.size() > 0;
                if !due || digest.size() > room {
                    return None;
                }
                room -= digest.size();
                Some((content, digest))
            })
            .collect()
    }

    /// Fetches content into its places. What cannot be fetched stays out: the client has the
    /// digest, and asks for it where errors can be told. Returns the permit for the response, which
    /// has `own` bytes without that content.
    async fn inline(&self, wanted: Vec<(&mut Bytes, Digest)>, own: u64) -> Result<Permit, Status> {
        if wanted.is_empty() {
            return self
                .memory
                .transport
                .responses
                .reserve(own)
                .await
                .map_err(full);
        }
        let (places, digests): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let (contents, permit) = read_within(&self.memory, &*self.blobs, &digests, own).await?;
        for (place, content) in places.into_iter().zip(contents) {
            if let Ok(content) = content {
                *place = content;
            }
        }
        Ok(permit)
    }

    /// `UpdateActionResult`. While the result is stored, which a backing cache may delay, only the
    /// request is held: the result is decoded from it once more for the response.
    pub(crate) async fn update(&self, encoded: Bytes, wire: Permit) -> Result<Body, Status> {
        if !self.updates {
            return Err(Status::permission_denied(
                "this server does not take action results from clients",
            ));
        }
        let decoded = decode_within(
            &self.memory.transport,
            encoded.clone(),
            wire,
            measure::<UpdateActionResultRequest>,
        )
        .await?;
        let (request, permits): (UpdateActionResultRequest, _) = decoded;
        let instance = digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let action = digests::digest("action_digest", function, request.action_digest.as_ref())?;
        let result = request
            .action_result
            .ok_or_else(|| invalid_field("action_result", "is missing"))?;
        check(&result, action.function())?;
        self.results
            .put(instance.as_str(), &action, result)
            .await
            .map_err(from_store)?;
        let large = is_large(&encoded);
        let again = move || (decode::<UpdateActionResultRequest>(encoded), permits);
        let (again, _permits) = run(large, again).await?;
        reply(
            &self.memory.transport,
            &again?.action_result.unwrap_or_default(),
        )
        .await
    }
}

/// Checks every digest of a result.
fn check(result: &ActionResult, function: DigestFunction) -> Result<(), Status> {
    let check = |field: fmt::Arguments<'_>, digest: Option<&v2::Digest>, required: bool| {
        if digest.is_some() || required {
            digests::digest(field, Some(function), digest)?;
        }
        Ok::<_, Status>(())
    };
    for (index, file) in result.output_files.iter().enumerate() {
        let field = format_args!("action_result.output_files[{index}].digest");
        check(field, file.digest.as_ref(), true)?;
    }
    for (index, directory) in result.output_directories.iter().enumerate() {
        let field = format!("action_result.output_directories[{index}]");
        let root = directory.root_directory_digest.as_ref();
        check(format_args!("{field}.root_directory_digest"), root, false)?;
        let tree = directory.tree_digest.as_ref();
        check(format_args!("{field}.tree_digest"), tree, root.is_none())?;
    }
    let stdout = result.stdout_digest.as_ref();
    check(format_args!("action_result.stdout_digest"), stdout, false)?;
    let stderr = result.stderr_digest.as_ref();
    check(format_args!("action_result.stderr_digest"), stderr, false)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use futures::FutureExt as _;
    use gorego_limits::Budget;
    use gorego_storage::{MemoryStore, Result, decoded::result_memory};

    use super::*;

    /// Results that never arrive.
    #[derive(Debug, Default)]
    struct Endless {
        size: u64,
        reads: AtomicUsize,
    }

    #[async_trait]
    impl ActionCache for Endless {
        async fn get(&self, _: &str, _: &Digest, memory: &Budget) -> Result<CachedResult> {
            let _permit = memory.reserve(result_memory(self.size)).await.unwrap();
            self.reads.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        }

        async fn put(&self, _: &str, _: &Digest, _: ActionResult) -> Result<()> {
            Ok(())
        }
    }

    /// How many of ten results of this size are read at once.
    fn read_at_once(size: u64) -> usize {
        let results = Arc::new(Endless {
            size,
            ..Endless::default()
        });
        let memory = Memory::of_each(48 * 1024 * 1024);
        let blobs = Arc::<MemoryStore>::default();
        let shared = Arc::<Endless>::clone(&results);
        let actions = Actions::new(shared, blobs, true, Limits::default(), memory);
        let request = GetActionResultRequest {
            action_digest: Some(DigestFunction::Sha256.digest(b"action").to_proto()),
            ..GetActionResultRequest::default()
        };
        let mut calls: Vec<_> = (0..10)
            .map(|_| Box::pin(actions.get(request.clone())))
            .collect();
        for call in &mut calls {
            assert!(call.now_or_never().is_none());
        }
        results.reads.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn large_results_are_read_one_after_another_and_small_ones_at_once() {
        assert_eq!(read_at_once(4 * 1024 * 1024), 1);
        assert_eq!(read_at_once(1000), 10);
    }
}
